"""What `AccessControl.read_again` takes, leaves and refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from waypost.access.gate import ExposureAuthorizer
from waypost.access.pki.issue import Names, make_authority
from waypost.access.pki.keys import generate_key
from waypost.access.pki.setup import InitSettings, Layout, initialise
from waypost.agent.access import AccessControl, load_pki
from waypost.agent.access_config import AccessConfig
from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed, WaypostError
from waypost.state.state import State
from waypost.store.open import make_engine
from waypost.surfaces.http.message import Head, Headers, Peer, Request


def control(data_dir: Path | None = None, **fields: Any) -> AccessControl:
    clock = SystemClock()
    return AccessControl(
        State(make_engine("memory", clock=clock)).view,
        exposure=ExposureAuthorizer(),
        keys=load_pki(data_dir),
        clock=clock,
        config=AccessConfig(**fields),
    )


def reload(access: AccessControl, data_dir: Path | None = None, **fields: Any) -> None:
    access.take_over(access.read_again(AccessConfig(**fields), data_dir=data_dir))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def user(access: AccessControl, *headers: tuple[str, str]) -> str:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    head = Head(method="GET", target=b"/v1/x", headers=Headers(raw))
    peer = Peer(listener="http", address="127.0.0.1")
    found = access.authenticate(Request(head, body=b"", peer=peer, arrived_s=0.0))
    return found.actor.user if found.actor is not None else ""  # type: ignore[union-attr]


def hook(path: Path, url: str) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    return write(path, json.dumps(config))


def authorizers(path: Path, *modes: str, hook: str = "") -> str:
    connection = {"type": "KubeConfigFile", "kubeConfigFile": hook}
    webhook = {
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "timeout": "3s",
        "failurePolicy": "NoOpinion",
        "connectionInfo": connection,
    }
    found = [
        {"type": mode, "name": f"a{at}", **({"webhook": webhook} if mode == "Webhook" else {})}
        for at, mode in enumerate(modes)
    ]
    kind = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration"}
    return write(path, json.dumps({**kind, "authorizers": found}))


def test_the_webhooks_of_a_chain_change_and_its_authorizers_do_not(tmp_path: Path) -> None:
    first = hook(tmp_path / "first", "https://one.example/")
    config = authorizers(tmp_path / "config", "Node", "RBAC", "Webhook", hook=first)
    access = control(authorization_config=config)
    before = access.authorizers.authorizers
    second = hook(tmp_path / "second", "https://two.example/")
    authorizers(tmp_path / "config", "Node", "RBAC", "Webhook", hook=second)
    reload(access, authorization_config=config)
    after = access.authorizers.authorizers
    assert after[1] is before[1]  # the index of the policy
    assert after[2] is not before[2]
    assert access.asks_others

    authorizers(tmp_path / "config", "Node", "RBAC", "AlwaysAllow")
    text = r"config: the authorizers are Node, RBAC, Webhook; they become .* started again"
    with pytest.raises(Malformed, match=text):
        reload(access, authorization_config=config)
    assert access.authorizers.authorizers == after


def test_one_bad_file_leaves_all_of_them(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "token_auth_file": write(tmp_path / "tokens", "t,anna,1\n"),
        "basic_auth_file": write(tmp_path / "passwords", "p,bert,2\n"),
        "client_ca_file": write(
            tmp_path / "ca", make_authority(generate_key(), common_name="a", now_s=0).pem.decode()
        ),
    }
    access = control(**fields)
    write(tmp_path / "tokens", "u,anna,1\n")
    write(tmp_path / "ca", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
    with pytest.raises(Malformed, match="ca: no PEM certificate"):
        reload(access, **fields)
    assert user(access, ("Authorization", "Bearer t")) == "anna"
    assert user(access, ("Authorization", "Bearer u")) == ""
    (tmp_path / "ca").unlink()
    with pytest.raises(Malformed, match="ca: No such file"):
        reload(access, **fields)
    # A setting may name another file, or none.
    reload(access, token_auth_file=fields["token_auth_file"])
    assert user(access, ("Authorization", "Bearer u")) == "anna"


def test_anonymous_callers_come_and_go(tmp_path: Path) -> None:
    tokens = write(tmp_path / "tokens", "t,anna,1\n")
    access = control(token_auth_file=tokens)
    assert user(access) == "system:anonymous"
    reload(access, token_auth_file=tokens, anonymous_auth=False)
    assert user(access) == ""
    reload(access, token_auth_file=tokens)
    assert user(access) == "system:anonymous"


def test_the_keys_of_an_issuer_stay_fetched_while_nothing_about_it_changes(tmp_path: Path) -> None:
    ca = make_authority(generate_key(), common_name="a", now_s=0).pem.decode()
    fields: dict[str, Any] = {
        "oidc_issuer_url": "https://issuer.example",
        "oidc_client_id": "c",
        "oidc_ca_file": write(tmp_path / "ca", ca),
    }
    access = control(**fields)

    def tokens() -> object:
        (found,) = (one for one in access._authenticators._tokens if one.name == "oidc")
        return found

    first = tokens()
    reload(access, **fields)
    assert tokens() is first
    write(tmp_path / "ca", make_authority(generate_key(), common_name="b", now_s=0).pem.decode())
    reload(access, **fields)
    second = tokens()
    assert second is not first
    reload(access, **fields, oidc_groups_claim="groups")
    assert tokens() is not second
    write(tmp_path / "ca", "nothing")
    with pytest.raises(Malformed, match="ca: no PEM certificate"):
        reload(access, **fields)


def test_what_needs_a_start_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    tokens = write(tmp_path / "tokens", "t,anna,1\n")
    access = control()
    reload(access, token_auth_file=tokens)
    assert not access.is_protected
    assert "access control begins when the agent is started again" in caplog.text
    caplog.clear()
    access = control(token_auth_file=tokens)
    reload(access, token_auth_file=tokens, authorization_mode="AlwaysAllow", audit_log_path="x")
    assert "access.authorization_mode, access.audit_log_path: changes count when" in caplog.text
    assert access.authorizers.names == ("Node", "RBAC")


def test_keys_that_vanish_are_refused_and_keys_that_come_need_a_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout(tmp_path / "data")
    settings = InitSettings(node="n", server="https://x:1", names=Names.of(["n"]))
    tokens = write(tmp_path / "tokens", "t,anna,1\n")
    access = control(layout.data_dir, token_auth_file=tokens)
    assert access.keys is None
    initialise(settings, layout, now_s=SystemClock().wall())
    reload(access, layout.data_dir, token_auth_file=tokens)
    assert access.keys is None
    assert "pki is used when the agent is started again" in caplog.text

    access = control(layout.data_dir)
    for path in (layout.key("sa"), layout.token_public_keys, layout.certificate("ca")):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(WaypostError, match=f"{path.name}: No such file"):
            reload(access, layout.data_dir)
        path.write_bytes(content)
        path.chmod(0o600)
    layout.key("ca").unlink()  # it may live elsewhere
    reload(access, layout.data_dir)
    assert access.keys is not None
    assert access.keys.authority.key is None


async def test_a_flood_of_reloads_leaves_nothing_behind(tmp_path: Path) -> None:
    config = hook(tmp_path / "hook", "https://one.example/")
    access = control(authentication_token_webhook_config_file=config)
    for _ in range(40):
        reload(access, authentication_token_webhook_config_file=config)
    await access._close_retired()
    assert len(access._retired) <= 16
    await access.close()
    assert not access._retired
