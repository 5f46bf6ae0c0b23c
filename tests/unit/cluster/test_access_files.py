"""Files of access control: which belong together, what a server lacks, whose turn it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from waypost.access.pki.issue import Names
from waypost.access.pki.setup import InitSettings, Layout, initialise
from waypost.base.errors import Conflict, Malformed
from waypost.cluster.access_files import (
    NAMES,
    Offer,
    Refuse,
    Take,
    decide,
    facts_of,
    incompatible,
    lacking,
    read_files,
)
from waypost.cluster.protocol import outside
from waypost.cluster.records import AccessFacts, Phase, State
from waypost.cluster.sharing import may_go

NOW_S = 1_790_000_000.0
FOLDER = Path("/data/pki")


def made(folder: Path) -> dict[str, bytes]:
    """Return what `waypost init` makes for all servers."""
    settings = InitSettings(node="n", server="https://192.0.2.1:8501", names=Names.of(["n"]))
    initialise(settings, Layout(folder), now_s=NOW_S)
    return read_files(folder / "pki")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(tmp_path_factory.mktemp("other"))


def test_facts_tell_no_secret_and_need_all_files(files: dict[str, bytes]) -> None:
    facts = facts_of(files, folder=FOLDER)
    assert facts is not None
    assert facts.authority.startswith("sha256:")
    assert [len(one) for one in facts.token_keys] == [len("sha256:") + 64]
    for name in ("ca.crt", "ca.key", "sa.key", "sa.pub"):
        assert facts_of({k: v for k, v in files.items() if k != name}, folder=FOLDER) is None


def test_files_that_do_not_fit_together_are_named(
    files: dict[str, bytes], other: dict[str, bytes]
) -> None:
    with pytest.raises(Malformed, match=r"/data/pki/sa\.pub does not hold the public key of"):
        facts_of({**files, "sa.pub": other["sa.pub"]}, folder=FOLDER)
    with pytest.raises(Malformed, match=r"/data/pki/ca"):
        facts_of({**files, "ca.key": other["ca.key"]}, folder=FOLDER)


def test_what_is_lacking_is_written_secretly_and_the_sign_of_it_last(
    files: dict[str, bytes],
) -> None:
    writes = lacking(files, {}, folder=FOLDER)
    assert [one.path.name for one in writes] == [name for name in NAMES if name in files]
    assert writes[-1].path.name == "ca.crt"
    assert {one.path.name: one.mode for one in writes} == {
        "ca.key": 0o600,
        "sa.key": 0o600,
        "sa.pub": 0o644,
        "ca.crt": 0o644,
    }
    assert lacking(files, files, folder=FOLDER) == ()
    # A crash came between two of them.
    rest = lacking(files, {"ca.key": files["ca.key"]}, folder=FOLDER)
    assert [one.path.name for one in rest] == ["sa.key", "sa.pub", "ca.crt"]


def test_nothing_that_is_there_is_replaced(
    files: dict[str, bytes], other: dict[str, bytes]
) -> None:
    with pytest.raises(Conflict, match=r"/data/pki/ca\.crt is there with another content"):
        lacking(files, {"ca.crt": other["ca.crt"]}, folder=FOLDER)
    # Keys of tokens are exchanged one server after the other.
    mine = {**files, "sa.key": other["sa.key"], "sa.pub": other["sa.pub"] + files["sa.pub"]}
    assert lacking(files, mine, folder=FOLDER) == ()
    # The operator keeps the authority's key elsewhere.
    held = {name: data for name, data in files.items() if name != "ca.key"}
    assert lacking(files, held, folder=FOLDER) == ()


def facts(authority: str = "A", *keys: str, front_proxy: str = "") -> AccessFacts:
    return AccessFacts(authority=authority, token_keys=keys or ("k1",), front_proxy=front_proxy)


@pytest.mark.parametrize(
    ("one", "two", "answer"),
    [
        (facts("A", "k1"), facts("A", "k1"), False),
        (facts("A", "k1", "k2"), facts("A", "k2", "k3"), False),
        (facts("A", "k1"), facts("A", "k2"), True),
        (facts("A", "k1"), facts("B", "k1"), True),
    ],
)
def test_incompatible(one: AccessFacts, two: AccessFacts, *, answer: bool) -> None:
    assert incompatible(one, two) is incompatible(two, one) is answer


def offers(*given: AccessFacts) -> tuple[Offer, ...]:
    return tuple(Offer(f"id{n}", f"s{n}", one) for n, one in enumerate(given))


@pytest.mark.parametrize(
    ("own", "given", "wanted"),
    [
        pytest.param(None, (), None, id="nobody has any"),
        pytest.param(facts(), (), None, id="only this server has"),
        pytest.param(None, (facts(), facts()), Take(("id0", "id1")), id="taken from any"),
        pytest.param(facts(), (facts("A", "k1", "k2"),), None, id="keys are being exchanged"),
        pytest.param(
            facts(), (facts(front_proxy="F"),), Take(("id0",)), id="the authority of front proxies"
        ),
        pytest.param(facts(front_proxy="G"), (facts(front_proxy="F"),), None, id="has its own"),
    ],
)
def test_decide(
    own: AccessFacts | None, given: tuple[AccessFacts, ...], wanted: Take | None
) -> None:
    assert decide(own, offers(*given), authority="A", node="me") == wanted


@pytest.mark.parametrize(
    ("own", "given", "names"),
    [
        pytest.param(facts("A", "k1"), (facts("A", "k2"),), ("me", "s0", "k1", "k2"), id="two inits"),
        pytest.param(None, (facts("A", "k1"), facts("A", "k2")), ("s0", "s1", "k1", "k2"), id="seen by a third"),
        pytest.param(facts("B"), (), ("me", "B", "A"), id="an authority of its own"),
        pytest.param(facts("A"), (facts("B"),), ("s0", "B", "A"), id="another one's authority"),
    ],
)  # fmt: skip
def test_two_sets_change_nothing_and_are_both_named(
    own: AccessFacts | None, given: tuple[AccessFacts, ...], names: tuple[str, ...]
) -> None:
    found = decide(own, offers(*given), authority="A", node="me")
    assert isinstance(found, Refuse)
    for name in names:
        assert name in found.why


def test_that_the_cluster_is_protected_is_not_forgotten_by_who_falls_out_of_it() -> None:
    member = State(phase=Phase.MEMBER, is_protected=True)
    assert outside(member, joins_only=True).is_protected


@pytest.mark.parametrize(
    ("waiting", "missing", "waited_s", "answer"),
    [
        pytest.param({"c"}, set(), 0, True, id="the first of those who wait"),
        pytest.param({"a", "c"}, set(), 0, False, id="another one is first"),
        pytest.param(set(), set(), 0, True, id="the last"),
        pytest.param(set(), {"a"}, 14, False, id="one is perhaps starting again"),
        pytest.param(set(), {"a"}, 15, True, id="one is gone"),
        pytest.param({"a"}, {"c"}, 15, False, id="one is gone, another first"),
        pytest.param({"a"}, {"c"}, 60, True, id="nobody waits for ever"),
    ],
)
def test_may_go(waiting: set[str], missing: set[str], waited_s: float, *, answer: bool) -> None:
    assert may_go("b", waiting=waiting, missing=missing, waited_s=waited_s) is answer
