"""The rows that one instance holds, by which claims it has them, and whose turn it is at the next claim.

A claim counts as alive, so that its leases are renewed, from before it is sent to the database until the last of its
rows has been settled.

Not here: claims themselves and what becomes of rows (`mailgate.outbound.runner`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.outbound.content import Content, StoredContent, WholeContent
from mailgate.outbound.turns import MAX_HELD, Turns
from mailgate.storage.settlement import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import Any

    from twisted.internet.defer import Deferred

    from mailgate.storage.queue import QueuedRow


class Held:
    """A row that is ours."""

    __slots__ = ("content", "destination", "is_decided", "lease", "row")

    def __init__(self, row: QueuedRow, lease: Lease, content: Content) -> None:
        self.row = row
        self.lease = lease
        self.content = content
        self.destination: str | None = None  # by the key of its route; None while that is looked for
        self.is_decided = False


class Holding:
    """What is held."""

    def __init__(self, piece: Callable[[int, int], Coroutine[Deferred[Any], Any, bytes]]) -> None:
        """`piece` reads a piece of a content, by the message's id and the piece's number."""
        self.turns = Turns()
        self._piece = piece
        self._held: dict[int, Held] = {}
        self._claims: dict[int, int] = {}  # how many of their rows are held

    def __len__(self) -> int:
        """How many rows."""
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """All of them; while it goes on, any may be dropped."""
        return iter(tuple(self._held.values()))

    def __getitem__(self, queue_id: int) -> Held:
        """A row that is held."""
        return self._held[queue_id]

    def get(self, queue_id: int) -> Held | None:
        """A row, if it is held."""
        return self._held.get(queue_id)

    @property
    def room(self) -> int:
        """How many rows more may be held."""
        return MAX_HELD - len(self._held)

    @property
    def claims(self) -> list[int]:
        """Those whose leases are to be renewed."""
        return list(self._claims)

    def begin(self, claim: int) -> None:
        """That claim is sent to the database."""
        self._claims[claim] = 0

    def give_up(self, claim: int) -> None:
        """It is not known what that claim brought."""
        del self._claims[claim]

    def take(self, claim: int, rows: Sequence[QueuedRow], *, is_in_turn: bool) -> list[QueuedRow]:
        """Hold what a claim has brought; gives those that were not. Out of turn, the next claim begins as before."""
        if is_in_turn:
            self.turns.take(rows)
        else:
            self.turns.hold(rows)
        contents: dict[int, Content] = {}
        taken = []
        for row in rows:
            content = contents.get(row.message_id)
            if content is None:
                content = contents[row.message_id] = self._content_of(row)
            if row.id in self._held:
                # Others have ended its lease: they took us for dead, say. It is under way all the same, and to begin it
                # again would send it twice. The lease that came now ends with its claim.
                self.turns.give(row)
                continue
            self._held[row.id] = Held(row, Lease(row.id, claim), content)
            taken.append(row)
        if taken:
            self._claims[claim] = len(taken)
        else:
            del self._claims[claim]
        return taken

    def drop(self, lease: Lease) -> None:
        """That row is ours no longer."""
        held = self._held.pop(lease.queue_id, None)
        if held is None:
            return
        self.turns.give(held.row)
        left = self._claims[lease.claim] - 1
        if left:
            self._claims[lease.claim] = left
        else:
            del self._claims[lease.claim]

    def _content_of(self, row: QueuedRow) -> Content:
        trace = bytes(row.trace or b"")
        if row.content is not None:
            return WholeContent(trace, row.content)
        message_id = row.message_id

        async def read(number: int) -> bytes:
            return await self._piece(message_id, number)

        return StoredContent(trace, row.size_octets, read)
