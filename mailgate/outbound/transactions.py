"""Queue rows as transactions: one for the recipients of a message that share a route and all options.

Pure.

Standards: RFC 5321 section 4.5.4.1 (one copy to many recipients of a host), section 4.5.3.1.8 (100 recipients).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.outbound.plan import OutgoingMessage, OutgoingRecipient
from mailgate.outbound.settling import notify_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mailgate.outbound.plan import OutgoingContent
    from mailgate.storage.queue import QueuedRow

MAX_RECIPIENTS = 100  # every host takes as many


def transactions_of(
    rows: Iterable[QueuedRow], content_of: Callable[[QueuedRow], OutgoingContent]
) -> list[OutgoingMessage]:
    """The rows of one route, in order of the first of each."""
    groups: dict[tuple[object, ...], list[QueuedRow]] = {}
    for row in rows:
        shared = (row.message_id, row.reverse_path, row.is_smtputf8, row.ret, row.envid, row.deliver_by)
        groups.setdefault(shared, []).append(row)
    return [
        _message(group[start : start + MAX_RECIPIENTS], content_of(group[0]))
        for group in groups.values()
        for start in range(0, len(group), MAX_RECIPIENTS)
    ]


def _message(rows: Sequence[QueuedRow], content: OutgoingContent) -> OutgoingMessage:
    first = rows[0]
    return OutgoingMessage(
        first.message_id,
        first.reverse_path,
        tuple([OutgoingRecipient(row.id, row.recipient, notify_of(row), row.orcpt) for row in rows]),
        content,
        first.is_eight_bit,
        first.is_smtputf8,
        first.ret,
        first.envid,
        first.requires_tls,
        first.tls_is_optional,
        first.deliver_by,
        first.deliver_by_mode or "",
    )
