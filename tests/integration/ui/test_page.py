"""The page in a real browser: it shows what is there, follows changes, and foreign text stays text."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from .browser import Browser

pytestmark = pytest.mark.needs("chromium")


class Agent:
    def __init__(self, folder, *more):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "agent.log"
        command = [
            sys.executable, "-m", "waypost", "agent", "-dev", "-ui", f"-http-port={self.port}", "-dns-port=-1",
            "-docker=off", "-balancer=off", "-node=n1", *more,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.get("/v1/status/leader")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return response.read()

    def put(self, path, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        urllib.request.urlopen(
            urllib.request.Request(self.url + path, data=data, method="PUT"), timeout=10
        ).close()

    def register(self, name, **more):
        self.put("/v1/agent/service/register", {"Name": name, "Port": 80, **more})

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0, self.log.read_text()


@pytest.fixture
def agent(tmp_path):
    agent = Agent(tmp_path)
    yield agent
    agent.stop()


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        yield browser


def keep(browser, name):
    """Leave a picture for people where they asked for one."""
    folder = os.environ.get("WAYPOST_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / name)


def names(browser):
    return browser.run(
        "return [...document.querySelectorAll('details .name')].map((one) => one.textContent)"
    )


def test_services_are_shown_and_followed_live(agent, browser):
    agent.register("web", Tags=["http", "v1"], Meta={"zone": "a"}, Check={"TTL": "60s"})
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelector('#live').dataset.state === 'on'")
    assert names(browser) == ["consul", "web"]
    agent.register("db")
    browser.wait("return document.querySelectorAll('details').length === 3")
    assert browser.run(
        "return document.querySelector('[data-service=web] .health .critical') !== null"
    )
    agent.put("/v1/agent/check/pass/service:web?note=all%20fine")
    browser.wait("return document.querySelector('[data-service=web] .health .passing') !== null")
    browser.run("document.querySelector('[data-service=web] summary').click()")
    browser.wait("return document.querySelector('[data-service=web]').open")
    assert "all fine" in browser.text()
    keep(browser, "live.png")
    agent.put("/v1/agent/service/deregister/db")
    browser.wait("return document.querySelectorAll('details').length === 2")
    assert browser.run("return document.querySelector('[data-service=web]').open"), (
        "an open service stays open"
    )
    assert browser.complaints() == []


def test_keyboard_language_and_theme(agent, browser):
    agent.register("web")
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelectorAll('details').length === 2")
    browser.keys("/")
    assert browser.run("return document.activeElement.id") == "filter"
    browser.keys("w", "e")
    browser.wait("return document.querySelectorAll('details').length === 1")
    browser.keys("\ue00c")
    browser.wait("return document.querySelectorAll('details').length === 2")
    browser.run("document.querySelector('#language').click()")
    assert "服务" in browser.text()
    browser.run("document.querySelector('#theme').click()")
    theme = browser.run("return document.documentElement.dataset.theme")
    keep(browser, "chinese.png")
    browser.open(f"{agent.url}/ui/")
    assert browser.run("return document.documentElement.dataset.theme") == theme, (
        "the choice is remembered"
    )
    assert browser.run("return document.documentElement.lang") == "zh-CN"


def test_foreign_text_stays_text(agent, browser):
    evil = "<img src=x onerror=document.title='broken'>"
    agent.register(
        "evil",
        ID=evil,
        Tags=[evil, "</script><script>document.title='broken'</script>"],
        Meta={"k": evil},
    )
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelectorAll('details').length === 2")
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    browser.wait("return document.body.innerText.includes('onerror')")
    assert browser.run("return document.title") == "waypost"
    assert browser.run("return document.querySelectorAll('main img').length") == 0


def write(browser, value):
    browser.run(
        "const area = document.querySelector('#value'); area.value = arguments[0];"
        "area.dispatchEvent(new Event('input'))",
        value,
    )


def value(browser):
    return browser.run("return document.querySelector('#value')?.value")


def test_keys_are_browsed_followed_and_changed(agent, browser):
    agent.put("/v1/kv/config/app.json", {"a": 1})
    browser.open(f"{agent.url}/ui/#/kv")
    browser.wait("return document.querySelector('ul.keys a')?.textContent === 'config/'")
    browser.run("document.querySelector('ul.keys a').click()")
    browser.wait("return document.querySelector('ul.keys a')?.textContent === 'app.json'")
    agent.put("/v1/kv/config/new%20one")
    browser.wait("return document.querySelectorAll('ul.keys a').length === 2")
    browser.run("document.querySelector('ul.keys a').click()")
    browser.wait("return document.querySelector('#value')?.value === '{\"a\": 1}'")
    write(browser, "grüße")
    keep(browser, "value.png")
    browser.run("document.querySelector('form button.main').click()")
    browser.wait("return document.querySelector('.note').textContent === 'Saved.'")
    assert agent.get("/v1/kv/config/app.json?raw").decode() == "grüße"
    assert browser.complaints() == []


def test_what_was_typed_is_not_lost_to_another_writer(agent, browser):
    agent.put("/v1/kv/k", "old")
    browser.open(f"{agent.url}/ui/#/kv/k")
    browser.wait("return document.querySelector('#value')?.value === '\"old\"'")
    write(browser, "mine")
    agent.put("/v1/kv/k", "theirs")
    browser.wait("return document.querySelector('#value').value === '\"theirs\"'")
    assert "mine" in browser.text()
    assert agent.get("/v1/kv/k?raw") == b'"theirs"'


def test_a_value_that_is_no_text_cannot_be_spoilt(agent, browser):
    raw = bytes(range(256))
    urllib.request.urlopen(
        urllib.request.Request(f"{agent.url}/v1/kv/k", data=raw, method="PUT"), timeout=10
    ).close()
    browser.open(f"{agent.url}/ui/#/kv/k")
    browser.wait("return document.querySelector('#value')?.readOnly")
    assert browser.run("return document.querySelector('form button.main').disabled")
    assert "256 bytes" in browser.text()
    assert agent.get("/v1/kv/k?raw") == raw


def test_nodes_and_cluster(agent, browser):
    agent.register("web")
    browser.open(f"{agent.url}/ui/#/nodes")
    browser.wait("return document.querySelectorAll('details').length === 1")
    browser.run("document.querySelector('details summary').click()")
    browser.wait("return document.querySelector('details').open")
    assert "web" in browser.text()
    browser.open(f"{agent.url}/ui/#/cluster")
    browser.wait("return document.querySelector('.cards b')?.textContent === 'n1'")
    assert "1 / 1" in browser.text()
    keep(browser, "cluster.png")
    assert browser.complaints() == []


def press(browser, what, *, within="body"):
    browser.run(f"document.querySelector('{within} [data-do={what}]').click()")
    browser.wait("return document.querySelector('#dialog').open")


def test_an_instance_is_put_into_maintenance_and_removed(agent, browser):
    agent.register("web", ID="web-1")
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelector('[data-service=web] .health .passing') !== null")
    browser.run("document.querySelector('[data-service=web] summary').click()")
    press(browser, "maintenance", within="[data-service=web]")
    browser.keys(*"new disk", "\ue007")
    browser.wait(
        "return document.querySelector('[data-service=web] .health .maintenance') !== null"
    )
    assert "new disk" in browser.text()
    assert json.loads(agent.get("/v1/health/service/web?passing")) == []
    keep(browser, "maintenance.png")
    browser.run("document.querySelector('[data-service=web] [data-do=maintenance]').click()")
    browser.wait("return document.querySelector('[data-service=web] .health .passing') !== null")
    press(browser, "deregister", within="[data-service=web]")
    browser.keys("\ue00c")
    assert json.loads(agent.get("/v1/health/service/web?passing")) != [], "no is no"
    press(browser, "deregister", within="[data-service=web]")
    browser.run("document.querySelector('#dialog button[type=submit]').click()")
    browser.wait("return document.querySelector('[data-service=web]') === null")
    assert browser.complaints() == []


def test_a_node_is_put_into_maintenance(agent, browser):
    browser.open(f"{agent.url}/ui/#/nodes")
    browser.wait("return document.querySelector('details') !== null")
    browser.run("document.querySelector('details summary').click()")
    press(browser, "maintenance")
    browser.keys("\ue007")
    browser.wait("return document.querySelector('details .dot.maintenance') !== null")
    assert b"_node_maintenance" in agent.get("/v1/agent/checks")


def test_without_a_leader_the_last_state_is_marked_as_such(tmp_path, browser):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        store = probe.getsockname()[1]
    # One of three servers whose peers never come.
    agent = Agent(
        tmp_path, "-dev=false", "-server", "-bootstrap-expect=3", f"-data-dir={tmp_path / 'd'}",
        "-bind=127.0.91.1", f"-store-port={store}",
    )  # fmt: skip
    try:
        browser.open(f"{agent.url}/ui/")
        browser.wait("return !document.querySelector('#banner').hidden")
        assert "no leader" in browser.text()
        browser.open(f"{agent.url}/ui/#/kv/k")
        browser.wait("return document.querySelector('#value') !== null")
        write(browser, "x")
        browser.run("document.querySelector('form button.main').click()")
        browser.wait(
            "return document.querySelector('.note').textContent.includes('No cluster leader')"
        )
        assert value(browser) == "x"
    finally:
        agent.stop()


def test_a_token_opens_what_strangers_may_not_see(tmp_path, browser):
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('secret-of-ann,ann,1,"system:masters"\n')
    tokens.chmod(0o600)
    agent = Agent(tmp_path, "-authorization-mode=RBAC", f"-token-auth-file={tokens}")
    try:
        browser.open(f"{agent.url}/ui/#/kv")
        browser.wait("return document.body.innerText.includes('Sign in with a token')")
        browser.run("document.querySelector('#sign').click()")
        browser.keys(*"wrong", "\ue007")
        browser.wait("return document.body.innerText.includes('The token was refused.')")
        browser.run(
            "document.querySelector('#token').value = ''; document.querySelector('#token').focus()"
        )
        browser.keys(*"secret-of-ann", "\ue007")
        browser.wait("return document.querySelector('#new-key') !== null")
        browser.wait("return document.querySelector('#sign').title.endsWith('ann')")
        keep(browser, "signed-in.png")
        browser.open(f"{agent.url}/ui/#/nodes")
        browser.wait("return document.querySelector('details') !== null")
        browser.run("document.querySelector('#sign').click()")
        press(browser, "maintenance")
        browser.keys("\ue007")
        browser.wait("return !document.querySelector('#toast').hidden")
        assert "Forbidden" in browser.run("return document.querySelector('#toast').textContent")
        browser.open(f"{agent.url}/ui/#/kv")
        browser.wait("return document.body.innerText.includes('Sign in with a token')")
    finally:
        agent.stop()
    assert "secret-of-ann" not in agent.log.read_text()


def test_it_says_when_the_agent_is_gone(agent, browser):
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelector('#live').dataset.state === 'on'")
    agent.process.send_signal(signal.SIGTERM)
    browser.wait("return document.querySelector('#live').dataset.state === 'off'")
    assert "connection lost" in browser.text()


def test_the_files_are_served_with_a_strict_policy(agent):
    with urllib.request.urlopen(f"{agent.url}/ui/", timeout=10) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        page = response.read().decode()
    elsewhere = page.replace("http://www.w3.org", "")
    assert "http://" not in elsewhere, "nothing comes from elsewhere"
    assert "https://" not in elsewhere
    with pytest.raises(urllib.error.HTTPError) as caught:
        agent.get("/ui/nope.js")
    with caught.value as error:
        assert error.code == 404
