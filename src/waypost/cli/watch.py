"""`waypost watch`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from waypost.base.errors import Malformed
from waypost.cli import child
from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, UsageError, boolean, flag, repeated

if TYPE_CHECKING:
    from waypost.client.call import Call
    from waypost.client.transport import Client

SUMMARY = "Watch for changes and run a command on each"

_QUERYING: Final = "Error querying Consul agent"


class WatchFlags(DatacenterFlags):
    """Flags of `waypost watch`."""

    key: str = flag("", "The key to watch, for type key.")
    name: str = flag("", "The event to watch, for type event; all by default.")
    passingonly: str = flag(
        "", "For type service: only instances all of whose checks pass.", value="true|false"
    )
    prefix: str = flag("", "The prefix to watch, for type keyprefix.")
    service: str = flag("", "The service to watch, for types service and checks.")
    shell: bool = flag(True, "Run the command in a shell ($SHELL, else /bin/sh).")
    state: str = flag("", "The state of checks to watch, for type checks.")
    tag: tuple[str, ...] = repeated(
        str, "Only instances with this tag, for type service; may be given several times."
    )
    type: str = flag(
        "", "What to watch: key, keyprefix, services, nodes, service, checks or event."
    )


class View(NamedTuple):
    """What is watched: the call, what its answer is made into, and whether its index is a hash (events)."""

    path: str
    query: tuple[tuple[str, str], ...] = ()
    shape: Callable[[Any], Any] = lambda answer: answer
    hashed_index: bool = False


_PARAMETERS: Final = {
    "key": {"key"},
    "keyprefix": {"prefix"},
    "services": set[str](),
    "nodes": set[str](),
    "service": {"service", "tag", "passingonly"},
    "checks": {"service", "state"},
    "event": {"name"},
}


def view_of(settings: WatchFlags) -> View:
    """Return what the flags ask to watch. Raises CommandFailed or UsageError in Consul's words."""
    if not settings.type:
        raise UsageError("Watch type must be specified\n")
    if settings.type not in _PARAMETERS:
        raise CommandFailed(f"Unsupported watch type: {settings.type}")
    if settings.passingonly:
        try:
            passing = boolean(settings.passingonly)
        except Malformed as exc:
            text = f'strconv.ParseBool: parsing "{settings.passingonly}": invalid syntax'
            raise CommandFailed(f"Failed to parse passingonly flag: {text}") from exc
    else:
        passing = False
    view = _view(settings, passing=passing)
    every = set().union(*_PARAMETERS.values())
    strange = [
        name for name in sorted(every - _PARAMETERS[settings.type]) if getattr(settings, name)
    ]
    if strange:
        raise CommandFailed(f"Invalid parameters: [{' '.join(strange)}]")
    return view


def _view(settings: WatchFlags, *, passing: bool) -> View:
    match settings.type:
        case "key":
            key = _needed(settings.key, "key")
            return View(f"/v1/kv/{key}", shape=lambda answer: _pair(answer[0]) if answer else None)
        case "keyprefix":
            prefix = _needed(settings.prefix, "prefix")
            return View(f"/v1/kv/{prefix}", (("recurse", ""),), _pairs)
        case "services":
            return View("/v1/catalog/services")
        case "nodes":
            return View("/v1/catalog/nodes")
        case "service":
            query = [("tag", tag) for tag in settings.tag]
            if passing:
                query.append(("passing", "1"))
            service = _needed(settings.service, "service")
            return View(f"/v1/health/service/{service}", tuple(query))
        case "checks":
            if settings.service and settings.state:
                raise CommandFailed("Cannot specify service and state")
            if settings.service:
                return View(f"/v1/health/checks/{settings.service}")
            return View(f"/v1/health/state/{settings.state or 'any'}")
    query = [("name", settings.name)] if settings.name else []
    return View("/v1/event/list", tuple(query), hashed_index=True)


def _needed(value: str, what: str) -> str:
    if not value:
        raise CommandFailed(f"Must specify a single {what} to watch")
    return value


def _pair(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a KV entry as Consul's watch prints it: in its order, with an empty session."""
    order = ("Key", "CreateIndex", "ModifyIndex", "LockIndex", "Flags", "Value", "Session")
    return {name: entry.get(name, "" if name == "Session" else None) for name in order}


def _pairs(answer: Any) -> Any:
    return [_pair(entry) for entry in answer] if answer else None


def event_index(event_id: str) -> int:
    """Return the index that stands for an event: the two halves of its id, xored. Source: Consul event list API."""
    digits = event_id.replace("-", "")
    return int(digits[:16], 16) ^ int(digits[16:], 16)


def new_events(events: list[dict[str, Any]], *, after: int) -> list[dict[str, Any]]:
    """Return the events after the one whose index is `after`; all, if that one is not among them."""
    for place, event in enumerate(events):
        if event_index(event["ID"]) == after:
            return events[place + 1 :]
    return events


def _watch(settings: WatchFlags, args: list[str]) -> int:
    from waypost.client import api

    view = view_of(settings)
    call = api.raw(view.path, view.query)
    with connect(settings) as client:
        with worded(_QUERYING):
            client.do(api.agent_self())
        if not args:
            with worded(_QUERYING):
                answer = view.shape(client.do(call))
            print(json.dumps(answer, indent=4, ensure_ascii=False))
            return 0
        _follow(
            client,
            call,
            view,
            handle=lambda answer, index: _run(args, answer, index, shell=settings.shell),
        )
    return 0


def _follow(
    client: Client, call: Call[Any], view: View, *, handle: Callable[[Any, int], None]
) -> None:
    """Call `handle` with every new answer, for ever. An agent that is away is asked again later.

    An answer that says the same as the one before is none, whatever its index.
    """
    from waypost.client.blocking import Poll
    from waypost.client.errors import UnexpectedResponse, Unreachable
    from waypost.client.transport import WATCH_WAIT_S

    poll, seen, rng = Poll(), object(), random.SystemRandom()
    while True:
        try:
            raw, index = client.ask(call, index=poll.index, wait_s=WATCH_WAIT_S)
        except (Unreachable, UnexpectedResponse) as exc:
            if isinstance(exc, UnexpectedResponse) and exc.status < 500:
                raise CommandFailed(f"{_QUERYING}: {exc}") from exc
            poll, delay_s = poll.failed(rng)
            print(
                f"Watch (type: {view.path}) errored: {exc}, retry in {delay_s:.1f}s",
                file=sys.stderr,
            )
            time.sleep(delay_s)
            continue
        if view.hashed_index:
            answer: Any = new_events(raw or [], after=poll.index)
            changed, poll = index != poll.index, Poll(index=index)
            changed = changed and bool(answer)
        else:
            answer = view.shape(raw)
            poll, changed = poll.answered(index)
            changed = changed and answer != seen
        if changed:
            seen = answer
            handle(answer, index)


def _run(args: list[str], answer: Any, index: int, *, shell: bool) -> None:
    data = json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    sys.stdout.flush()
    process = child.start(
        args, shell=shell, env={"CONSUL_INDEX": str(index)}, stdin=subprocess.PIPE
    )
    # A command that does not read its input is none the worse for it; communicate() ignores the closed pipe.
    process.communicate(data)
    problem = child.outcome(process.returncode)
    if problem:
        raise CommandFailed(f"Error executing handler: {problem}")


COMMAND = Command(
    "watch [options] [child...]",
    "Watches a view of the registry. With a command, runs it for the present state and after every change,\n"
    "with the state as JSON on its standard input and CONSUL_INDEX in its environment. Without one, prints the\n"
    "present state and ends.\n\n"
    "    $ waypost watch -type=key -key=config/app 'jq -r .Value | base64 -d'\n"
    "    $ waypost watch -type=service -service=web -passingonly=true ./reload.sh",
    settings=WatchFlags,
    action=_watch,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
