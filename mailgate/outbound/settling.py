"""What an outcome means for a queue row: it goes, it waits, its sender is told. Values in, values out.

Pure but for chance, which comes from outside. What is written of it is said in `mailgate.storage.settlement`, how a
notice is made in `mailgate.outbound.dsn`.

Standards: RFC 5321 section 4.5.4.1 (retry, give up), RFC 3461 section 5.2 (who is told of success), section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailgate.outbound.notice import Action, RecipientStatus, success_action, wants
from mailgate.outbound.plan import RecipientOutcome, Result
from mailgate.outbound.schedule import Overdue, Waiting, ends_at, next_attempt, overdue
from mailgate.storage.settlement import Attempt, Ended, Kept, Lease

if TYPE_CHECKING:
    from random import Random

    from mailgate.outbound.plan import Delivery
    from mailgate.outbound.schedule import Schedule
    from mailgate.storage.queue import QueuedRow


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to be written of a row, and told."""

    row: Ended | Kept
    attempt: Attempt | None = None
    told: RecipientStatus | None = None  # None: nobody is


def decide(
    row: QueuedRow,
    lease: Lease,
    outcome: RecipientOutcome,
    delivery: Delivery,
    schedule: Schedule,
    random: Random,
    *,
    is_final: bool = False,
) -> Decided:
    """What an attempt means. `is_final` where the host keeps the recipient's mailbox (LMTP)."""
    now = delivery.ended_at
    host = (delivery.endpoint.host or delivery.endpoint.address) if outcome.is_remote else ""
    match outcome.result:
        case Result.DELIVERED:
            told = None
            if row.notify is not None:  # else nobody has asked
                action = success_action(relays_dsn=outcome.relays_dsn, is_final=is_final)
                if action is not None and wants(row.original_path, notify_of(row), action):
                    told = _status(row, action, outcome.status, outcome.reply, host, now)
            return Decided(Ended(lease, is_delivered=True), _attempt(row, outcome, delivery, "delivered"), told)
        case Result.FAILED:
            told = None
            if wants(row.original_path, notify_of(row), Action.FAILED):
                told = _status(row, Action.FAILED, outcome.status, outcome.reply, host, now)
            return Decided(Ended(lease, is_delivered=False), _attempt(row, outcome, delivery, "failed"), told)
    due_at = next_attempt(schedule, waiting_of(row), row.attempts + 1, now, random)
    if due_at is not None:
        kept = Kept(lease, due_at, outcome.status, outcome.reply, is_attempt=True)
        return Decided(kept, _attempt(row, outcome, delivery, "deferred"))
    told = None
    if wants(row.original_path, notify_of(row), Action.FAILED):
        told = _status(row, Action.FAILED, outcome.status, outcome.reply, host, now, is_expired=True)
    return Decided(Ended(lease, is_delivered=False), _attempt(row, outcome, delivery, "expired"), told)


def decide_overdue(row: QueuedRow, lease: Lease, schedule: Schedule, now: float, reason: str | None) -> Decided:
    """What the time means that a row has waited. `reason` is why its destination is left alone, where it is."""
    waiting = waiting_of(row)
    reply = row.last_reply or reason or "It has not been tried yet"
    status = row.last_status or "4.4.1"
    last_attempt_at = row.last_attempt_at
    match overdue(schedule, waiting, now):
        case Overdue.NOTHING:
            return Decided(Kept(lease))
        case Overdue.EXPIRED:
            told = None
            if wants(row.original_path, notify_of(row), Action.FAILED):
                told = _status(row, Action.FAILED, status, reply, "", last_attempt_at, is_expired=True)
            attempt = Attempt(row.message_id, row.id, row.recipient, now, 0.0, "expired", status, reply)
            return Decided(Ended(lease, is_delivered=False), attempt, told)
        case due:
            told = None
            if wants(row.original_path, notify_of(row), Action.DELAYED):
                told = _status(
                    row,
                    Action.DELAYED,
                    status,
                    reply,
                    "",
                    last_attempt_at,
                    retry_until=ends_at(schedule, waiting),
                )
            is_late = due is Overdue.LATE
            return Decided(Kept(lease, is_delayed=not is_late, is_deliver_by_over=is_late), None, told)


def decide_done(row: QueuedRow, lease: Lease, now: float) -> Decided:
    """What is told of a recipient that isn't to be served any more: it was, with its message, or was given up."""
    attempt: Attempt | None = None
    reply = ""
    match row.done:
        case "returned":
            action, status = Action.FAILED, "5.0.0"
            reply = row.last_reply or "Given up"
            attempt = Attempt(row.message_id, row.id, row.recipient, now, 0.0, "failed", status, reply)
        case "expanded":
            action, status = Action.EXPANDED, "2.1.5"
        case _:
            action, status = Action.DELIVERED, "2.1.5"
    told = None
    if wants(row.original_path, notify_of(row), action):
        told = _status(row, action, status, reply, "", now)
    return Decided(Ended(lease, is_delivered=action is not Action.FAILED), attempt, told)


def waiting_of(row: QueuedRow) -> Waiting:
    """What counts for the schedule."""
    return Waiting(row.starts_at, row.is_delayed, row.deliver_by, row.deliver_by_mode)


def notify_of(row: QueuedRow) -> frozenset[str] | None:
    """The NOTIFY parameter."""
    return None if row.notify is None else frozenset(row.notify.split())


def _status(
    row: QueuedRow,
    action: Action,
    status: str,
    reply: str,
    host: str,
    last_attempt_at: float | None,
    *,
    retry_until: float | None = None,
    is_expired: bool = False,
) -> RecipientStatus:
    return RecipientStatus(
        row.recipient, action, status, reply, host, row.orcpt, last_attempt_at, retry_until, is_expired
    )


def _attempt(row: QueuedRow, outcome: RecipientOutcome, delivery: Delivery, result: str) -> Attempt:
    endpoint, tls = delivery.endpoint, delivery.tls
    has_host = bool(endpoint.address)
    return Attempt(
        row.message_id,
        row.id,
        row.recipient,
        delivery.started_at,
        max(delivery.ended_at - delivery.started_at, 0.0),
        result,
        outcome.status,
        outcome.reply,
        outcome.is_remote,
        outcome.is_ambiguous,
        endpoint.host if has_host else None,
        endpoint.address if has_host else None,
        endpoint.port if has_host else None,
        None if tls is None else tls.version,
        None if tls is None else tls.cipher,
        None if tls is None else tls.is_verified,
        None if tls is None else tls.source,
    )
