"""That a program of others can't be had, or can't run, on this machine: the reason for which a test skips itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import TypeVar

T = TypeVar("T")


class Unavailable(Exception):
    """The text says what is missing."""


def sought_once(seek: Callable[[], T]) -> Callable[[], T]:
    """`seek`, called once in a run: without a network it may take long, and it would fail again."""

    @cache
    def found() -> T | Unavailable:
        try:
            return seek()
        except Unavailable as reason:
            return reason

    @wraps(seek)
    def answer() -> T:
        result = found()
        if isinstance(result, Unavailable):
            raise Unavailable(str(result))
        return result

    return answer
