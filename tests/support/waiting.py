"""Waiting for conditions in tests that run on the real reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime


reactor: Any = _reactor  # Any: Twisted types it as less than it is


async def until(
    clock: IReactorTime,
    condition: Callable[[], object],
    *,
    timeout_seconds: float = 15.0,
    what: str = "the condition",
) -> None:
    """Return as soon as `condition()` is true; fail the test where that takes longer than the deadline."""
    deadline = clock.seconds() + timeout_seconds
    while not condition():
        if clock.seconds() > deadline:
            raise AssertionError(f"{what} did not come within {timeout_seconds:.0f} s")
        await deferLater(clock, 0.01)
