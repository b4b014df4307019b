"""mailgate and OpenDKIM take the same signatures, but for the differences that docs/agreement.md explains.

OpenDKIM's test mode is given fields without the blank behind the colon, so that only signatures over the relaxed form
of the header can be compared.

Standards: RFC 6376.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

import pytest

from mailgate.dns.answer import Answer, RecordType
from mailgate.dns.zone import Zone
from tests.agreement import generate
from tests.agreement.document import Difference, stale, unexplained
from tests.agreement.finding import Judge
from tests.support.opendkim import OpenDkim
from tests.support.unavailable import Unavailable

_SEED = 6376
_METHOD = "opendkim"


class Judged(NamedTuple):
    name: str
    ours: str
    theirs: str


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[Judged]:
    """Every message with a relaxed header, and whether a signature of it passes."""
    folder = tmp_path_factory.mktemp("opendkim")
    cases = [case for case in generate.cases(_SEED) if case.name.startswith("dkim/") and b" c=relaxed/" in case.message]
    zone = generate.zone()
    judge = Judge(zone, "mx.example.test", time.time())
    ours = ["pass" if "pass" in judge.finding(case).dkim.split() else "no pass" for case in cases]
    try:
        opendkim = OpenDkim(folder, _keys(zone))
    except Unavailable as reason:
        pytest.skip(str(reason))
    return [
        Judged(case.name, ours_of_it, "pass" if opendkim.passes(case.message) else "no pass")
        for case, ours_of_it in zip(cases, ours, strict=True)
    ]


def _keys(zone: Zone) -> list[tuple[str, bytes]]:
    """The key records that were asked for."""
    names = sorted({asked.name for asked in zone.asked if "._domainkey." in asked.name})
    answers = [zone.lookup(name, RecordType.TXT) for name in names]
    return [
        (answer.question.name, record)
        for answer in answers
        if isinstance(answer, Answer)
        for record in answer.records
        if isinstance(record, bytes)
    ]


def differences(judged: list[Judged]) -> set[Difference]:
    return {(name, _METHOD, ours, theirs) for name, ours, theirs in judged if ours != theirs}


def test_the_two_differ_only_where_the_document_says_so(judged: list[Judged]) -> None:
    """A difference is a defect of one of them, or a choice that somebody has to have made."""
    assert unexplained(differences(judged), {_METHOD}) == []


def test_the_two_differ_wherever_the_document_says_so(judged: list[Judged]) -> None:
    """What the document explains is still true, of every case that a row covers."""
    assert stale(differences(judged), {_METHOD}, {each.name for each in judged}) == []


def test_what_is_compared_is_worth_comparing(judged: list[Judged]) -> None:
    """Signatures that both take, and that neither does."""
    agreed = Counter(ours for _, ours, theirs in judged if ours == theirs)
    assert min(agreed["pass"], agreed["no pass"]) > 70
