"""What a member keeps on disk about itself. Written whole and synced, or not at all."""

from __future__ import annotations

from pathlib import Path

import msgspec

from waypost.access.pki.files import SECRET_MODE, FileWrite, ensure_directory, read, write_all
from waypost.base.errors import Malformed
from waypost.cluster.records import VERSION, Phase, State
from waypost.cluster.settings import ClusterSettings


class _Identity(msgspec.Struct, frozen=True):
    id: str


class Glance(msgspec.Struct, frozen=True):
    """What others than the agent of this directory want to know of its state."""

    is_server: bool = False
    phase: Phase = Phase.NONE
    is_protected: bool = False


class StateFiles:
    """`id.json` and `cluster.json` below `DATA/cluster`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._identity = directory / "id.json"
        self._state = directory / "cluster.json"

    def claim(self, settings: ClusterSettings) -> None:
        """Tie the directory to this node's id at the first start. Raises Malformed when it is another node's."""
        ensure_directory(self._directory)
        data = read(self._identity)
        if data is None:
            made = msgspec.json.encode(_Identity(settings.node_id))
            write_all([FileWrite(self._identity, made + b"\n", SECRET_MODE)])
            return
        try:
            found = msgspec.json.decode(data, type=_Identity).id
        except (msgspec.ValidationError, msgspec.DecodeError) as exc:
            raise Malformed(f"{self._identity}: {exc}") from exc
        if found != settings.node_id:
            raise Malformed(
                f"{self._directory} belongs to the node id {found}, but this node's id is {settings.node_id}: "
                "restore the file node-id, or move the directory away to join as a new machine"
            )

    def load(self, *, is_server: bool) -> State:
        """Return the state, a new one at the first start.

        Raises Malformed when it cannot be read, is of a later version, or of a machine in the other role.
        """
        data = read(self._state)
        if data is None:
            return State(is_server=is_server)
        try:
            state = msgspec.json.decode(data, type=State)
        except (msgspec.ValidationError, msgspec.DecodeError) as exc:
            raise Malformed(f"{self._state}: {exc}") from exc
        if state.version > VERSION:
            raise Malformed(
                f"{self._state}: written by a later version of waypost ({state.version})"
            )
        if state.is_server != is_server:
            was, now = ("server", "client") if state.is_server else ("client", "server")
            raise Malformed(
                f"{self._directory}: this machine was a {was} of its cluster and is started as a {now}; "
                f"let it leave first, or move the directory away"
            )
        return state

    def glance(self) -> Glance:
        """Return how the machine of this directory stands; nothing is claimed or judged. Raises Malformed."""
        data = read(self._state)
        if data is None:
            return Glance()
        try:
            return msgspec.json.decode(data, type=Glance)
        except (msgspec.ValidationError, msgspec.DecodeError) as exc:
            raise Malformed(f"{self._state}: {exc}") from exc

    def save(self, state: State) -> None:
        """Write the state; on return it is on disk. Raises Unavailable: then the old one is."""
        data = msgspec.json.format(msgspec.json.encode(state), indent=2)
        write_all([FileWrite(self._state, data + b"\n", SECRET_MODE)])
