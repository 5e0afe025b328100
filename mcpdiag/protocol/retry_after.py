"""The `Retry-After` header of RFC 9110, 10.2.3: seconds, or a date."""

from __future__ import annotations

from email.utils import mktime_tz, parsedate_tz

_DIGITS = 9  # 30 years; more is no number that anybody means


def retry_after(value: bytes | None, now: float) -> float:
    """Seconds to wait; 0 if the header is missing, malformed or in the past.

    Args:
        value: as it came.
        now: the time of day, in seconds since 1970 (`time.time()`).
    """
    text = (value or b"").strip()
    if text.isdigit():
        return float(text) if len(text) <= _DIGITS else 0.0
    date = parsedate_tz(text.decode("latin-1")) if text else None
    if date is None:
        return 0.0
    try:
        return max(0.0, mktime_tz(date) - now)
    except (ValueError, OverflowError):
        return 0.0
