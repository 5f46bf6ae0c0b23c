"""kubeconfig files: `waypost config` and every real kubectl here do the same to the same files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from waypost.cli.main import main


def _kubectls():
    beside = Path(sys.executable).with_name("kubectl")
    found = [str(beside)] if beside.exists() else []
    found += [path] if (path := shutil.which("kubectl")) else []
    params = [pytest.param(one, id=one) for one in dict.fromkeys(found)]
    return params or [pytest.param("kubectl", marks=pytest.mark.needs("kubectl"))]


WAYPOST = (sys.executable, "-m", "waypost")
CA = "-----BEGIN CERTIFICATE-----\nsome bytes\n-----END CERTIFICATE-----\n"


@pytest.fixture(params=_kubectls())
def both(request, tmp_path, monkeypatch, capfd):
    """Two equal folders, and how to run one command line in both: kubectl's result, then ours."""
    folders = [tmp_path / "theirs", tmp_path / "ours"]
    for folder in folders:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "ca.crt").write_text(CA)

    def result(folder, status, out, err):
        text = out.replace(str(folder), "DIR")
        # Only the older kubectl still has this field, always empty.
        text = re.sub(r'^( *"?)preferences"?: \{\},?\n', "", text, flags=re.MULTILINE)
        return status, text, err.replace(str(folder), "DIR")

    def run(*args, kubeconfig="config"):
        results = []
        for folder in folders:
            monkeypatch.chdir(folder)
            monkeypatch.setenv("HOME", str(folder))
            files = ":".join(str(folder / one) for one in kubeconfig.split(":"))
            monkeypatch.setenv("KUBECONFIG", files)
            if folder is folders[0]:
                done = subprocess.run(
                    [request.param, "config", *args], capture_output=True, text=True, timeout=60
                )
                results.append(result(folder, done.returncode, done.stdout, done.stderr))
            else:
                capfd.readouterr()
                status = main(["config", *args])
                results.append(result(folder, status, *capfd.readouterr()))
        return results

    run.folders = folders
    return run


def same(both, *args, **more):
    theirs, ours = both(*args, **more)
    if args[0] in ("get-clusters", "get-users"):  # kubectl 1.20 gives them in no order
        theirs, ours = ((one[0], sorted(one[1].splitlines()), one[2]) for one in (theirs, ours))
    assert ours == theirs


SETUP = (
    ("set-cluster", "k", "--server=https://192.0.2.1:6443", "--certificate-authority=sub/ca.crt"),
    ("set-cluster", "embedded", "--server=https://b", "--certificate-authority=sub/ca.crt", "--embed-certs"),
    ("set-cluster", "open", "--server=http://c", "--insecure-skip-tls-verify=true", "--tls-server-name=x"),
    ("set-credentials", "bob", "--client-certificate=sub/ca.crt", "--client-key=/etc/hostname"),
    ("set-credentials", "token", "--token=sekret-token"),
    ("set-credentials", "yes", "--username=on", "--password=123"),
    ("set-credentials", "a: b", "--username=*x"),
    ("set-credentials", "inline", "--client-certificate=sub/ca.crt", "--embed-certs=true"),
    (
        "set-credentials",
        "plugin",
        "--exec-command=get-token",
        "--exec-api-version=client.authentication.k8s.io/v1",
        "--exec-arg=x",
        "--exec-env=A=b",
    ),
    ("set-context", "c", "--cluster=k", "--user=bob"),
    ("set-context", "d", "--cluster=embedded", "--user=token", "--namespace=n1"),
    ("use-context", "c"),
)  # fmt: skip


def test_files_come_out_the_same_at_every_step(both):
    for args in SETUP:
        same(both, *args)
        theirs, ours = ((folder / "config").read_text() for folder in both.folders)
        assert ours == re.sub(r"^preferences: \{\}\n", "", theirs, flags=re.MULTILINE)
    assert (both.folders[1] / "config").stat().st_mode & 0o777 == 0o600


LOOKS = (
    ("view",),
    ("view", "-o", "json"),
    ("view", "-o=yaml", "--raw"),
    ("view", "--minify"),
    ("view", "--minify", "--raw", "--flatten"),
    ("view", "--flatten"),
    ("view", "--minify", "--context=d", "-o", "json"),
    ("view", "--minify", "--context=nope"),
    ("view", "-o", 'jsonpath={.clusters[0].cluster.server}{"\\n"}'),
    ("view", "-o", "jsonpath={.contexts[*].name}"),
    ("view", "-o", 'jsonpath={range .users[*]}{.name}{"="}{.user.username}{";"}{end}'),
    ("view", "-o", 'jsonpath={.users[?(@.name=="bob")].user.client-key}'),
    ("view", "-o", "jsonpath={.contexts[-1].context}"),
    ("view", "-o", "jsonpath={.nothing}"),
    ("view", "-o", "jsonpath={..namespace}"),
    ("current-context",),
    ("get-contexts",),
    ("get-contexts", "d"),
    ("get-contexts", "-o", "name"),
    ("get-contexts", "--no-headers"),
    ("get-clusters",),
    ("get-users",),
    ("use-context", "nope"),
    ("set-context", "--current", "--namespace=z"),
    ("set-context", "c", "--user=token"),
    ("set-cluster", "k", "--insecure-skip-tls-verify=true"),
    ("set-credentials", "token", "--username=u", "--password=p"),
    ("set-cluster", "k", "--certificate-authority=nope", "--embed-certs"),
    ("delete-context", "d"),
    ("delete-cluster", "open"),
    ("delete-user", "yes"),
    ("delete-user", "nope"),
    ("view", "--raw"),
    ("view", "--minify"),
)


def test_everything_that_is_shown_is_the_same(both):
    for args in SETUP:
        both(*args)
    for args in LOOKS:
        same(both, *args)


def test_an_empty_configuration(both):
    for args in (
        ("view",),
        ("view", "-o", "json"),
        ("current-context",),
        ("get-contexts",),
        ("set-context", "--current", "--user=x"),
        ("view", "--minify"),
    ):
        same(both, *args)


def test_several_files_are_one(both):
    same(both, "set-cluster", "in-b", "--server=https://b", kubeconfig="sub/b")
    same(both, "set-context", "b", "--cluster=in-b", kubeconfig="sub/b")
    for args in (
        ("set-cluster", "in-a", "--server=https://a"),
        ("set-cluster", "in-b", "--certificate-authority=sub/ca.crt"),
        ("set-cluster", "in-b", "--server=https://bb"),
        ("use-context", "b"),
        ("view",),
        ("view", "--flatten"),
        ("set-credentials", "new", "--token=t"),
        ("get-contexts",),
    ):
        same(both, *args, kubeconfig="a:sub/b")
    for name in ("a", "sub/b"):
        found = [
            (folder / name).read_text() if (folder / name).exists() else None
            for folder in both.folders
        ]
        assert found[1] == (found[0] and found[0].replace("preferences: {}\n", ""))


@pytest.mark.parametrize("kubectl", _kubectls())
def test_what_init_makes(tmp_path, kubectl):
    made = subprocess.run(
        [*WAYPOST, "init", f"-data-dir={tmp_path}/d", "-advertise=192.0.2.10", "-node=n"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made
    for name in ("admin.conf", "operator.conf", "node.conf"):
        outputs = []
        for command in ((kubectl,), WAYPOST):
            done = subprocess.run(
                [*command, "config", "view", f"--kubeconfig={tmp_path}/d/{name}"],
                capture_output=True,
                text=True,
                env={**os.environ, "HOME": str(tmp_path)},
            )
            assert done.returncode == 0, done
            outputs.append(done.stdout.replace("preferences: {}\n", ""))
        assert outputs[0] == outputs[1]
        assert outputs[1].count("DATA+OMITTED") == 3
        assert "PRIVATE" not in outputs[1]


def test_more_is_redacted_than_kubectl_does(tmp_path):
    path = tmp_path / "config"
    path.write_text(
        json.dumps(
            {
                "clusters": [
                    {
                        "name": "k",
                        "cluster": {
                            "server": "https://u:sekret1@x:1/p",
                            "proxy-url": "http://a:sekret2@p:3",
                        },
                    }
                ],
                "users": [
                    {
                        "name": "u",
                        "user": {
                            "auth-provider": {
                                "name": "oidc",
                                "config": {
                                    "id-token": "sekret3",
                                    "client-secret": "sekret4",
                                    "client-id": "shown",
                                },
                            }
                        },
                    }
                ],
            }
        )
    )
    done = subprocess.run(
        [*WAYPOST, "config", "view", f"-kubeconfig={path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done
    assert "sekret" not in done.stdout
    assert "http://a:REDACTED@p:3" in done.stdout
    assert "https://u:REDACTED@x:1/p" in done.stdout
    assert "client-id: shown" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [sekret", "no valid YAML line 1"),
        ("users: 4", "Expected `array | null`, got `int`"),
        ("kind: Pod", 'kind "Pod"'),
        ("users: [{name: x, user: {token: [sekret]}}]", "Expected `str`, got `array`"),
    ],
)
def test_a_broken_file_is_told_without_its_secrets(tmp_path, text, message):
    path = tmp_path / "config"
    path.write_text(text)
    done = subprocess.run(
        [*WAYPOST, "config", "use-context", "x", f"--kubeconfig={path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'error: error loading config file "{path}": ')
    assert message in done.stderr
    assert "sekret" not in done.stderr
    assert path.read_text() == text


def test_a_locked_file_stays_as_it_is(tmp_path):
    path = tmp_path / "config"
    (tmp_path / "config.lock").touch()
    done = subprocess.run(
        [*WAYPOST, "config", "set-cluster", "k", "--server=https://x", f"--kubeconfig={path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "config.lock is there" in done.stderr
    assert not path.exists()
