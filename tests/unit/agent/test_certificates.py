"""When the serving certificate is issued again, and what the operator is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from waypost.access.pki.files import locked
from waypost.access.pki.issue import Names
from waypost.access.pki.setup import InitSettings, Layout, initialise
from waypost.agent.certificates import Certificates
from waypost.base.errors import Malformed

NOW_S = 1_795_407_048.0
DAY_S = 86_400.0


class Clock:
    wall_s = NOW_S
    now_s = 1000.0

    def now(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self.wall_s

    def pass_(self, seconds: float) -> None:
        self.wall_s += seconds
        self.now_s += seconds


class World:
    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "data")
        settings = InitSettings(node="n", server="https://x:1", names=Names.of(["n"]))
        initialise(settings, self.layout, now_s=NOW_S)
        self.clock = Clock()
        self.renewals = 0
        self.fault: Exception | None = None
        self.certificates = Certificates(self.layout, renewed=self.renewed, clock=self.clock)

    def renewed(self) -> None:
        self.renewals += 1
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_it_is_renewed_after_two_thirds_of_its_life_and_not_before(world: World) -> None:
    assert await world.certificates.look() == 3600
    world.clock.pass_(243 * DAY_S)
    pause_s = await world.certificates.look()
    assert (world.renewals, pause_s) == (0, 3600)
    world.clock.pass_(DAY_S)
    await world.certificates.look()
    assert world.renewals == 1
    world.clock.pass_(3600)
    await world.certificates.look()
    assert world.renewals == 1


async def test_the_pause_ends_when_it_is_due(world: World) -> None:
    world.clock.pass_(243 * DAY_S)
    while (pause_s := await world.certificates.look()) == 3600:
        world.clock.pass_(pause_s)
    assert 0 < pause_s < 3600
    world.clock.pass_(pause_s)
    await world.certificates.look()
    assert world.renewals == 1


async def test_a_failure_is_said_and_tried_again_in_an_hour(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fault = Malformed("does not fit")
    world.clock.pass_(300 * DAY_S)
    assert await world.certificates.look() == 3600
    assert "not renewed: does not fit; trying again" in caplog.text


async def test_whoever_holds_the_files_is_waited_for(world: World) -> None:
    world.clock.pass_(300 * DAY_S)
    with locked(world.layout.pki):
        assert await world.certificates.look() == 60
    # Woken early, for another reason: the least time between two attempts holds.
    world.clock.pass_(10)
    assert await world.certificates.look() == 50
    assert world.renewals == 0
    world.clock.pass_(50)
    await world.certificates.look()
    assert world.renewals == 1


async def test_kubeconfig_files_are_told_of_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    world.layout.key("ca").unlink()
    world.clock.pass_(300 * DAY_S)
    for _ in range(3):
        await world.certificates.look()
    told = [one.getMessage() for one in caplog.records]
    assert len(told) == 4
    assert told[0].startswith("certificate of admin.conf: 65.0 days left; `waypost certs renew")
    assert world.renewals == 0
