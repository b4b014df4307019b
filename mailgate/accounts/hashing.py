"""Where passwords are hashed: a few threads of their own, and a bounded queue before them.

argon2 lets go of the interpreter while it works, so the reactor goes on. So many hash at a time, because each takes
19 MiB and a processor; so many wait; whoever comes then is told to come back later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool

from mailgate.accounts.passwords import hasher, verify
from mailgate.policy.plugin import PolicyThreads

if TYPE_CHECKING:
    from argon2 import PasswordHasher
    from twisted.python.failure import Failure

_T = TypeVar("_T")

_NOBODYS_PASSWORD = "mailgate"  # noqa: S105  # hashed where there is nothing to check


class Overloaded(Exception):
    """So many wait for their password to be hashed that one more should come back later."""


class PasswordThreads:
    """Threads that hash."""

    def __init__(
        self,
        reactor: Any,  # Any: Twisted's reactor has more interfaces than a type can name
        *,
        threads: int = 2,
        waiting: int = 100,
        hasher: PasswordHasher = hasher,
    ) -> None:
        """`waiting` is how many may wait for a thread; `hasher` makes the hash of nobody's password."""
        self._reactor = reactor
        self._pool = PolicyThreads(threads, "mailgate-passwords")
        self._bound = threads + waiting
        self._at_work = 0
        self._nobodys_hash = hasher.hash(_NOBODYS_PASSWORD)

    def verify(self, argon2: str | None, password: bytes) -> Deferred[bool]:
        """Whether this is the password; with None it is not, and finding that out takes as long.

        @raises Overloaded: too many wait.
        """

        def check() -> bool:
            is_right = verify(self._nobodys_hash if argon2 is None else argon2, password)
            return is_right and argon2 is not None

        return self.run(check)

    def run(self, work: Callable[[], _T]) -> Deferred[_T]:
        """The result of that work in a thread. Cancelled while it waits, it is not begun.

        @raises Overloaded: too many wait.
        """
        if self._at_work >= self._bound:
            raise Overloaded
        if not self._pool.started:
            self._pool.start()
        self._at_work += 1
        is_wanted = True

        def in_thread() -> Any:  # Any: _T, or a None that nobody hears
            try:
                return work() if is_wanted else None
            finally:
                # Not when the Deferred fires: cancelled, it fires at once, and the thread is still at work.
                self._reactor.callFromThread(self._done)

        def cancelled(failure: Failure) -> Failure:
            nonlocal is_wanted
            is_wanted = not failure.check(CancelledError)
            return failure

        return deferToThreadPool(self._reactor, self._pool, in_thread).addErrback(cancelled)

    def abandon(self) -> None:
        """Let the threads end when they have done what they do, and don't wait for that."""
        if self._pool.started:
            self._pool.abandon()

    def _done(self) -> None:
        self._at_work -= 1
