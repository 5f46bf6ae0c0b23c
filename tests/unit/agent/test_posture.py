"""A machine of a protected cluster is protected, unless its operator says otherwise in words."""

from __future__ import annotations

from waypost.agent.access_config import AccessConfig
from waypost.agent.posture import access_config, contradiction


def test_silence_means_as_the_cluster() -> None:
    silent = AccessConfig()
    assert access_config(silent, is_protected=False) is silent
    found = access_config(silent, is_protected=True)
    assert found.authorization_mode == "Node,RBAC"
    assert found.is_protected


def test_what_the_operator_wrote_counts_and_is_said_when_it_opens_a_door() -> None:
    for told in (AccessConfig(authorization_mode="AlwaysAllow"), AccessConfig(client_ca_file="/x")):
        assert access_config(told, is_protected=True) is told
    assert "AlwaysAllow" in contradiction(("AlwaysAllow",), is_protected=True)
    assert contradiction(("AlwaysAllow",), is_protected=False) == ""
    assert contradiction(("Node", "RBAC"), is_protected=True) == ""
