"""Errors of the tree → HTTP status, in one table.

Source: Consul answers 500 for what its cluster refuses and for a missing leader, with the bare text.
"""

from __future__ import annotations

from waypost.base import errors
from waypost.surfaces.http.message import Response, text_response

STATUS: dict[type[errors.WaypostError], int] = {
    errors.WaypostError: 500,
    errors.Malformed: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.Rejected: 500,
    errors.Unavailable: 500,
}
"""The nearest ancestor in the table decides, so a new subclass needs no line here."""


def status_of(error: errors.WaypostError) -> int:
    """Return the status of the nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(error: errors.WaypostError) -> Response:
    """Return the error's text with its status."""
    return text_response(status_of(error), str(error))
