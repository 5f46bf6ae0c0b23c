"""Times by Go's reference layout (`2006-01-02T15:04:05Z07:00`). Source: Go package time, "Layout"."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_PART: Final = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|2006|002|01|02|03|04|05|06|15|1|_2(?!006)|2|3|4|5|PM|pm"
    r"|Z070000|Z07:00:00|Z0700|Z07:00|Z07|-070000|-07:00:00|-0700|-07:00|-07|[.,]0+(?![0-9])|[.,]9+(?![0-9])"
)


def format_utc(moment: datetime, layout: str) -> str:
    """Return the UTC time in a layout; what is no part of the reference time is copied."""
    return _PART.sub(lambda match: _part(moment, match.group()), layout)


def _part(moment: datetime, part: str) -> str:
    if part.startswith("Z07"):
        return "Z"
    if part.startswith("-07"):
        return re.sub("[0-9]", "0", part).replace("-", "+")
    if part[0] in ".,":
        digits = f"{moment.microsecond:06d}000"[: len(part) - 1]
        if part[1] == "9":
            digits = digits.rstrip("0")
            return part[0] + digits if digits else ""
        return part[0] + digits
    month = _MONTHS[moment.month - 1]
    day = _DAYS[moment.weekday()]
    hour = moment.hour % 12 or 12
    return {
        "January": month,
        "Jan": month[:3],
        "Monday": day,
        "Mon": day[:3],
        "MST": "UTC",
        "2006": f"{moment.year:04d}",
        "06": f"{moment.year % 100:02d}",
        "01": f"{moment.month:02d}",
        "1": str(moment.month),
        "02": f"{moment.day:02d}",
        "_2": f"{moment.day:2d}",
        "2": str(moment.day),
        "002": f"{moment.timetuple().tm_yday:03d}",
        "15": f"{moment.hour:02d}",
        "03": f"{hour:02d}",
        "3": str(hour),
        "04": f"{moment.minute:02d}",
        "4": str(moment.minute),
        "05": f"{moment.second:02d}",
        "5": str(moment.second),
        "PM": "PM" if moment.hour >= 12 else "AM",
        "pm": "pm" if moment.hour >= 12 else "am",
    }[part]
