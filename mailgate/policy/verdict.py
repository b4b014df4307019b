"""A policy's opinion, and the decision that the chain makes of several.

A *verdict* is what one policy says; a *decision* is what the session acts on. Both are values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailgate.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Continue:
    """No objection. Notes are frozen dataclasses for later policies; those of `mailgate.auth.results` are recorded."""

    notes: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Accept:
    """No objection, and later policies of this stage need not be asked."""

    notes: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """Refused for good: a 5xx reply."""

    reply: Reply
    notes: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Defer:
    """Refused for now: a 4xx reply. A 421 also ends the session."""

    reply: Reply
    notes: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Taken, and kept in the folder Junk."""

    reason: str
    notes: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Discard:
    """Answered as if taken, and not kept; the record says so."""

    reason: str
    notes: tuple[object, ...] = ()


Verdict = Continue | Accept | Reject | Defer | Quarantine | Discard


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a message for one recipient only: it is kept in Junk, or not kept."""

    verdict: Quarantine | Discard
    policy: str


@dataclass(frozen=True, slots=True)
class Opinion:
    """A note that the chain makes for the record: what one policy said, where that was more than Continue."""

    stage: str  # the Stage's value
    policy: str
    fingerprint: str  # of the policy's configuration; "" for one that can't be configured
    verdict: str  # "accept", "reject", "defer", "quarantine" or "discard"
    reason: str  # the reply as one line, or the reason


@dataclass(frozen=True, slots=True)
class Decision:
    """What the chain answers for one request: the verdict that prevailed, whose it is, and all notes.

    `fates` are for some recipients only, by position in the transaction; the verdict is for all of them.
    """

    verdict: Verdict
    policy: str = ""  # the name of the policy whose verdict prevailed; "" where none objected
    notes: tuple[object, ...] = ()
    fates: tuple[tuple[int, Fate], ...] = ()
