"""When a recipient is tried again, when its sender is told that it waits, and when it is given up.

Pure: times are seconds since the epoch, and chance comes from outside.

The first pause is `first_seconds`; each is twice the one before, up to `longest_seconds`, a fifth more or less, so that
what failed together doesn't come back together. What is left at the end of the time is tried a last time just then.

Standards: RFC 5321 section 4.5.4.1 (retry after at least 30 minutes as a rule, sooner at first; give up after 4 to 5
days), RFC 2852 section 4 (deliver by), RFC 3461 section 6.3 (delay).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from random import Random

_SPREAD = 0.2


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long mail waits."""

    first_seconds: float = 300.0
    longest_seconds: float = 7200.0
    delay_seconds: float = 14_400.0  # then its sender is told
    give_up_seconds: float = 432_000.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What counts of a recipient that waits."""

    starts_at: float  # since when it may be tried
    is_delayed: bool = False  # its sender has been told, if that was wanted
    deliver_by: float | None = None
    deliver_by_mode: Literal["N", "R"] | None = None


class Overdue(Enum):
    """What is to be done for a recipient, whatever the next attempt may bring."""

    NOTHING = "nothing"
    DELAY = "delay"  # tell that it waits
    LATE = "late"  # tell that it wasn't delivered in the time that BY named; it is tried further
    EXPIRED = "expired"  # give it up


def ends_at(schedule: Schedule, waiting: Waiting) -> float:
    """When it is given up."""
    end = waiting.starts_at + schedule.give_up_seconds
    if waiting.deliver_by is not None and waiting.deliver_by_mode == "R":
        return min(end, waiting.deliver_by)
    return end


def next_attempt(schedule: Schedule, waiting: Waiting, attempts: int, now: float, random: Random) -> float | None:
    """When to try again, or None to give up (RFC 5321 section 4.5.4.1). `attempts` counts the one that just failed."""
    end = ends_at(schedule, waiting)
    if now >= end:
        return None
    pause = min(schedule.first_seconds * 2.0 ** min(max(attempts - 1, 0), 30), schedule.longest_seconds)
    return min(now + pause * random.uniform(1 - _SPREAD, 1 + _SPREAD), end)


def overdue(schedule: Schedule, waiting: Waiting, now: float) -> Overdue:
    """What is due for a recipient beside attempts."""
    if now >= ends_at(schedule, waiting):
        return Overdue.EXPIRED
    if waiting.deliver_by is not None and now >= waiting.deliver_by:
        return Overdue.LATE
    if not waiting.is_delayed and now >= waiting.starts_at + schedule.delay_seconds:
        return Overdue.DELAY
    return Overdue.NOTHING
