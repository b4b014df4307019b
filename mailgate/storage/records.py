"""What is handed to storage: one accepted message, one refused transaction, one ended session.

Values only; the writers are in `mailgate.storage.mailbox` (before the reply) and `mailgate.storage.journal` (behind
it).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailgate.message import MessageContent
    from mailgate.policy.stage import SessionView, TransactionView


class Disposition(Enum):
    """What became of a transaction. The value is the word in the database."""

    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"  # accepted into Junk
    DISCARDED = "discarded"  # answered 250 and not kept, because a policy said so
    REFUSED = "refused"  # 5xx
    DEFERRED = "deferred"  # 4xx
    ABANDONED = "abandoned"  # RSET, a new greeting, or the connection ended before the end of data


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """A message that was accepted by every policy and now has to become ours.

    The writer stores `trace` (Return-Path, Received and whatever we add on top) apart from `content`, which is what the
    client sent but for the header fields that policies have removed or added. Deliveries follow from the `Resolution`
    note of each accepted recipient.
    """

    session: SessionView
    transaction: TransactionView
    content: MessageContent
    trace: bytes
    disposition: Disposition  # ACCEPTED or QUARANTINED
    reply: str  # what the client hears after COMMIT, as one line
    received_at: float  # seconds since the epoch
    policy: str = ""  # the policy that quarantined
    reason: str = ""
    received_sha256: bytes | None = None  # of the content as the client sent it, where that may be another


@dataclass(frozen=True, slots=True)
class Stored:
    """The message is ours. `transaction_id` is the first one's where this was a resend of an unconfirmed one."""

    transaction_id: int
    is_resend: bool = False


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """A transaction that brought no message: refused, deferred, discarded or abandoned."""

    session: SessionView
    transaction: TransactionView
    disposition: Disposition
    stage: str  # the Stage value at which it ended
    reply: str  # the deciding reply as one line, "" where the client left
    ended_at: float
    policy: str = ""
    reason: str = ""
    size_octets: int | None = None
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """An ended session."""

    session: SessionView
    ended_at: float
    ending: str  # "quit", "lost", "timeout", "limit", "refused", "shutdown", "tls-failed"
    transactions: int
    errors: int
    dialogue: str  # commands and replies, a line each, "C: " and "S: "; bounded; no credentials, no message data
    notes: tuple[object, ...] = ()  # what policies left that no transaction has
