"""/metrics of a real agent, read by Prometheus' own tools."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

TOKENS = 'for-prometheus,prom,1,"system:monitoring"\nfor-nobody,nobody,2,""\n'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.read().decode()


def wait_for(ask, process):
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the process has ended"
        try:
            found = ask()
        except OSError as error:
            found = error
        if found and not isinstance(found, OSError):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.fixture
def agent(tmp_path):
    tokens = tmp_path / "tokens.csv"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "waypost", "agent", "-dev", f"-http-port={url.rpartition(':')[2]}", "-dns-port=-1",
        "-docker=off", "-balancer=off", "-node=n1", "-authorization-mode=RBAC", f"-token-auth-file={tokens}",
    ]  # fmt: skip
    with (tmp_path / "agent.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: get(f"{url}/v1/status/leader"), process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_only_who_may(agent):
    assert "waypost_leader_known 1.0" in get(f"{agent}/metrics", "for-prometheus")
    for token in (None, "for-nobody"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(f"{agent}/metrics", token)
        with caught.value as error:
            assert error.code == 403


@pytest.mark.needs("prometheus")
def test_promtool_has_nothing_to_say(agent):
    text = get(f"{agent}/metrics", "for-prometheus")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.needs("prometheus")
def test_a_real_prometheus_scrapes_it(agent, tmp_path):
    target = agent.removeprefix("http://")
    config = {
        "scrape_configs": [
            {
                "job_name": "waypost",
                "scrape_interval": "500ms",
                "scrape_timeout": "500ms",
                "authorization": {"credentials": "for-prometheus"},
                "static_configs": [{"targets": [target]}],
            }
        ]
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    own = f"127.0.0.1:{free_port()}"
    command = [
        shutil.which("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={own}",
    ]  # fmt: skip
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        question = (
            f"http://{own}/api/v1/query?query=waypost_service_instances%7Bstatus%3D%22passing%22%7D"
        )
        found = wait_for(lambda: json.loads(get(question))["data"]["result"], process)
        assert [(one["metric"]["service"], one["value"][1]) for one in found] == [("consul", "1")]
    finally:
        process.terminate()
        process.wait(10)
