"""Which versions of etcd are good, and what is wrong with the others."""

from __future__ import annotations

import logging

from waypost.base.errors import Unavailable

log = logging.getLogger(__name__)

Version = tuple[int, int, int]


def parse_version(text: str) -> Version | None:
    """Return the numbers of `3.5.24` or `3.6.0-rc.1`; None when it is no version."""
    parts = text.partition("-")[0].partition("+")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def complaint(version: Version) -> str | None:
    """Return what an operator should know about this version, or None. Pure."""
    if (3, 5, 1) <= version <= (3, 5, 19):
        return (
            "3.5.1 to 3.5.19 do not keep the promotion of a learner in the data that 3.6 reads, so a later upgrade "
            "fails; use 3.5.24 or newer"
        )
    if version < (3, 4, 23):
        return "waypost is tested with 3.4.23 and newer"
    return None


def check_version(text: str, *, endpoint: str) -> None:
    """Warn of a version with known faults. Raises Unavailable for one whose gateway cannot do what is needed."""
    version = parse_version(text)
    if version is None:
        log.warning("etcd at %s has a version that cannot be read: %r", endpoint, text)
        return
    if version < (3, 4, 0):
        msg = f"etcd at {endpoint} is {text}; waypost needs 3.4.23 or newer"
        raise Unavailable(msg)
    if (reason := complaint(version)) is not None:
        log.warning("etcd at %s is %s: %s", endpoint, text, reason)
