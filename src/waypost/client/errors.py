"""What can go wrong between a client and an agent."""

from __future__ import annotations

from waypost.base.errors import Malformed, Rejected, Unavailable


class Unreachable(Unavailable):
    """No answer came; the text is the one Consul's tools print (`Get "URL": dial tcp …: connect: …`)."""

    code = "unreachable"


class UnexpectedResponse(Rejected):
    """The agent answered with a status that the call does not expect. `body` is its text."""

    code = "unexpected_response"

    def __init__(self, *, status: int, body: str) -> None:
        super().__init__(f"Unexpected response code: {status} ({body})")
        self.status = status
        self.body = body


class UnreadableResponse(Malformed):
    """The answer is not what the API promises: not JSON, or of another shape."""

    code = "unreadable_response"
