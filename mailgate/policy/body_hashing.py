"""Hashing the body of a message without holding the reactor up.

A small body is hashed at once, which costs less than to wait. A large one is hashed in steps between which the reactor
does other work. A thread would not help: only the hashing itself would run beside the reactor, and that is the smaller
part; the search for blanks and line ends holds Python's lock.

Standards: none; what is hashed is `mailgate.auth.canonical`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mailgate.auth.canonical import STEP_OCTETS, BodyForm, BodyHashes, body_hashes, body_hashes_in_steps
from mailgate.dns.settle import Resolver, settle

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.dns.answer import Answers
    from mailgate.message import MessageContent

_T = TypeVar("_T")


def settle_with_body(
    content: MessageContent,
    forms: Iterable[BodyForm],
    verify: Callable[[Answers, float, BodyHashes], _T],
    resolver: Resolver,
    clock: IReactorTime,
) -> _T | Deferred[_T]:
    """What `verify` comes to, given answers, the time and the hashes; at once where nobody has to be waited for."""

    def settled(hashes: BodyHashes) -> _T | Deferred[_T]:
        now = clock.seconds()
        return settle(lambda answers: verify(answers, now, hashes), resolver)

    async def settled_later(hashing: Deferred[BodyHashes]) -> _T:
        result = settled(await hashing)
        return await result if isinstance(result, Deferred) else result

    hashes = hash_body(content, forms, clock)
    return Deferred.fromCoroutine(settled_later(hashes)) if isinstance(hashes, Deferred) else settled(hashes)


def hash_body(
    content: MessageContent, forms: Iterable[BodyForm], clock: IReactorTime
) -> BodyHashes | Deferred[BodyHashes]:
    """The hashes; at once where the message is no larger than a step. Cancelling the Deferred ends the work."""
    if content.size_octets <= STEP_OCTETS:
        return body_hashes(content, forms)
    return Deferred.fromCoroutine(_hash_in_turns(body_hashes_in_steps(content, forms), clock))


async def _hash_in_turns(walk: Generator[None, None, BodyHashes], clock: IReactorTime) -> BodyHashes:
    while True:
        await deferLater(clock, 0)
        try:
            next(walk)
        except StopIteration as done:
            hashes: BodyHashes = done.value
            return hashes
