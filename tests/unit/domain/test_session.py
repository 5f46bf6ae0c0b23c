"""Sessions: creation, ends, lock-delays."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.errors import Rejected
from waypost.domain.catalog import Deregister, Register
from waypost.domain.kv import KV, PutKey
from waypost.domain.session import CreateSession, Sessions, require_uuid, ttl_ns
from waypost.model.catalog import Check

ID = "11111111-1111-1111-1111-111111111111"
OTHER = "22222222-2222-2222-2222-222222222222"


class HandClock:
    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def wall(self):
        return self.time


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def sessions(domain, clock):
    sessions = Sessions(domain.state, Gate(ExposureAuthorizer()), clock=clock)
    domain.kv = KV(domain.state, Gate(ExposureAuthorizer()), locked_out=sessions.locked_out)
    await domain.catalog.register(
        domain.actor,
        Register(
            node="n1",
            address="a",
            checks=(
                Check(node="", check_id="serfHealth", name="s", status="passing"),
                Check(node="", check_id="app", name="app", status="passing"),
                Check(node="", check_id="bad", name="bad", status="critical"),
            ),
        ),
    )
    return sessions


async def create(domain, sessions, session_id=ID, **more):
    return await sessions.create(
        domain.actor, CreateSession(node="N1", **more), session_id=session_id
    )


async def lock(domain, key, session_id=ID):
    return await domain.kv.put(domain.actor, PutKey(key=key, value=b"x", acquire=session_id))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_defaults(domain, sessions):
    made = await create(domain, sessions)
    assert (made.node, made.behavior, made.node_checks) == ("n1", "release", ("serfHealth",))
    assert made.lock_delay_ns == 15 * 10**9
    assert made.modify_index > 0


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"behavior": "bogus"}, "Invalid Behavior setting 'bogus'"),
        ({"ttl": "5s"}, "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]"),
        ({"ttl": "x"}, "Session TTL 'x' invalid: time: invalid duration \"x\""),
        ({"checks": ("nope",)}, "Missing check 'nope' registration"),
        ({"node_checks": ("nope",)}, "Missing check 'nope' registration"),
        ({"service_checks": ("bad",)}, "Check 'bad' is in critical state"),
    ],
)
async def test_refusals(domain, sessions, more, error):
    with pytest.raises(Rejected) as raised:
        await create(domain, sessions, **more)
    assert str(raised.value) == error
    assert domain.view.sessions() == []


async def test_an_unknown_node_is_refused(domain, sessions):
    with pytest.raises(Rejected, match="Missing node registration"):
        await sessions.create(domain.actor, CreateSession(node="zz"), session_id=ID)


async def test_the_end_releases_and_locks_out(domain, sessions, clock):
    await create(domain, sessions)
    assert await lock(domain, "a")
    await sessions.destroy(domain.actor, ID)
    entry = domain.view.kv("a")
    assert (entry.session, entry.lock_index, entry.value) == ("", 1, b"x")
    await create(domain, sessions, OTHER)
    assert not await lock(domain, "a", OTHER)
    clock.time += 14
    assert not await lock(domain, "a", OTHER)
    clock.time += 1.1
    assert await lock(domain, "a", OTHER)
    assert domain.view.kv("a").lock_index == 2


async def test_the_end_deletes_when_asked_to(domain, sessions, clock):
    await create(domain, sessions, behavior="delete", lock_delay_ns=10**9)
    await lock(domain, "a")
    await sessions.destroy(domain.actor, ID)
    assert domain.view.kv("a") is None
    await create(domain, sessions, OTHER)
    assert not await lock(domain, "a", OTHER)
    clock.time += 1.1
    assert await lock(domain, "a", OTHER)


async def test_a_release_locks_nobody_out(domain, sessions):
    await create(domain, sessions)
    await create(domain, sessions, OTHER)
    await lock(domain, "a")
    assert await domain.kv.put(domain.actor, PutKey(key="a", value=b"", release=ID))
    assert await lock(domain, "a", OTHER)


async def test_destroying_what_is_not_there_is_fine(domain, sessions):
    await sessions.destroy(domain.actor, OTHER)
    assert await sessions.renew(domain.actor, OTHER) is None


@pytest.fixture
async def running(sessions):
    task = asyncio.create_task(sessions.run())
    yield sessions
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("end", ["critical", "check gone", "node gone"])
async def test_the_end_follows_what_it_depends_on(domain, running, end):
    await create(domain, running, checks=("app",), lock_delay_ns=0)
    await lock(domain, "a")
    if end == "critical":
        warning = Check(node="", check_id="app", name="app", status="warning")
        await domain.catalog.register(
            domain.actor, Register(node="n1", address="a", checks=(warning,))
        )
        await asyncio.sleep(0.05)
        assert domain.view.session(ID) is not None, "a warning ended it"
        check = Check(node="", check_id="app", name="app", status="critical")
        await domain.catalog.register(
            domain.actor, Register(node="n1", address="a", checks=(check,))
        )
    elif end == "check gone":
        await domain.catalog.deregister(domain.actor, Deregister(node="n1", check_id="app"))
    else:
        await domain.catalog.deregister(domain.actor, Deregister(node="n1"))
    await until(lambda: domain.view.session(ID) is None)
    assert domain.view.kv("a").session == ""


async def test_a_missed_ttl_ends_it_after_twice_its_time(domain, sessions, clock):
    await create(domain, sessions, ttl="10s")
    clock.time += 19
    assert await sessions._end_due() == pytest.approx(1.0)
    assert domain.view.session(ID) is not None
    await sessions.renew(domain.actor, ID)
    clock.time += 19
    await sessions._end_due()
    assert domain.view.session(ID) is not None
    clock.time += 1.1
    await sessions._end_due()
    assert domain.view.session(ID) is None


async def test_after_a_restart_every_ttl_starts_anew(domain, sessions, clock):
    await create(domain, sessions, ttl="10s")
    clock.time += 1000
    fresh = Sessions(domain.state, Gate(ExposureAuthorizer()), clock=clock)
    assert await fresh._end_due() == pytest.approx(20.0)
    assert domain.view.session(ID) is not None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nope", "UUID must be 36 characters"),
        ("-" * 36, 'UUID should have maximum of 4 "-"; got 36'),
        ("g" * 36, "Invalid UUID: encoding/hex: invalid byte: U+0067 'g'"),
        ("-" + "1" * 35, "Input (without hyphens) must be even length"),
    ],
)
def test_what_is_no_uuid(text, error):
    with pytest.raises(Rejected) as raised:
        require_uuid(text)
    assert str(raised.value) == f"failed session lookup: index error: {error}"


def test_ttls():
    assert [ttl_ns(text) for text in ("", "0s", "10s", "24h")] == [0, 0, 10 * 10**9, 86400 * 10**9]
