"""How many connections there are of all destinations, and who has the next one.

While there is room, whoever asks has one. When there is none, one that ends goes to the sender that has the fewest, and
there to the destination that has the fewest. And hosts that take their time lose it: RFC 5321 lets one be silent for
five minutes before its greeting, and a few hundred that are would keep all other mail waiting.

Not here: how many connections a destination may have (`mailgate.outbound.delivery`).

Standards: RFC 5321 section 4.5.3.2 (time-outs, which are kept while there is room), section 4.5.4.2 (concurrency).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from mailgate.outbound.delivery import Destination

PATIENCE_SECONDS = 30.0  # with a connection that is being opened, where others wait for it
_LOOK_SECONDS = 5.0


class Slots:
    """The connections that there may be."""

    def __init__(
        self,
        clock: IReactorTime,
        most: int,
        *,
        destinations: Callable[[], Collection[Destination]],
        sender_of: Callable[[Destination], str],
    ) -> None:
        """`sender_of` tells whose mail waits first for a destination; "" where none does."""
        self._clock = clock
        self._most = most
        self._destinations = destinations
        self._sender_of = sender_of
        self._taken = 0
        self._is_wanted = False  # whether a destination was refused another connection
        self._is_offering = False
        self._is_stopping = False
        self._looking: IDelayedCall | None = None

    def take(self) -> bool:
        """Whether there may be another connection; it counts from now on."""
        if self._is_stopping:
            return False
        if self._taken >= self._most:
            self._is_wanted = True
            if self._looking is None:
                self._looking = self._clock.callLater(_LOOK_SECONDS, self._look)
            return False
        self._taken += 1
        return True

    def give(self) -> None:
        """There is one connection less: another destination may have one."""
        self._taken -= 1
        if self._is_offering:
            return  # a destination that was offered one could not use it
        self._is_offering = True
        while self._is_wanted and self._taken < self._most:
            self._is_wanted = False
            for destination in self._in_turn():
                destination.pump()
        self._is_offering = False

    def stop(self) -> None:
        """Give no more."""
        self._is_stopping = True
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _in_turn(self) -> list[Destination]:
        """The destinations for which mail waits, those first that have least."""
        of_sender: Counter[str] = Counter()
        waiting: list[tuple[Destination, str]] = []
        for destination in self._destinations():
            if destination.waiting or destination.connections:
                sender = self._sender_of(destination)
                of_sender[sender] += destination.connections
                if destination.waiting:
                    waiting.append((destination, sender))
        waiting.sort(key=lambda each: (of_sender[each[1]], each[0].connections))
        return [destination for destination, _ in waiting]

    def _look(self) -> None:
        """Have those end that are being opened for long, as long as others wait that have none."""
        self._looking = None
        destinations = tuple(self._destinations())
        if self._taken < self._most or not any(each.waiting and not each.connections for each in destinations):
            return
        self._looking = self._clock.callLater(_LOOK_SECONDS, self._look)
        for destination in destinations:
            destination.lose_patience(PATIENCE_SECONDS)
