"""Sizes and times as people type them: "2GiB", "90m", "2026-11-23"."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from mailgate.ids import EPOCH_SECONDS

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmgt]?)(i?)(?:b|octets?)?", re.IGNORECASE)
_MAX_SIZE = (1 << 63) - 1

_SPAN_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"([0-9]{1,6})\s*([smhdw])", re.IGNORECASE)


def size_argument(value: str) -> int:
    """The octets of the size that was typed.

    @raises click.BadParameter: it is no size.
    """
    match = _SIZE.fullmatch(value.strip())
    if match is None or (match[3] and not match[2]):
        raise click.BadParameter(f"{value!r} is not a size; write it as 500MB or 2GiB")
    factor = (_BINARY_UNITS if match[3] else _UNITS)[match[2].lower()]
    octets = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if not 0 < octets <= _MAX_SIZE:
        raise click.BadParameter(f"{value!r} is out of range")
    return octets


def span_argument(value: str) -> timedelta:
    """The length of time that was typed.

    @raises click.BadParameter: it is none.
    """
    match = _SPAN.fullmatch(value.strip())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{value!r} is not a length of time; write it as 90m, 24h or 7d")
    try:
        return timedelta(**{_SPAN_UNITS[match[2].lower()]: int(match[1])})
    except OverflowError as error:
        raise click.BadParameter(f"{value!r} is out of range") from error


def time_argument(value: str) -> datetime:
    """The time that was typed: a span before now, or a date with or without a time (on this machine's clock).

    Never before the first id.

    @raises click.BadParameter: it is no time.
    """
    match = _SPAN.fullmatch(value.strip())
    now = datetime.now(UTC)
    try:
        if match is not None:
            found = now - timedelta(**{_SPAN_UNITS[match[2].lower()]: int(match[1])})
        else:
            found = datetime.fromisoformat(value.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is not a time; write it as 90m, 24h, 7d or 2026-11-23T14:00") from error
    if found > now:
        raise click.BadParameter(f"{value!r} is in the future")
    return max(found, datetime.fromtimestamp(EPOCH_SECONDS, UTC))
