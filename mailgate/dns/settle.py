"""Driving pure evaluations: look up what they miss, and evaluate again until they come to a result.

Standards: none; the bound on passes is ours, the bounds on look-ups are the evaluations' own (RFC 7208 section 4.6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from twisted.internet.defer import Deferred, gatherResults

from mailgate.dns.answer import Answer, Answers, Missing, Question

if TYPE_CHECKING:
    from mailgate.dns.answer import RecordType

_T = TypeVar("_T")

MAX_PASSES = 64


class Resolver(Protocol):
    """What settles questions: `mailgate.dns.resolver.CachingResolver`, or a zone in memory."""

    def lookup(self, name: str, record_type: RecordType) -> Answer | Deferred[Answer]:
        """The answer; at once where it is known. A failure is an answer too: this raises nothing."""


class Unsettled(Exception):
    """The evaluation went on asking beyond any bound: a defect of it."""


def settle(
    evaluate: Callable[[Answers], _T], resolver: Resolver, known: dict[Question, Answer] | None = None
) -> _T | Deferred[_T]:
    """What `evaluate` comes to; at once where the resolver knows all that it asks for.

    Cancelling the Deferred cancels the look-ups that nobody else waits for.
    """
    answers = {} if known is None else known
    for _ in range(MAX_PASSES):
        try:
            return evaluate(Answers(answers))
        except Missing as missing:
            waiting = []
            for question in missing.questions:
                answer = resolver.lookup(question.name, question.type)
                if isinstance(answer, Answer):
                    answers[question] = answer
                else:
                    waiting.append((question, answer))
        if waiting:
            return Deferred.fromCoroutine(_settle_later(evaluate, resolver, answers, waiting))
    raise Unsettled


async def _settle_later(
    evaluate: Callable[[Answers], _T],
    resolver: Resolver,
    answers: dict[Question, Answer],
    waiting: list[tuple[Question, Deferred[Answer]]],
) -> _T:
    found = await gatherResults([deferred for _, deferred in waiting], consumeErrors=True)
    for (question, _), answer in zip(waiting, found, strict=True):
        answers[question] = answer
    result = settle(evaluate, resolver, answers)
    return await result if isinstance(result, Deferred) else result
