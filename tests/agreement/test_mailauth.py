"""mailgate and mailauth come to the same results, but for the differences that docs/agreement.md explains.

Standards: RFC 7208, RFC 6376, RFC 8617, RFC 9989, RFC 8601.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.agreement import generate, mailauth
from tests.agreement.case import Case
from tests.agreement.document import Difference, stale, unexplained
from tests.agreement.finding import METHODS, Finding, Judge
from tests.support.unavailable import Unavailable

_RECEIVER = "mx.example.test"
_SEED = 9989


@dataclass(frozen=True, slots=True)
class Judged:
    case: Case
    ours: Finding
    theirs: Finding


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    """Every message with what both find."""
    try:
        folder = mailauth.install()
    except Unavailable as reason:
        pytest.skip(f"mailauth can't be had: {reason}")
    cases = generate.cases(_SEED)
    judge = Judge(generate.zone(), _RECEIVER, time.time())
    ours = [judge.finding(case) for case in cases]
    theirs = mailauth.findings(folder, cases, generate.zone(), _RECEIVER)
    return [Judged(*row) for row in zip(cases, ours, theirs, strict=True)]


def differences(judged: list[Judged]) -> set[Difference]:
    """Where they differ."""
    return {
        (each.case.name, method, getattr(each.ours, method), getattr(each.theirs, method))
        for each in judged
        for method in METHODS
        if getattr(each.ours, method) != getattr(each.theirs, method)
    }


def test_the_two_differ_only_where_the_document_says_so(judged: list[Judged]) -> None:
    """A difference is a defect of one of them, or a choice that somebody has to have made."""
    assert unexplained(differences(judged), METHODS) == []


def test_the_two_differ_wherever_the_document_says_so(judged: list[Judged]) -> None:
    """What the document explains is still true, of every case that a row covers."""
    assert stale(differences(judged), METHODS, {each.case.name for each in judged}) == []


def test_what_is_compared_is_worth_comparing(judged: list[Judged]) -> None:
    """A few hundred messages, on which the two agree in every word that a method has."""
    agreed = Counter(
        (method, word)
        for each in judged
        for method in METHODS
        if getattr(each.ours, method) == getattr(each.theirs, method)
        for word in getattr(each.ours, method).split(" ")[:1]
    )
    assert len(judged) > 1000
    assert min(agreed[key] for key in _EXPECTED) >= 3, agreed


_EXPECTED = [
    *(("spf", word) for word in ("none", "pass", "fail", "softfail", "neutral", "permerror", "temperror")),
    *(("dkim", word) for word in ("none", "pass", "fail", "temperror")),
    *(("arc", word) for word in ("none", "pass", "fail")),
    *(("dmarc", word) for word in ("none", "pass", "fail", "temperror", "no")),
]


def test_the_same_seed_makes_the_same_messages() -> None:
    """A difference that was found can be looked at again."""
    assert generate.cases(7) == generate.cases(7)
    assert generate.cases(7) != generate.cases(8)


def test_no_two_cases_of_a_round_have_one_name() -> None:
    """The name is all that the document says of a case."""
    names = Counter(case.name for case in generate.cases(7))
    assert [name for name, count in names.items() if count > 1] == []
