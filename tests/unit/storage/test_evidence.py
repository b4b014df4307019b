"""How what was found is written for the record: no database, all values."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mailgate.auth.results
from mailgate.auth.results import ArcResult, AuthorFault, Result, SpfResult
from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.policy.stage import TraceFields
from mailgate.policy.verdict import Opinion
from mailgate.smtp.reply import reply
from mailgate.storage import literal
from mailgate.storage.evidence import (
    KINDS,
    KNOWN_SECONDS,
    LIST_ITEMS,
    RECORD_CHARS,
    RECORDS_CHARS,
    TEXT_CHARS,
    KnownAnswers,
    digest_of,
    evidence_of,
    record_texts,
)
from tests.support.evidence import DKIM, DMARC, KEY_RECORD, OPINION, RESULTS, SPF, SPF_RECORD, answer
from tests.support.messages import recipient


def known() -> KnownAnswers:
    return KnownAnswers(lambda: 0.0)


def rendered(*notes: object) -> list[dict[str, Any]]:
    """The results of a transaction with these notes, as JSON has them."""
    ((results,), _, _) = _parts(*notes)
    return json.loads(results) if results is not None else []


def _parts(*notes: object) -> tuple[list[str | None], list[str | None], dict[int, Answer]]:
    evidence = evidence_of([(notes, ())], known())
    return evidence.results, evidence.verdicts, evidence.answers


def read_back(value: dict[str, Any]) -> object:
    """The result that JSON tells of, without `record` and `evidence`, which are kept elsewhere."""
    (kind,) = [kind for kind, word in KINDS.items() if word == value["kind"]]
    given = {name: each for name, each in value.items() if name not in ("kind", "answers", "recipient")}
    if "result" in given:
        given["result"] = Result(given["result"])
    return kind(**{name: tuple(each) if isinstance(each, list) else each for name, each in given.items()})


def without_answers(result: Any) -> object:  # Any: any of the results
    dropped = {field.name: field.default for field in fields(result) if field.name in ("record", "evidence")}
    return replace(result, **dropped)


def test_every_class_of_results_has_a_kind() -> None:
    """One that is added there must not be forgotten here."""
    classes = {
        value
        for value in vars(mailgate.auth.results).values()
        if isinstance(value, type) and value.__module__ == "mailgate.auth.results" and not issubclass(value, Enum)
    }
    assert classes == set(KINDS)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_can_be_read_back(result: Any) -> None:  # Any: any of the results
    (value,) = rendered(result)
    assert value["kind"] == KINDS[type(result)]
    assert read_back(value) == without_answers(result)
    assert value.get("answers", []) == [digest_of(each) for each in getattr(result, "evidence", ())]


def test_a_field_that_has_its_default_is_left_out() -> None:
    """Most of a result is defaults, and it is written for every message."""
    assert rendered(ArcResult(Result.NONE)) == [{"kind": "arc", "result": "none"}]


def test_a_field_without_a_default_is_there_though_it_is_empty() -> None:
    assert rendered(SpfResult("mailfrom", "", "", Result.NONE)) == [
        {"kind": "spf", "identity": "mailfrom", "domain": "", "sender": "", "result": "none"}
    ]


def test_a_verdict_names_the_policy_and_its_configuration() -> None:
    _, (verdicts,), _ = _parts(OPINION, replace(OPINION, fingerprint=""))
    assert verdicts is not None
    assert json.loads(verdicts) == [
        {
            "stage": "end_of_data",
            "policy": "dmarc",
            "fingerprint": "0123456789ab",
            "verdict": "reject",
            "reason": "550 5.7.26 example.org says so",
        },
        {
            "stage": "end_of_data",
            "policy": "dmarc",
            "verdict": "reject",
            "reason": "550 5.7.26 example.org says so",
        },
    ]


def test_what_concerns_one_recipient_says_which() -> None:
    refusal = Opinion("rcpt", "recipients", "", "reject", "550 5.1.1 No")
    first = recipient("a@example.test", 1)
    second = replace(recipient("b@example.test", answer=reply(550, "5.1.1", "No")), notes=(SPF, refusal))
    evidence = evidence_of([((DKIM,), (first, second))], known())
    assert evidence.results[0] is not None
    assert evidence.verdicts[0] is not None
    assert [result.get("recipient") for result in json.loads(evidence.results[0])] == [None, 1]
    assert [verdict["recipient"] for verdict in json.loads(evidence.verdicts[0])] == [1]


def test_notes_for_policies_alone_are_not_kept() -> None:
    assert _parts(TraceFields(b"X: y\r\n"), "note") == ([None], [None], {})


def test_an_answer_of_several_results_is_there_once() -> None:
    _, _, answers = _parts(SPF, replace(SPF, identity="helo"), DMARC)
    assert len(answers) == 5
    assert all(digest_of(each) == digest for digest, each in answers.items())


# ------------------------------------------------------------ what strangers wrote


@given(st.text(max_size=40) | st.text(alphabet='\0\\"\ud800\udfff\x1b{},', max_size=20))
def test_any_text_is_json_that_postgresql_takes(text: str) -> None:
    """Without NUL, and with lone surrogates replaced when it is sent; see `literal.encoded`."""
    (results,), (verdicts,), _ = _parts(
        AuthorFault(text), replace(DKIM, signed_fields=(text,)), replace(OPINION, reason=text)
    )
    for column in (results, verdicts):
        assert column is not None
        sent = literal.encoded(column).decode("utf-8")
        assert "\\u0000" not in sent.replace("\\\\", "")
        json.loads(sent)


def test_text_and_lists_are_bounded() -> None:
    huge = "x" * 1_000_000
    (results,), (verdicts,), _ = _parts(
        replace(DKIM, problem=huge, signed_fields=(huge,) * 10_000), replace(OPINION, reason=huge)
    )
    assert results is not None
    assert verdicts is not None
    (value,) = json.loads(results)
    assert (len(value["problem"]), value["problem"][-1]) == (TEXT_CHARS, "…")
    assert (len(value["signed_fields"]), value["signed_fields"][-1]) == (LIST_ITEMS + 1, "…")
    assert max(map(len, value["signed_fields"])) == TEXT_CHARS
    assert len(json.loads(verdicts)[0]["reason"]) == TEXT_CHARS


def test_the_results_of_a_transaction_are_bounded() -> None:
    assert len(rendered(*[replace(DKIM, position=position) for position in range(1000)])) == LIST_ITEMS


def test_a_value_that_no_result_should_have_is_written_all_the_same() -> None:
    """A plugin's mistake must not keep a message from being stored."""
    wrong: Any = b"octets"  # Any: what the type forbids
    (value,) = rendered(replace(DKIM, problem=wrong))
    assert value["problem"] == "b'octets'"


# ------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (b"v=spf1 -all", "v=spf1 -all"),
        (b'a "quoted\\ string"', 'a "quoted\\\\ string"'),
        (b"\0\x1b\x7f\xc3\xa9\r\n", "\\000\\027\\127\\195\\169\\013\\010"),
        ("192.0.2.7", "192.0.2.7"),
        ((10, "mx.example.org"), "10 mx.example.org"),
        ((3, 1, 1, b"\x01\xff"), "3 1 1 01ff"),
    ],
)
def test_a_record_is_written_as_a_zone_file_has_it(record: Any, text: str) -> None:  # Any: any kind of record
    """RFC 1035 section 5.1."""
    assert record_texts(answer("example.org", RecordType.TXT, record)) == [text]


def test_the_records_of_an_answer_are_bounded() -> None:
    (one,) = record_texts(answer("example.org", RecordType.TXT, b"x" * 60_000))
    assert (len(one), one[-1]) == (RECORD_CHARS, "…")
    many = record_texts(answer("example.org", RecordType.TXT, *[b"\0" * 300] * 1000))
    assert sum(map(len, many)) <= RECORDS_CHARS
    assert many[-1].endswith("…")


def test_a_digest_differs_where_anything_does() -> None:
    different = [
        SPF_RECORD,
        replace(SPF_RECORD, question=Question("example.net", RecordType.TXT)),
        replace(SPF_RECORD, question=Question("example.org", RecordType.A)),
        replace(SPF_RECORD, outcome=Outcome.NODATA),
        replace(SPF_RECORD, records=(b"v=spf1 mx", b" -all")),
        replace(SPF_RECORD, records=("v=spf1 mx -all",)),
        replace(SPF_RECORD, rcode="NXDOMAIN"),
        replace(SPF_RECORD, ttl_seconds=1),
        replace(SPF_RECORD, is_authenticated=False),
        replace(SPF_RECORD, answered_at=SPF_RECORD.answered_at + 0.001),
        replace(SPF_RECORD, detail="x"),
    ]
    digests = {digest_of(each) for each in different}
    assert len(digests) == len(different)
    assert all(-(1 << 63) <= digest < 1 << 63 for digest in digests)
    assert digest_of(replace(SPF_RECORD)) == digest_of(SPF_RECORD)


def test_answers_are_written_in_the_order_of_digests() -> None:
    """Two writers that wait for each other's rows would never end."""
    evidence = evidence_of([(RESULTS, ())], known())
    digests = json.loads(evidence.answer_columns()["answer_digest"].strip("'").replace("{", "[").replace("}", "]"))
    assert digests == sorted(digests)
    assert len(digests) == 7


def test_a_time_to_live_that_no_column_holds_is_cut() -> None:
    """RFC 2181 section 8: more than 31 bits is an error of the sender's."""
    found = replace(DKIM, evidence=(replace(KEY_RECORD, ttl_seconds=(1 << 32) - 1),))
    columns = evidence_of([((found,), ())], known()).answer_columns()
    assert columns["answer_ttl_seconds"] == "'{2147483647}'"


# ------------------------------------------------------------ what is known to be kept


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_is_new_until_it_is_said_to_be_committed() -> None:
    memory = KnownAnswers(Time())
    for _ in range(2):
        assert len(evidence_of([((DKIM,), ())], memory).answers) == 1
    memory.are_committed([digest_of(KEY_RECORD)])
    evidence = evidence_of([((DKIM,), ())], memory)
    assert evidence.answers == {}
    assert evidence.results[0] is not None
    assert json.loads(evidence.results[0])[0]["answers"] == [digest_of(KEY_RECORD)]


def test_an_equal_answer_is_known_too() -> None:
    memory = KnownAnswers(Time())
    memory.are_committed([digest_of(KEY_RECORD)])
    assert evidence_of([((replace(DKIM, evidence=(replace(KEY_RECORD),)),), ())], memory).answers == {}


def test_what_is_known_is_forgotten_after_an_hour() -> None:
    """Long before retention could remove it."""
    time = Time()
    memory = KnownAnswers(time)
    memory.are_committed([1])
    time.now = KNOWN_SECONDS - 1
    assert memory.is_committed(1)
    time.now = KNOWN_SECONDS
    assert not memory.is_committed(1)


def test_nothing_is_known_after_doubt() -> None:
    memory = KnownAnswers(Time())
    memory.are_committed([1, 2])
    memory.forget()
    assert not memory.is_committed(1)


def test_what_is_known_is_bounded_and_the_newest_stays() -> None:
    memory = KnownAnswers(Time())
    memory.are_committed(range(100_000))
    assert not memory.is_committed(0)
    assert memory.is_committed(99_999)
    assert len(memory._committed) < 20_000


def test_what_is_remembered_of_answers_is_bounded() -> None:
    memory = KnownAnswers(Time())
    for number in range(10_000):
        each = answer(f"{number}.example.org", RecordType.TXT, hashlib.sha256(b"%d" % number).digest())
        assert memory.digest_of(each) == digest_of(each)
    memory.digest_of(answer("large.example.org", RecordType.TXT, b"x" * 100_000))
    assert len(memory._digests) < 5000
    assert all(len(each.records[0]) < 1000 for each, _ in memory._digests.values())


def test_two_answers_are_never_taken_for_each_other() -> None:
    """An answer that is remembered is held: no other can get its identity meanwhile."""
    memory = KnownAnswers(Time())
    for number in range(20_000):
        each = answer("example.org", RecordType.TXT, b"%d" % number)
        assert memory.digest_of(each) == digest_of(each)
        del each
