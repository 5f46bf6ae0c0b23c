"""What every read of the Consul API has in common: its parameters, waiting, headers, and the answers kept as bytes.

A family of endpoints describes a read as a `Question`: what it depends on, how the domain answers it, how that looks as
JSON. The `Reader` does the rest. Equal questions at equal indexes are encoded once; all woken waiters and later
requests get the same bytes. Nothing is kept across actors: a kept answer belongs to one identity, and the gate is asked
again before it is given out.

Source: Consul HTTP API, consistency modes and blocking queries; recorded answers of Consul 1.8.7.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from waypost.access.actor import Actor
from waypost.access.gate import Attributes, Gate
from waypost.base.clock import Clock
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed, NoLeader, Rejected, Unavailable
from waypost.domain.blocking import DEFAULT_WAIT_S, MAX_WAIT_S, wait_limit, wait_past
from waypost.state.state import State
from waypost.state.topics import Topic
from waypost.surfaces.http.cache import AnswerCache
from waypost.surfaces.http.message import (
    Answer,
    Head,
    Peer,
    Rendered,
    Request,
    Response,
    text_response,
)
from waypost.wire.consul.encode import dump

T = TypeVar("T")
Headers = tuple[tuple[str, str], ...]

JSON: Final = "application/json"
FAILED_META: Final[Headers] = (
    ("X-Consul-Index", "1"),
    ("X-Consul-Knownleader", "false"),
    ("X-Consul-Lastcontact", "0"),
)
"""What Consul sends with an error of a read that its servers refused."""

FILTERED: Final = ("X-Consul-Results-Filtered-By-ACLs", "true")
_SEEN_MAX: Final = 4096
_FOREVER_S: Final = 1e9
_ALONE: Final = ("true", "0")
"""Whether there is a leader and the age of the last contact, for an agent with a store of its own."""
_NO_LEADER: Final = "No cluster leader"
_NO_DATACENTER: Final = "No path to datacenter"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can choose about this surface."""

    indent: bool = False
    """JSON is indented without being asked; Consul does so in `-dev` mode."""
    strict_json: bool = True
    """Unknown fields of a request body are an error, as in Consul 1.8; else they are ignored."""
    script_checks: bool = False
    """Clients may register checks that run commands (`enable_script_checks`)."""
    version: str = "1.8.7"
    """The version of Consul whose API this is; clients decide by it what they may send."""
    default_wait_s: float = DEFAULT_WAIT_S
    max_wait_s: float = MAX_WAIT_S
    max_value_bytes: int = 524_288
    """Consul's `kv_max_value_size`."""
    max_txn_bytes: int = 524_288
    """Consul's `txn_max_req_len`."""


class Options(msgspec.Struct, frozen=True):
    """The parameters that all reads share."""

    index: int = 0
    wait_s: float = 0.0
    mode: str = "leader"
    is_cached: bool = False


_USUAL: Final = Options()


def parse_unsigned(text: str) -> int:
    """Return an uint64 written in decimal. Raises Malformed in the words of Go's strconv."""
    if not (text.isascii() and text.isdigit()):
        msg = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise Malformed(msg)
    value = int(text) if len(text) <= 4000 else 2**64
    if value >= 2**64:
        msg = f'strconv.ParseUint: parsing "{text}": value out of range'
        raise Malformed(msg)
    return value


def parse_options(request: Request) -> Options:
    """Return the shared parameters of a request. Raises Malformed in Consul's words."""
    query = request.query
    cache_control = request.headers.get("cache-control")
    if not query and cache_control is None:
        return _USUAL
    mode = _mode(request)
    if cache_control:
        _check_cache_control(cache_control)
    index, wait_s = 0, 0.0
    wait = query.get("wait")
    if wait:
        try:
            wait_s = parse_s(wait)
        except Malformed:
            msg = "Invalid wait time"
            raise Malformed(msg) from None
    if query.get("index"):
        try:
            index = parse_unsigned(query.get("index"))
        except Malformed:
            msg = "Invalid index"
            raise Malformed(msg) from None
    return Options(index, wait_s, mode, "cached" in query)


def _mode(request: Request) -> str:
    query = request.query
    stale, consistent = "stale" in query, "consistent" in query
    max_stale = query.get("max_stale")
    if max_stale:
        try:
            parse_s(max_stale)
        except Malformed:
            msg = f'Invalid max_stale value "{max_stale}"'
            raise Malformed(msg) from None
        stale = stale or "leader" not in query
    if stale and consistent:
        msg = "Cannot specify ?stale with ?consistent, conflicting semantics."
        raise Malformed(msg)
    if "cached" in query and consistent:
        msg = "Cannot specify ?cached with ?consistent, conflicting semantics."
        raise Malformed(msg)
    return "stale" if stale else "consistent" if consistent else "leader"


def _check_cache_control(value: str) -> None:
    for part in value.split(","):
        name, _, seconds = part.strip().partition("=")
        if name in ("max-age", "stale-if-error") and not seconds.isdigit():
            msg = "Invalid Cache-Control header."
            raise Malformed(msg)


class Body(NamedTuple):
    """An answer's body where it is not plain JSON with status 200."""

    status: int = 200
    data: bytes = b""
    content_type: str = ""
    headers: Headers = ()


MISSING: Final = Body(status=404)


class Question(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One read.

    `read` asks the domain, which asks the gate; `encode` turns what it found into JSON's values or a Body.
    `asked` is what the gate is asked again for a kept answer; without it the
    answer is not kept.
    """

    topics: tuple[Topic, ...]
    read: Callable[[Actor], T]
    encode: Callable[[T], Any]
    asked: Attributes | None = None
    also: tuple[Attributes, ...] = ()
    """What the gate is asked besides."""
    shows_consistency: bool = True
    """Send `X-Consul-Effective-Consistency`."""
    meta_on_error: bool = True
    """Errors of this read carry index headers, as in most of Consul's families."""
    caches: bool = False
    """`?cached` means something here."""


class _Proven(Rendered):
    """A kept answer with what the gate has to allow."""

    __slots__ = ("asked",)

    def __init__(self, response: Response, *, asked: tuple[Attributes, ...]) -> None:
        super().__init__(response)
        self.asked = asked


class _Proof:
    """What a kept answer was made from: it holds while its topics have this index."""

    __slots__ = ("index", "moment", "topics")

    def __init__(self, topics: tuple[Topic, ...], *, index: int, moment: int) -> None:
        self.topics = topics
        self.index = index
        self.moment = moment
        """A moment of the view at which it is known to hold, so that a quiet view is asked nothing."""


class Reader:
    """Answers questions; one a surface."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        settings: Settings,
        datacenter: str,
        clock: Clock,
        rng: random.Random,
        identify: Callable[[Peer], Actor],
        confirms: bool = False,
        knows_leader: Callable[[], bool] = lambda: True,
        last_contact_s: Callable[[], float] = lambda: 0.0,
        other_datacenters: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`confirms`: the view may be behind acknowledged writes of others, as in a cluster.

        `last_contact_s`: the seconds since this agent last heard of the leader.
        """
        self._last_contact_s = last_contact_s
        self._other_datacenters = other_datacenters
        self.settings = settings
        self.datacenter = datacenter
        self._state = state
        self._gate = gate
        self.now = clock.now
        self._rng = rng
        self._identify = identify
        self._confirms = confirms
        self._knows_leader = knows_leader
        self._kept: AnswerCache[_Proof] = AnswerCache(self._still_holds)
        self._seen: dict[bytes, None] = {}

    # -- kept answers --------------------------------------------------------------------------------------------------

    def fast(self, head: Head, peer: Peer) -> Rendered | None:
        """Return the kept answer to a plain anonymous request, if it still holds and the gate allows it."""
        if not head.is_plain or not peer.is_anonymous:
            return None
        return self.kept(head, self._identify(peer))

    def kept(self, head: Head, actor: Actor) -> Rendered | None:
        """Return the kept answer to `actor`'s simple request, if it still holds and the gate allows it."""
        if self._confirms:
            return None
        kept = self._kept.get((actor.user, actor.groups, head.target, _ALONE))
        if isinstance(kept, _Proven) and self._allows(actor, kept.asked):
            return kept
        return None

    def _allows(self, actor: Actor, asked: tuple[Attributes, ...]) -> bool:
        return all(self._gate.allows(actor, one) for one in asked)

    def _still_holds(self, proof: _Proof) -> bool:
        moment = self._state.view.moment
        if proof.moment == moment:
            return True
        if self._index(proof.topics) != proof.index:
            return False
        proof.moment = moment
        return True

    def _index(self, topics: tuple[Topic, ...]) -> int:
        view = self._state.view
        if len(topics) == 1:
            return view.index(topics[0])
        return max(view.index(topic) for topic in topics)

    # -- reading -------------------------------------------------------------------------------------------------------

    def answer(
        self, request: Request, actor: Actor, question: Question[Any]
    ) -> Answer | Awaitable[Answer]:
        """Answer a question, at once when that is possible. Raises Malformed, Forbidden, Unavailable."""
        options = parse_options(request)
        wrong = self.other_datacenter(request)
        if wrong:
            return text_response(500, wrong, headers=FAILED_META if question.meta_on_error else ())
        waits = options.index > 0
        if waits or (self._confirms and options.mode != "stale"):
            request.may_interrupt = waits
            return self._later(request, actor, question, options)
        return self._now(request, actor, question, options)

    def datacenters(self) -> list[str]:
        """Return the names of all known datacenters, this one first."""
        return [self.datacenter, *self._other_datacenters()]

    def other_datacenter(self, request: Request) -> str:
        """Return the error for a request to a datacenter that is not ours, else an empty text."""
        wanted = request.query.get("dc")
        return _NO_DATACENTER if wanted and wanted.lower() != self.datacenter.lower() else ""

    def _now(
        self, request: Request, actor: Actor, question: Question[Any], options: Options
    ) -> Answer:
        key = None
        if question.asked is not None and not options.is_cached:
            target = _without_waiting(request.head, options)
            key = (actor.user, actor.groups, target, self._contact(options.mode))
            kept = self._kept.get(key)
            if isinstance(kept, _Proven) and self._allows(actor, kept.asked):
                return kept
        try:
            found = question.read(actor)
            response = self._respond(request, question, options, found)
        except (Rejected, Unavailable) as error:
            meta = FAILED_META if question.meta_on_error else ()
            return text_response(500, str(error), headers=meta)
        asked = () if question.asked is None else (question.asked, *question.also)
        if not self._allows(actor, asked):
            # Read although not allowed as a whole: somebody who sees only his part. It is not kept, because with a
            # change of the policy it is another part.
            return msgspec.structs.replace(response, headers=(*response.headers, FILTERED))
        if key is None or question.asked is None:
            return response
        rendered = _Proven(response, asked=asked)
        proof = _Proof(
            question.topics,
            index=self._index(question.topics),
            moment=self._state.view.moment,
        )
        self._kept.put(key, rendered, validity=proof)
        return rendered

    async def _later(
        self, request: Request, actor: Actor, question: Question[Any], options: Options
    ) -> Answer:
        if self._confirms and options.mode != "stale":
            try:
                await self._state.confirm()
            except Unavailable as error:
                meta = FAILED_META if question.meta_on_error else ()
                text = _NO_LEADER if isinstance(error, NoLeader) else str(error)
                return text_response(500, text, headers=meta)
        if options.index:
            # Asked once before waiting, so that nobody waits for what he may not see.
            try:
                question.read(actor)
            except Rejected as error:
                meta = FAILED_META if question.meta_on_error else ()
                return text_response(500, str(error), headers=meta)
            await wait_past(
                self._state.view,
                question.topics,
                index=options.index,
                at_most_s=self.wait_limit(options),
                now=self.now,
            )
        return self._now(request, actor, question, options)

    def wait_limit(self, options: Options) -> float:
        """Return how long a request may wait, in seconds."""
        return wait_limit(
            options.wait_s,
            rng=self._rng,
            default_s=self.settings.default_wait_s,
            max_s=self.settings.max_wait_s,
        )

    def _respond(
        self, request: Request, question: Question[Any], options: Options, found: Any
    ) -> Response:
        value = question.encode(found)
        headers = self.meta(self._index(question.topics), mode=options.mode)
        if question.shows_consistency:
            headers += (("X-Consul-Effective-Consistency", options.mode),)
        if options.is_cached and question.caches:
            headers += self._cache_headers(request)
        if isinstance(value, Body):
            return Response(
                status=value.status,
                body=value.data,
                content_type=value.content_type,
                headers=headers + value.headers,
            )
        return self.json(request, value, headers=headers)

    def meta(self, index: int, *, mode: str = "leader") -> Headers:
        """Return the index headers of a read."""
        knows_leader, last_contact = self._contact(mode)
        return (
            ("X-Consul-Index", str(index)),
            ("X-Consul-Knownleader", knows_leader),
            ("X-Consul-Lastcontact", last_contact),
        )

    def _contact(self, mode: str) -> tuple[str, str]:
        """Return whether there is a leader, and the milliseconds since this agent heard of it.

        An answer that was confirmed is as new as the leader's own; an agent that never heard of one says 0, as Consul
        does. Tenths of a second are enough, so that equal answers can be kept for as long.
        """
        if not self._confirms:
            return _ALONE
        knows_leader = "true" if self._knows_leader() else "false"
        if mode != "stale":
            return knows_leader, "0"
        age_s = self._last_contact_s()
        return knows_leader, str(int(age_s * 10) * 100 if age_s < _FOREVER_S else 0)

    def _cache_headers(self, request: Request) -> Headers:
        """Return what a client of `?cached` expects. Everything here is in memory and never old."""
        key = _without_waiting(request.head, Options(index=1))
        if key in self._seen:
            return (("X-Cache", "HIT"), ("Age", "0"))
        if len(self._seen) >= _SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = None
        return (("X-Cache", "MISS"),)

    def json(
        self, request: Request, value: Any, *, status: int = 200, headers: Headers = ()
    ) -> Response:
        """Return `value` as JSON in the form that this agent, or the request, wants."""
        indent = self.settings.indent or "pretty" in request.query
        return Response(
            status=status, body=dump(value, indent=indent), content_type=JSON, headers=headers
        )


def _without_waiting(head: Head, options: Options) -> bytes:
    """Return the target without what differs between a plain read and one that waits for the same."""
    if not options.index and not options.wait_s:
        return head.target
    pieces = head.raw_query.replace(";", "&").split("&")
    kept = "&".join(p for p in pieces if p.partition("=")[0] not in ("index", "wait"))
    return (head.raw_path + ("?" + kept if kept else "")).encode("latin-1")
