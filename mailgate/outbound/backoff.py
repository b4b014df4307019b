"""Which destinations are left alone now, and why: those in trouble for a while, those that an operator has paused.

This is what one instance knows. It is written to the database, and what is read there (of other instances, and of
operators) takes its place every few seconds.

Pure: time comes from outside. Destinations go by the keys of their routes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mailgate.storage.settlement import DestinationNews

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mailgate.storage.queue import DestinationState


class BackOffs:
    """Destinations that are left alone."""

    def __init__(self, time: Callable[[], float], *, first_seconds: float, longest_seconds: float) -> None:
        """A destination is left alone for `first_seconds`, and twice as long each time that it is in trouble again."""
        self._time = time
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._until: dict[str, tuple[float, str]] = {}  # until when, and why
        self._failures: dict[str, int] = {}  # in a row

    def until(self, key: str) -> float | None:
        """Until when it is left alone, infinity for a pause; None where it isn't."""
        until = self._until.get(key, (0.0, ""))[0]
        return until if until > self._time() else None

    def reason(self, key: str) -> str | None:
        """Why it is left alone, or was lately."""
        known = self._until.get(key)
        return None if known is None else known[1]

    def left_alone(self) -> set[str]:
        """All that are left alone now."""
        now = self._time()
        return {key for key, (until, _) in self._until.items() if until > now}

    def fail(self, key: str, reason: str) -> tuple[float, DestinationNews]:
        """It is in trouble: for how long it is left alone, and what is to be written."""
        times = self._failures.get(key, 0)
        self._failures[key] = times + 1
        seconds = min(self._first_seconds * 2.0 ** min(times, 30), self._longest_seconds)
        self._until[key] = (self._time() + seconds, reason)
        return seconds, DestinationNews(key, reason, self._first_seconds, self._longest_seconds)

    def recover(self, key: str) -> DestinationNews | None:
        """It is well: what is to be written, None where it was before."""
        if key not in self._failures:
            return None
        del self._failures[key]
        if self._until.get(key, (0.0, ""))[0] < math.inf:
            self._until.pop(key, None)
        return DestinationNews(key, None)

    def adopt(self, states: Iterable[DestinationState]) -> None:
        """Hold what the database says for true."""
        self._failures = {}
        self._until = {}
        for state in states:
            if state.failures:
                self._failures[state.name] = state.failures
            until = math.inf if state.is_paused else state.backed_off_until or 0.0
            self._until[state.name] = (until, state.reason or "It is paused")

    def prune(self) -> None:
        """Forget what was over long ago."""
        before = self._time() - self._longest_seconds
        for key in [key for key, (until, _) in self._until.items() if until < before]:
            del self._until[key]
            self._failures.pop(key, None)
