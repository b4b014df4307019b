"""Answers that were given before, as long as they hold: bounded in number, in octets, and by time.

It knows no clock: the time is an argument. What an answer's time to live is, and for how long a failure is kept, is
decided by who puts it in.

Standards: RFC 1035 section 7.4 (what is kept), RFC 2308 section 5 (negative answers), RFC 9520 (failures).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from mailgate.dns.answer import Answer, RecordType

_ENTRY_OCTETS: Final = 800  # what an answer with one short record takes in all
_RECORD_OCTETS: Final = 120

Key = tuple[str, RecordType]


class AnswerCache:
    """The answers used last, by name and type."""

    __slots__ = ("_entries", "_max_entries", "_max_octets", "_octets")

    def __init__(self, max_entries: int, max_octets: int = 64 * 1024 * 1024) -> None:
        """Both bounds hold at once; 0 entries keep nothing."""
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._entries: OrderedDict[Key, tuple[Answer, float, int]] = OrderedDict()
        self._octets = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Answer | None:
        """The answer, if it still holds. One from the future, where the clock was set back, doesn't."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        answer, expires_at, octets = entry
        if answer.answered_at <= now < expires_at:
            self._entries.move_to_end(key)
            return answer
        del self._entries[key]
        self._octets -= octets
        return None

    def put(self, key: Key, answer: Answer, expires_at: float) -> None:
        """Keep the answer until then, or until others that are used more need its place."""
        octets = _octets_of(answer)
        before = self._entries.pop(key, None)
        if before is not None:
            self._octets -= before[2]
        self._entries[key] = (answer, expires_at, octets)
        self._octets += octets
        while len(self._entries) > self._max_entries or self._octets > self._max_octets:
            _, (_, _, dropped) = self._entries.popitem(last=False)
            self._octets -= dropped

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._octets = 0


def _octets_of(answer: Answer) -> int:
    """About what the answer takes in memory."""
    octets = _ENTRY_OCTETS + len(answer.question.name) + len(answer.detail)
    for record in answer.records:
        octets += _RECORD_OCTETS
        if isinstance(record, tuple):
            octets += len(record[-1])
        else:
            octets += len(record)
    return octets
