"""The transaction of a session that is open: what has been said since MAIL, while it grows.

State without rules: `mailgate.smtp.session` alone changes it.

Standards: RFC 5321 section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.envelope import ForwardDestination, Resolution
from mailgate.policy.stage import TransactionView
from mailgate.policy.verdict import Discard, Quarantine

if TYPE_CHECKING:
    from mailgate.envelope import ReversePath
    from mailgate.message import MessageContent
    from mailgate.policy.stage import RecipientView
    from mailgate.policy.verdict import Fate
    from mailgate.smtp.framing import ChunkFramer, DataFramer


class Transaction:
    """The transaction that is open, while it grows."""

    __slots__ = (
        "accepted",
        "content",
        "discarded_by",
        "framer",
        "id",
        "notes",
        "quarantined_by",
        "recipients",
        "reverse_path",
        "started_at",
    )

    def __init__(self, identifier: int, started_at: float, reverse_path: ReversePath) -> None:
        self.id = identifier
        self.started_at = started_at
        self.reverse_path = reverse_path
        self.recipients: list[RecipientView] = []
        self.accepted = 0
        self.notes: tuple[object, ...] = ()
        self.framer: DataFramer | ChunkFramer | None = None
        self.content: MessageContent | None = None
        self.quarantined_by: tuple[str, str] | None = None  # policy and reason
        self.discarded_by: tuple[str, str] | None = None

    def meets(self, fate: Fate) -> None:
        """Let a policy's wish count for the whole message; the first of a kind does."""
        match fate.verdict:
            case Quarantine(reason=reason):
                self.quarantined_by = self.quarantined_by or (fate.policy, reason)
            case Discard(reason=reason):
                self.discarded_by = self.discarded_by or (fate.policy, reason)

    def meets_fates(self) -> None:
        """Where each recipient's copy has a fate of its own, so has the message; in Junk if one of them is."""
        fates = [recipient.fate for recipient in self.recipients if recipient.accepted]
        common = [fate for fate in fates if fate is not None]
        if common and len(common) == len(fates):
            common.sort(key=lambda fate: isinstance(fate.verdict, Discard))
            self.meets(common[0])

    @property
    def leads_elsewhere(self) -> bool:
        """Whether every recipient is known to lead to addresses elsewhere only."""
        resolutions = [recipient.note(Resolution) for recipient in self.recipients if recipient.accepted]
        return all(
            resolution is not None and all(isinstance(each, ForwardDestination) for each in resolution.destinations)
            for resolution in resolutions
        )

    def view(self) -> TransactionView:
        """The transaction as policies and the record see it."""
        return TransactionView(self.id, self.started_at, self.reverse_path, tuple(self.recipients), self.notes)
