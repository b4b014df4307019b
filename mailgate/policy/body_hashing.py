"""Hashing the body of a message without holding the reactor up.

A small body is hashed at once, which costs less than to wait. A large one is hashed in steps between which the reactor
does other work. A thread would not help: only the hashing itself would run beside the reactor, and that is the smaller
part; the search for blanks and line ends holds Python's lock.

Standards: none; what is hashed is `mailgate.auth.canonical`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mailgate.auth.canonical import STEP_OCTETS, BodyForm, BodyHashes, body_hashes, body_hashes_in_steps

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.message import MessageContent


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
