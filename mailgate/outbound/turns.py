"""Whose turn it is in the queue, and how much of it one instance holds: by sender, and by destination.

Pure. The claims themselves, and how senders share one of them, are in `mailgate.storage.queue` and schema.sql.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailgate.storage.queue import QueuedRow

MAX_HELD = 2000  # rows in memory
MAX_HELD_OCTETS = 64 * 1024 * 1024  # of contents that came with them
FIRST_PER_DESTINATION = 100
_MAX_ROUNDS = 1000  # senders of whom we know which destination was the last


class Turns:
    """What is held, and where the next claim begins."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.after_sender = ""
        self.after_domains: OrderedDict[str, str] = OrderedDict()
        self._domains: dict[str, int] = {}
        self._senders: dict[str, int] = {}
        self._octets = 0

    @property
    def has_room_for_contents(self) -> bool:
        """Whether another claim may bring contents."""
        return self._octets < MAX_HELD_OCTETS

    def per_destination(self, rows_per_second: float) -> int:
        """How many rows of one destination may be held: what the fastest is served in about two seconds."""
        return int(min(max(FIRST_PER_DESTINATION, 2 * rows_per_second), MAX_HELD * 3 / 4))

    def full_destinations(self, bound: int) -> list[str]:
        """Those of which as much is held as may be."""
        return [domain for domain, held in self._domains.items() if held >= bound]

    def full_senders(self) -> list[str]:
        """Those of which so much is held that there would be no room for others."""
        return [sender for sender, held in self._senders.items() if held >= MAX_HELD * 3 // 4]

    def take(self, rows: Sequence[QueuedRow]) -> None:
        """Count rows that were claimed; the next claim begins behind them."""
        self.hold(rows)
        after, round_of = self.after_sender, self.after_domains
        last: dict[str, tuple[bool, str]] = {}
        for row in rows:
            # A claim begins behind the last one, and goes round: those before that come in its second half.
            place = (row.domain <= round_of.get(row.sender, ""), row.domain)
            if row.sender not in last or place > last[row.sender]:
                last[row.sender] = place
        for sender, (_, domain) in last.items():
            round_of[sender] = domain
            round_of.move_to_end(sender)
        while len(round_of) > _MAX_ROUNDS:
            round_of.popitem(last=False)
        if last:
            self.after_sender = max((sender <= after, sender) for sender in last)[1]

    def hold(self, rows: Sequence[QueuedRow]) -> None:
        """Count rows that were claimed out of turn."""
        for row in rows:
            self._domains[row.domain] = self._domains.get(row.domain, 0) + 1
            self._senders[row.sender] = self._senders.get(row.sender, 0) + 1
            self._octets += _octets_of(row)

    def give(self, row: QueuedRow) -> None:
        """That row is held no longer."""
        self._octets -= _octets_of(row)
        for counts, key in ((self._domains, row.domain), (self._senders, row.sender)):
            left = counts[key] - 1
            if left:
                counts[key] = left
            else:
                del counts[key]


def _octets_of(row: QueuedRow) -> int:
    """What a content holds of memory, counted for the row that brought it."""
    return 0 if row.content is None else row.size_octets
