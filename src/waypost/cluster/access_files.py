"""The files of access control that every server of a cluster has: which they are, whether two sets belong together.

    pki/ca.crt, ca.key                        the cluster's authority
    pki/sa.key, sa.pub                        what signs and verifies service-account tokens
    pki/front-proxy-ca.crt, front-proxy-ca.key   whom a front proxy is believed by, if there is one

`waypost init` makes them on one server. Certificates of its own each server makes for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from waypost.access.authn.jws import load_keys
from waypost.access.pki.files import PUBLIC_MODE, SECRET_MODE, FileWrite, read
from waypost.access.pki.issue import ca_pin, load_authority, load_certificate
from waypost.access.pki.keys import load_private_key, spki_der
from waypost.base.errors import Conflict, Malformed
from waypost.cluster.records import AccessFacts

NAMES: Final = (
    "ca.key",
    "sa.key",
    "sa.pub",
    "front-proxy-ca.key",
    "front-proxy-ca.crt",
    "ca.crt",
)
"""In the order in which they are put into their places: who finds the last one finds the others."""
_PUBLIC: Final = ("ca.crt", "sa.pub", "front-proxy-ca.crt")

Files = Mapping[str, bytes]
"""By name in the pki directory."""


def read_files(folder: Path) -> dict[str, bytes]:
    """Return those of the files that are there. Raises Malformed for one that cannot be read."""
    found = {name: read(folder / name) for name in NAMES}
    return {name: data for name, data in found.items() if data is not None}


def facts_of(files: Files, *, folder: Path) -> AccessFacts | None:
    """Return what is told others of these files, None while they are not complete.

    Raises Malformed, with the path, for files that cannot be used or do not fit together.
    """
    if not {"ca.crt", "ca.key", "sa.key", "sa.pub"} <= files.keys():
        return None
    name = str(folder / "ca.crt")
    authority = load_authority(
        files["ca.crt"], files["ca.key"], name=name, key_name=str(folder / "ca.key")
    )
    keys = load_keys(files["sa.pub"], name=str(folder / "sa.pub"))
    signing = load_private_key(files["sa.key"], name=str(folder / "sa.key"))
    if spki_der(signing.public_key()) not in {spki_der(one) for one in keys}:
        raise Malformed(f"{folder / 'sa.pub'} does not hold the public key of {folder / 'sa.key'}")
    front_proxy = files.get("front-proxy-ca.crt")
    return AccessFacts(
        authority=authority.pin,
        token_keys=tuple(f"sha256:{hashlib.sha256(spki_der(one)).hexdigest()}" for one in keys),
        front_proxy=ca_pin(load_certificate(front_proxy, name=str(folder / "front-proxy-ca.crt")))
        if front_proxy is not None
        else "",
    )


def lacking(offered: Files, present: Files, *, folder: Path) -> tuple[FileWrite, ...]:
    """Return the writes that give a server what it lacks, in their order. Nothing that is there is ever replaced.

    A key of the authority is not given to a server that has the certificate without it: the operator took it away. Raises
    Conflict for a file with another content, unless it is `sa.key` or `sa.pub`: keys of tokens are exchanged one server
    after the other, and which of them belong together `incompatible` says.
    """
    writes = []
    for name in NAMES:
        data = offered.get(name)
        if data is None or present.get(name) == data:
            continue
        if name in present:
            if name in ("sa.key", "sa.pub"):
                continue
            raise Conflict(f"{folder / name} is there with another content, and is not replaced")
        if name == "ca.key" and "ca.crt" in present:
            continue
        mode = PUBLIC_MODE if name in _PUBLIC else SECRET_MODE
        writes.append(FileWrite(folder / name, data, mode))
    return tuple(writes)


def incompatible(one: AccessFacts, other: AccessFacts) -> bool:
    """Tell whether two sets are of two `waypost init`: another authority, or no common key for tokens."""
    return one.authority != other.authority or not set(one.token_keys) & set(other.token_keys)


class Take(msgspec.Struct, frozen=True):
    """Get what is missing here from one of these servers."""

    server_ids: tuple[str, ...]


class Refuse(msgspec.Struct, frozen=True):
    """Two sets that do not belong together: nothing is changed anywhere until somebody decides."""

    why: str


class Offer(msgspec.Struct, frozen=True):
    """What another server says that it has."""

    server_id: str
    node: str
    facts: AccessFacts


def decide(
    own: AccessFacts | None, offers: tuple[Offer, ...], *, authority: str, node: str
) -> Take | Refuse | None:
    """Return what a server called `node` does, None for nothing. `authority` is the pin of the cluster's."""
    sets = ([Offer("", node, own)] if own is not None else []) + list(offers)
    for one in sets:
        if one.facts.authority != authority:
            return Refuse(
                f"the authority in the pki directory of {one.node} is {one.facts.authority}, the cluster's is {authority}: "
                f"move that directory away on {one.node}"
            )
    for one in sets[1:]:
        first = sets[0]
        if incompatible(first.facts, one.facts):
            return Refuse(
                f"{first.node} and {one.node} have different keys for tokens, made by two runs of waypost init: "
                f"{first.facts.token_keys[0]} and {one.facts.token_keys[0]}; neither is changed. Move the pki directory of one "
                "of them away and start it again: it takes the other's"
            )
    found = [
        one.server_id
        for one in offers
        if own is None or (one.facts.front_proxy and not own.front_proxy)
    ]
    return Take(tuple(found)) if found else None
