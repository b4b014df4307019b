"""Work that is done over and over."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mailgate.repeated import Repeated


class Work:
    """Counts its rounds, and waits in each if told so."""

    def __init__(self) -> None:
        self.rounds = 0
        self.error: Exception | None = None
        self.waiting: Deferred[None] | None = None

    async def __call__(self) -> None:
        self.rounds += 1
        if self.error is not None:
            raise self.error
        if self.waiting is not None:
            await self.waiting


class RepeatedTests(SynchronousTestCase):
    """On a clock of the test's own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.work = Work()
        self.repeated = Repeated(self.clock, self.work, lambda: 10.0, what="the work")

    def test_rounds_come_after_pauses(self) -> None:
        """The first one too, unless it is to come at once."""
        self.repeated.start()
        assert self.work.rounds == 0
        self.clock.pump([10.0, 10.0])
        assert self.work.rounds == 2
        other = Work()
        Repeated(self.clock, other, lambda: 10.0, what="the work", is_first_at_once=True).start()
        assert other.rounds == 1

    def test_starting_twice_is_starting_once(self) -> None:
        """There is one loop."""
        self.repeated.start()
        self.repeated.start()
        self.clock.advance(10.0)
        assert self.work.rounds == 1

    def test_a_defect_costs_a_round_and_is_logged(self) -> None:
        """Else one message that nobody thought of would end it until a restart."""
        self.work.error = ZeroDivisionError("a defect")
        self.repeated.start()
        self.clock.advance(10.0)
        self.work.error = None
        self.clock.advance(10.0)
        assert self.work.rounds == 2
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1  # type: ignore[no-untyped-call]  # Twisted has no types here

    def test_a_stop_cancels_what_is_awaited_and_leaves_nothing(self) -> None:
        """Neither in the pause nor in a round; and it may be started again."""
        self.repeated.start()
        self.repeated.stop()
        assert self.clock.getDelayedCalls() == []
        cancelled: list[Deferred[None]] = []
        self.work.waiting = Deferred(cancelled.append)
        self.repeated.start()
        self.clock.advance(10.0)
        self.repeated.stop()
        assert cancelled == [self.work.waiting]
        assert self.clock.getDelayedCalls() == []
        assert self.flushLoggedErrors() == []  # type: ignore[no-untyped-call]  # Twisted has no types here
        self.work.waiting = None
        self.repeated.start()
        self.clock.advance(10.0)
        assert self.work.rounds == 2
