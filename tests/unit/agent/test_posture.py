"""A machine of a protected cluster is protected, unless its operator says otherwise in words."""

from __future__ import annotations

import asyncio

import pytest

from waypost.agent.access_config import AccessConfig
from waypost.agent.config import resolve
from waypost.agent.posture import Posture, StartAgain, access_config, contradiction
from waypost.base.clock import SystemClock


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


class Cluster:
    """What is known of a cluster, as a test says."""

    def __init__(self) -> None:
        self.is_protected = False
        self.news = asyncio.Event()

    async def protected(self) -> None:
        await self.news.wait()


def posture(
    cluster: Cluster, *, is_protected: bool, modes: tuple[str, ...] = ("Node", "RBAC")
) -> Posture:
    settings = resolve({"data_dir": "/nowhere", "retry_join": ["192.0.2.1"]}, dev=False)
    assert settings.role == "client"
    return Posture(
        settings,
        cluster,
        is_protected=is_protected,
        has_keys=False,
        modes=modes,
        clock=SystemClock(),
    )


async def test_a_client_starts_again_when_it_learns_that_its_cluster_is_protected() -> None:
    cluster = Cluster()
    found = posture(cluster, is_protected=False, modes=("Exposure",))
    found.check()
    running = asyncio.create_task(found.run())
    await asyncio.sleep(0)
    assert not running.done()
    cluster.is_protected = True
    with pytest.raises(StartAgain):
        found.check()
    cluster.news.set()
    with pytest.raises(StartAgain):
        await running


async def test_a_protected_client_stays_and_an_opened_one_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster()
    cluster.is_protected = True
    cluster.news.set()
    stays = posture(cluster, is_protected=True)
    stays.check()
    await stays.run()
    assert not caplog.records
    opened = posture(cluster, is_protected=True, modes=("AlwaysAllow",))
    opened.check()
    await opened.run()
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "AlwaysAllow" in caplog.text
