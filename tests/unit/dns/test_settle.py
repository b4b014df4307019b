"""Evaluations that say what they miss, and the look-ups that are made for them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mailgate.dns.answer import Answer, Answers, Missing, Outcome, Question, RecordType
from mailgate.dns.settle import MAX_PASSES, Unsettled, settle


def failures_of(deferred: Deferred[Any]) -> list[BaseException | None]:  # Any: whatever it would have come to
    """What it fails with, once it does."""
    errors: list[BaseException | None] = []

    def failed(failure: Failure) -> None:
        errors.append(failure.value)

    deferred.addErrback(failed)
    return errors


def question(name: str) -> Question:
    return Question(name, RecordType.TXT)


def answer(name: str) -> Answer:
    return Answer(question(name), Outcome.ANSWER, (name.encode(),))


class Slow:
    """A resolver that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waiting: dict[str, Deferred[Answer]] = {}
        self.cancelled: list[str] = []

    def lookup(self, name: str, record_type: RecordType) -> Deferred[Answer]:
        self.asked.append(name)
        self.waiting[name] = Deferred(lambda _: self.cancelled.append(name))
        return self.waiting[name]

    def answer(self, name: str) -> None:
        self.waiting[name].callback(answer(name))


class Quick:
    """A resolver that knows everything."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def lookup(self, name: str, record_type: RecordType) -> Answer:
        self.asked.append(name)
        return answer(name)


def read(answers: Answers, *names: str) -> tuple[str, ...]:
    return tuple(answers.get(name, RecordType.TXT).question.name for name in names)


def test_what_is_known_settles_at_once() -> None:
    """The hot path makes no Deferred."""
    resolver = Quick()
    assert settle(lambda answers: read(answers, "a", "b"), resolver) == ("a", "b")
    assert resolver.asked == ["a", "b"]


def test_one_pass_is_enough_where_the_resolver_knows_everything() -> None:
    """Evaluating costs more than looking up in a cache."""
    passes = []

    def evaluate(answers: Answers) -> tuple[str, ...]:
        passes.append(answers)
        answers.need([question("c")])
        return read(answers, "a", "b", "c")

    assert settle(evaluate, Quick()) == ("a", "b", "c")
    assert len(passes) == 1


def test_what_is_needed_is_asked_for_together() -> None:
    resolver = Slow()

    def evaluate(answers: Answers) -> tuple[str, ...]:
        answers.need([question("a"), question("b")])
        return read(answers, "a", "b")

    deferred = settle(evaluate, resolver)
    assert isinstance(deferred, Deferred)
    assert sorted(resolver.asked) == ["a", "b"]
    resolver.answer("a")
    assert not deferred.called
    resolver.answer("b")
    assert deferred.result == ("a", "b")


def expecting(answers: Answers) -> tuple[str, ...]:
    first = read(answers, "a")
    answers.expect(map(question, ("b", "c", "d")))
    return first + read(answers, "b", "c")


def test_what_is_expected_is_looked_up_meanwhile_and_once() -> None:
    resolver = Slow()
    deferred = settle(expecting, resolver)
    assert isinstance(deferred, Deferred)
    resolver.answer("a")
    assert sorted(resolver.asked) == ["a", "b", "c", "d"]
    resolver.answer("c")
    resolver.answer("b")
    assert deferred.result == ("a", "b", "c")
    assert len(resolver.asked) == 4


def test_what_was_expected_and_is_not_needed_is_not_waited_for() -> None:
    """A dead name server behind a match would hold up every message of that domain."""
    resolver = Slow()
    deferred = settle(expecting, resolver)
    for name in "abc":
        resolver.answer(name)
    assert isinstance(deferred, Deferred)
    assert deferred.called
    assert resolver.cancelled == ["d"]


@pytest.mark.parametrize("answered", ["", "a", "ac"])
def test_cancelling_cancels_every_look_up(answered: str) -> None:
    resolver = Slow()
    deferred = settle(expecting, resolver)
    assert isinstance(deferred, Deferred)
    for name in answered:
        resolver.answer(name)
    errors = failures_of(deferred)
    deferred.cancel()
    assert [type(error) for error in errors] == [CancelledError]
    assert sorted(resolver.cancelled) == sorted(set(resolver.asked) - set(answered))


def test_what_is_expected_is_not_gone_through_where_nothing_is_missing() -> None:
    """It would cost time on the hot path."""
    answers = Answers({question("a"): answer("a")})
    answers.expect(pytest.fail(f"asked for {name}") for name in "b")
    assert read(answers, "a") == ("a",)


def test_the_answers_of_the_last_pass_are_the_evidence() -> None:
    """What was only expected proves nothing."""
    seen: list[Answers] = []

    def evaluate(answers: Answers) -> tuple[str, ...]:
        seen.append(answers)
        return expecting(answers)

    settle(evaluate, Quick())
    assert [each.name for each in seen[-1].used] == ["a", "b", "c"]


def test_an_evaluation_that_breaks_leaves_nothing_behind() -> None:
    """Its look-ups would have no owner."""

    def evaluate(answers: Answers) -> None:
        with contextlib.suppress(Missing):
            read(answers, "b")
        raise ZeroDivisionError

    resolver = Slow()
    with pytest.raises(ZeroDivisionError):
        settle(evaluate, resolver)
    assert resolver.cancelled == ["b"]


def test_an_evaluation_that_asks_for_ever_is_stopped() -> None:
    """A defect must not become a loop, whether answers take time or not."""

    def evaluate(answers: Answers) -> None:
        raise Missing([question(f"n{len(resolver.asked)}")])

    resolver: Quick | Slow = Quick()
    with pytest.raises(Unsettled):
        settle(evaluate, resolver)
    resolver = Slow()
    deferred = settle(evaluate, resolver)
    assert isinstance(deferred, Deferred)
    errors = failures_of(deferred)
    for number in range(MAX_PASSES):
        resolver.answer(f"n{number}")
    assert [type(error) for error in errors] == [Unsettled]
