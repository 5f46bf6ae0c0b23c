"""Messages of `coordination.k8s.io`."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Message, field, message

MESSAGES: Final[tuple[Message, ...]] = (
    message(
        "coordination.v1.Lease", "Something one holder has at a time, for a time.",
        field("spec", 2, "coordination.v1.LeaseSpec", "The holder and its time."),
        is_kind=True,
    ),
    message(
        "coordination.v1.LeaseSpec", "Who holds a lease, and for how long.",
        field("holderIdentity", 1, "string", "The holder.", pointer=True),
        field("leaseDurationSeconds", 2, "int32", "Seconds after renewTime at which others may take it.", pointer=True),
        field("acquireTime", 3, "microtime", "When it was taken.", pointer=True),
        field("renewTime", 4, "microtime", "When the holder last renewed it.", pointer=True),
        field("leaseTransitions", 5, "int32", "How often it changed hands.", pointer=True),
        field("strategy", 6, "string", "How candidates agree on a holder.", pointer=True),
        field("preferredHolder", 7, "string", "Who should hold it next.", pointer=True),
    ),
)  # fmt: skip
