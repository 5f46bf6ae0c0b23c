"""Which versions of etcd are good, and what is wrong with the others. Source: etcd's changelogs and issues."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from waypost.base.errors import Unavailable

log = logging.getLogger(__name__)

Version = tuple[int, int, int]


class Verdict(msgspec.Struct, frozen=True):
    """What a version is worth, and what an operator should know about it."""

    grade: Literal["good", "flawed", "unsafe", "useless"]
    """flawed: it does its work. unsafe: used where somebody else runs it, never started by waypost itself. useless: its
    gateway cannot do what is needed."""
    text: str = ""


def parse_version(text: str) -> Version | None:
    """Return the numbers of `3.5.24` or `3.6.0-rc.1`; None when it is no version."""
    parts = text.partition("-")[0].partition("+")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def judge(version: Version) -> Verdict:
    """Return what a version is worth. Pure."""
    if version < (3, 4, 0):
        return Verdict("useless", "too old; waypost needs 3.4.23 or newer")
    if version < (3, 4, 23):
        return Verdict("unsafe", "too old: waypost is tested with 3.4.23 and newer")
    if (3, 5, 0) <= version < (3, 5, 3):
        text = "can lose data after a crash (etcd issue 13766); use 3.5.24 or newer"
        return Verdict("unsafe", text)
    if (3, 5, 3) <= version < (3, 5, 20):
        text = (
            "does not write the promotion of a learner where etcd 3.6 looks for it (etcd issue 19557); "
            "go to 3.5.24 or newer before an upgrade to 3.6"
        )
        return Verdict("flawed", text)
    if version < (3, 5, 0):
        return Verdict(
            "flawed", "of a series that gets no fixes any more; 3.5.24 or newer is better"
        )
    return Verdict("good")


def check_version(text: str, *, endpoint: str) -> None:
    """Warn of a version with known faults. Raises Unavailable for one whose gateway cannot do what is needed."""
    version = parse_version(text)
    if version is None:
        log.warning("etcd at %s has a version that cannot be read: %r", endpoint, text)
        return
    verdict = judge(version)
    if verdict.grade == "useless":
        msg = f"etcd {text} at {endpoint}: {verdict.text}"
        raise Unavailable(msg)
    if verdict.text:
        log.warning("etcd %s at %s: %s", text, endpoint, verdict.text)
