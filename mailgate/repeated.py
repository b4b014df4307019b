"""Work of a node that is done over and over in the background: pruning, counting, reports.

A round that fails because of a defect is logged, and the next one comes all the same. What is to be expected, as a
database that is away, is the work's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

_log = Logger()


class Repeated:
    """Rounds of some work, with pauses between them."""

    def __init__(
        self,
        clock: IReactorTime,
        work: Callable[[], Coroutine[Deferred[Any], Any, object]],
        pause_seconds: Callable[[], float],
        *,
        what: str,
        is_first_at_once: bool = False,
    ) -> None:
        """`what` names the work in the log. The first round comes after a pause, or at once."""
        self._clock = clock
        self._work = work
        self._pause_seconds = pause_seconds
        self._what = what
        self._is_first_at_once = is_first_at_once
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Go on until `stop`."""
        if self._running is None:
            self._running = Deferred.fromCoroutine(self._run())
            self._running.addErrback(self._ended)

    def stop(self) -> None:
        """Begin no more rounds, and cancel what the present one waits for."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    async def _run(self) -> None:
        if not self._is_first_at_once:
            await deferLater(self._clock, self._pause_seconds())
        while True:
            try:
                await self._work()
            except Exception as error:
                if isinstance(error, CancelledError) and self._running is None:
                    raise
                _log.failure("{what} failed", what=self._what)
            await deferLater(self._clock, self._pause_seconds())

    def _ended(self, failure: Failure) -> None:
        failure.trap(CancelledError)
