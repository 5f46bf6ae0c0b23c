from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from waypost.base.errors import Malformed
from waypost.client.call import Call, headers, nothing
from waypost.client.settings import Overrides, settings_from

CALL = Call(method="GET", path="/v1/x", decode=nothing)


def written(folder: Path, user: str = "{token: from-file}", name: str = "config") -> str:
    path = folder / name
    ca = base64.b64encode(b"-----CA-----").decode()
    path.write_text(
        f"""\
apiVersion: v1
kind: Config
current-context: c
clusters:
- name: k
  cluster: {{server: "https://agent.example:8501", certificate-authority-data: {ca}, tls-server-name: n}}
users:
- name: u
  user: {user}
- name: other
  user: {{token: of-other}}
contexts:
- name: c
  context: {{cluster: k, user: u}}
- name: d
  context: {{cluster: k, user: other}}
"""
    )
    return str(path)


def test_a_file_gives_address_authority_and_credential(tmp_path: Path) -> None:
    found = settings_from({}, overrides=Overrides(kubeconfig=written(tmp_path)))
    assert (found.scheme, found.host, found.port) == ("https", "agent.example", 8501)
    assert (found.token, found.tls.ca_pem, found.tls.server_name) == (
        "from-file",
        "-----CA-----",
        "n",
    )
    other = settings_from({}, overrides=Overrides(kubeconfig=written(tmp_path), context="d"))
    assert other.token == "of-other"


def test_certificates_and_passwords(tmp_path: Path) -> None:
    data = base64.b64encode(b"CERT").decode()
    key = tmp_path / "u.key"
    key.write_text("KEY")
    user = f"{{client-certificate-data: {data}, client-key: u.key}}"
    found = settings_from({}, overrides=Overrides(kubeconfig=written(tmp_path, user)))
    assert found.tls.client_pem == b"CERT\nKEY"
    assert "KEY" not in repr(found) + repr(found.tls)
    user = "{username: anna, password: pw}"
    found = settings_from({}, overrides=Overrides(kubeconfig=written(tmp_path, user)))
    assert headers(CALL, found)["Authorization"] == "Basic YW5uYTpwdw=="


@pytest.mark.parametrize(
    ("environment", "overrides", "token"),
    [
        ({"KUBECONFIG": "FILE"}, {}, "from-file"),
        ({"KUBECONFIG": "FILE", "CONSUL_HTTP_TOKEN": "env"}, {}, "env"),
        ({"KUBECONFIG": "FILE"}, {"token": "flag"}, "flag"),
        ({"KUBECONFIG": "FILE", "CONSUL_HTTP_ADDR": "127.0.0.1:1"}, {}, ""),
        ({"KUBECONFIG": "FILE"}, {"address": "127.0.0.1:1"}, ""),
        ({"KUBECONFIG": "/nowhere:FILE"}, {}, "from-file"),
        ({"KUBECONFIG": "/nowhere", "CONSUL_HTTP_TOKEN": "env"}, {}, "env"),
        ({"CONSUL_HTTP_ADDR": "127.0.0.1:1"}, {"kubeconfig": "FILE"}, "from-file"),
    ],
)
def test_which_one_wins(
    tmp_path: Path, environment: dict[str, str], overrides: dict[str, Any], token: str
) -> None:
    name = written(tmp_path)
    environment = {key: value.replace("FILE", name) for key, value in environment.items()}
    overrides = {key: value.replace("FILE", name) for key, value in overrides.items()}
    found = settings_from(environment, overrides=Overrides(**overrides))
    assert found.token == token


def test_who_gives_a_token_does_not_show_the_files_certificate_too(tmp_path: Path) -> None:
    data = base64.b64encode(b"X").decode()
    user = f"{{client-certificate-data: {data}, client-key-data: {data}}}"
    name = written(tmp_path, user)
    found = settings_from({}, overrides=Overrides(kubeconfig=name, token="t"))
    assert (found.token, found.tls.client_pem) == ("t", b"")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "no such file"),
        ("a: [", "no valid YAML"),
        ("current-context: x\n", "config: cannot locate context x"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, error: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Malformed, match=error):
        settings_from({}, overrides=Overrides(kubeconfig=str(path)))


def test_plugins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="plugins are not supported"):
        settings_from({}, overrides=Overrides(kubeconfig=written(tmp_path, "{exec: {command: x}}")))
