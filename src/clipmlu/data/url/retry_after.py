"""The pause that a server asks for."""

from __future__ import annotations

import datetime
import email.utils


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a header ``Retry-After``, which is a number or a date; None if it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
