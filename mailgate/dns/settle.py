"""Driving pure evaluations: look up what they miss, and evaluate again until they come to a result.

Standards: none; the bound on passes is ours, the bounds on look-ups are the evaluations' own (RFC 7208 section 4.6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred

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
    settling = _Settling(evaluate, resolver, {} if known is None else known)
    if settling.goes_through():
        return settling.result
    return Deferred.fromCoroutine(settling.wait())


class _Settling(Generic[_T]):
    """One evaluation, and what is on its way for it."""

    __slots__ = ("_ahead", "_answers", "_evaluate", "_passes", "_resolver", "_waiting", "result")

    result: _T

    def __init__(self, evaluate: Callable[[Answers], _T], resolver: Resolver, answers: dict[Question, Answer]) -> None:
        self._evaluate = evaluate
        self._resolver = resolver
        self._answers = answers
        self._passes = 0
        self._waiting: list[Deferred[Answer]] = []
        self._ahead: dict[Question, Deferred[Answer]] = {}

    def goes_through(self) -> bool:
        """Evaluate until there is a result, or something has to be waited for. @raises Unsettled: neither comes."""
        while self._passes < MAX_PASSES:
            self._passes += 1
            try:
                self.result = self._evaluate(Answers(self._answers, self._fetch))
            except Missing as missing:
                if self._look_up(missing):
                    return False
            except Exception:
                self._drop()
                raise
            else:
                self._drop()
                return True
        self._drop()
        raise Unsettled

    def _look_up(self, missing: Missing) -> bool:
        """Ask for what is missing; whether any of it takes time."""
        for question in missing.questions:
            deferred = self._ahead.pop(question, None) or self._asked(question)
            if deferred is not None:
                self._waiting.append(deferred)
        for question in missing.ahead - missing.questions - self._ahead.keys():
            deferred = self._asked(question)
            if deferred is not None:
                self._ahead[question] = deferred
        return bool(self._waiting)

    def _fetch(self, question: Question) -> Answer | None:
        """The answer, where the resolver has it; else it is on its way, and the evaluation says that it misses it."""
        if question not in self._ahead:
            deferred = self._asked(question)
            if deferred is None:
                return self._answers[question]
            self._ahead[question] = deferred
        return None

    def _asked(self, question: Question) -> Deferred[Answer] | None:
        """None where the answer is there, else a Deferred of it."""
        answer = self._resolver.lookup(question.name, question.type)
        if isinstance(answer, Answer):
            self._answers[question] = answer
            return None
        return answer.addCallback(self._arrived, question)

    def _arrived(self, answer: Answer, question: Question) -> Answer:
        self._answers[question] = answer
        self._ahead.pop(question, None)
        return answer

    async def wait(self) -> _T:
        """What it comes to once the answers are there."""
        try:
            while True:
                while self._waiting:
                    await self._waiting[0]
                    del self._waiting[0]
                if self.goes_through():
                    return self.result
        finally:
            self._drop()

    def _drop(self) -> None:
        """Cancel what is not needed any more."""
        for deferred in (*self._waiting, *self._ahead.values()):
            deferred.addErrback(lambda failure: failure.trap(CancelledError) and None)
            deferred.cancel()
