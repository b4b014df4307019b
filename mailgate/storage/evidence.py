"""What policies found, as it is kept: results and verdicts as JSON, and the DNS answers that they rest on as rows.

Values in, values out; no I/O. A result is written field by field, under the names that it has in
`mailgate.auth.results`; a field that has its default is left out. Answers are shared between results and between
transactions: each is kept once, under a digest of all that it says, and a result names the digests. A record that an
answer holds (`record` of an SpfResult) is not kept a second time.

Notes of other types than these are for policies only, and are not kept.

What strangers wrote is bounded here, in length and in number; what is cut ends in "…".
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from mailgate.auth.results import (
    ArcResult,
    AuthorFault,
    DkimResult,
    DmarcResult,
    PolicyOverride,
    SpfResult,
    TrustedForwarder,
)
from mailgate.policy.verdict import Opinion
from mailgate.storage import literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mailgate.dns.answer import Answer
    from mailgate.policy.stage import RecipientView

TEXT_CHARS = 1000  # of one string of a result
LIST_ITEMS = 64  # of one list of a result, and of the results and verdicts of a transaction
RECORD_CHARS = 4096  # of one record of an answer
RECORDS_CHARS = 16384  # of all of them
KNOWN_SECONDS = 3600.0

_MAX_TTL = (1 << 31) - 1  # RFC 2181 section 8, and PostgreSQL's integer
_MAX_KNOWN = 16384
_MAX_REMEMBERED = 4096
_REMEMBERED_OCTETS = 2048

# How a result is called in the database. The first four are methods of RFC 8601.
KINDS: dict[type[object], str] = {
    SpfResult: "spf",
    DkimResult: "dkim",
    ArcResult: "arc",
    DmarcResult: "dmarc",
    AuthorFault: "author-fault",
    TrustedForwarder: "trusted-forwarder",
    PolicyOverride: "override",
}


def _fields_of(kind: Any) -> tuple[tuple[str, object], ...]:  # Any: a dataclass
    """The names of the fields that are kept, each with its default."""
    return tuple((field.name, field.default) for field in fields(kind) if field.name not in ("record", "evidence"))


_FIELDS = {kind: (word, _fields_of(kind)) for kind, word in KINDS.items()}
_OPINION_FIELDS: tuple[tuple[str, object], ...] = tuple((field.name, "") for field in fields(Opinion))
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False, default=repr).encode


class KnownAnswers:
    """The digests of answers, and which of them are in the database for sure.

    Bounded. What is known is forgotten after KNOWN_SECONDS, long before retention removes it; and at once where a
    COMMIT may have been lost.
    """

    __slots__ = ("_committed", "_digests", "_seconds")

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` is any clock."""
        self._seconds = seconds
        self._committed: dict[int, float] = {}  # digest: until when it is known; the oldest first
        self._digests: dict[int, tuple[Answer, int]] = {}  # by identity: a cached answer comes again as it was

    def digest_of(self, answer: Answer) -> int:
        """The answer's digest."""
        remembered = self._digests.get(id(answer))
        if remembered is not None:
            return remembered[1]  # it holds the answer, so no other one has that identity
        digest = digest_of(answer)
        if _is_short(answer):
            if len(self._digests) >= _MAX_REMEMBERED:
                del self._digests[next(iter(self._digests))]
            self._digests[id(answer)] = (answer, digest)
        return digest

    def is_committed(self, digest: int) -> bool:
        """Whether that answer is in the database for sure."""
        until = self._committed.get(digest)
        return until is not None and self._seconds() < until

    def are_committed(self, digests: Iterable[int]) -> None:
        """Note that these are in the database, now that COMMIT was answered."""
        until = self._seconds() + KNOWN_SECONDS
        committed = self._committed
        for digest in digests:
            committed.pop(digest, None)
            committed[digest] = until
        while len(committed) > _MAX_KNOWN:
            del committed[next(iter(committed))]

    def forget(self) -> None:
        """Take nothing for sure any more."""
        self._committed.clear()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is kept of some transactions or sessions: a value for each in both lists, and the answers that are new."""

    results: list[str | None]
    verdicts: list[str | None]
    answers: dict[int, Answer]

    def answer_columns(self) -> dict[str, str]:
        """The answers as arrays by the names of columns, in the order of digests: so no writers wait for each other."""
        digests = sorted(self.answers)
        answers = [self.answers[digest] for digest in digests]
        return {
            "answer_digest": literal.number_array(digests),
            "answer_name": literal.text_array([_text(answer.question.name) for answer in answers]),
            "answer_type": literal.text_array([answer.question.type.value for answer in answers]),
            "answer_outcome": literal.text_array([answer.outcome.value for answer in answers]),
            "answer_rcode": literal.text_array([answer.rcode for answer in answers]),
            "answer_records": literal.text_array([_array_text(record_texts(answer)) for answer in answers]),
            "answer_ttl_seconds": literal.number_array([min(answer.ttl_seconds, _MAX_TTL) for answer in answers]),
            "answer_is_authenticated": literal.number_array([answer.is_authenticated for answer in answers]),
            "answer_answered_at": literal.number_array([float(answer.answered_at) for answer in answers]),
            "answer_detail": literal.text_array([_text(answer.detail) for answer in answers]),
        }


def evidence_of(parts: Iterable[tuple[Sequence[object], Sequence[RecipientView]]], known: KnownAnswers) -> Evidence:
    """The evidence of transactions or sessions, each given by its notes and its recipients with theirs."""
    evidence = Evidence([], [], {})
    for notes, recipients in parts:
        results: list[dict[str, object]] = []
        verdicts: list[dict[str, object]] = []
        for note in notes:
            _add(note, None, results, verdicts, evidence.answers, known)
        for position, recipient in enumerate(recipients):
            for note in recipient.notes:
                _add(note, position, results, verdicts, evidence.answers, known)
        evidence.results.append(_encode(results) if results else None)
        evidence.verdicts.append(_encode(verdicts) if verdicts else None)
    return evidence


def _add(
    note: object,
    position: int | None,
    results: list[dict[str, object]],
    verdicts: list[dict[str, object]],
    answers: dict[int, Answer],
    known: KnownAnswers,
) -> None:
    kind = type(note)
    value: dict[str, object]
    if kind is Opinion:
        value, kept_fields, rows = {}, _OPINION_FIELDS, verdicts
    elif kind in _FIELDS:
        word, kept_fields = _FIELDS[kind]
        value, rows = {"kind": word}, results
    else:
        return
    if len(rows) >= LIST_ITEMS:
        return
    if position is not None:
        value["recipient"] = position
    for name, default in kept_fields:
        field = getattr(note, name)
        if field != default or default is MISSING:
            value[name] = _text(field) if type(field) is str else _plain(field)
    evidence: tuple[Answer, ...] = getattr(note, "evidence", ())
    if evidence:
        digests = []
        for answer in evidence:
            digest = known.digest_of(answer)
            digests.append(digest)
            if digest not in answers and not known.is_committed(digest):
                answers[digest] = answer
        value["answers"] = digests
    rows.append(value)


def _plain(value: object) -> object:
    """The value as JSON has it."""
    match value:
        case Enum():
            return value.value
        case str():
            return _text(value)
        case tuple():
            kept = [_text(item) if type(item) is str else _plain(item) for item in value[:LIST_ITEMS]]
            return kept if len(value) <= LIST_ITEMS else [*kept, "…"]
        case _:
            return value


def _text(value: str) -> str:
    """The string as PostgreSQL takes it; see `mailgate.storage.literal` for lone surrogates."""
    if len(value) > TEXT_CHARS:
        value = value[: TEXT_CHARS - 1] + "…"
    return value.replace("\0", "\ufffd")


# ---------------------------------------------------------------- answers


def digest_of(answer: Answer) -> int:
    """The first 64 bits of SHA-256 over all that the answer says, as PostgreSQL's bigint."""
    question = answer.question
    said = repr(
        (
            question.name,
            question.type.value,
            answer.outcome.value,
            answer.records,
            answer.rcode,
            answer.ttl_seconds,
            answer.is_authenticated,
            answer.answered_at,
            answer.detail,
        )
    )
    return int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)


def record_texts(answer: Answer) -> list[str]:
    """Each record as a zone file has it, TXT without its quotes; together at most RECORDS_CHARS."""
    texts: list[str] = []
    left = RECORDS_CHARS
    for record in answer.records:
        if left <= 0:
            texts.append("…")
            break
        text = _record_text(record)
        bound = min(RECORD_CHARS, left)
        if len(text) > bound:
            text = text[: bound - 1] + "…"
        left -= len(text) + 1
        texts.append(text)
    return texts


def _record_text(record: bytes | str | tuple[int, str] | tuple[int, int, int, bytes]) -> str:
    match record:
        case bytes():
            # RFC 1035 section 5.1: "\DDD where each D is a digit is the octet corresponding to the decimal number".
            return _NOT_PLAIN.sub(lambda match: _ESCAPES[match[0]], record.decode("iso-8859-1"))
        case str():
            return record
        case (usage, selector, matching, bytes(data)):
            return f"{usage} {selector} {matching} {data.hex()}"
        case (preference, name):
            return f"{preference} {name}"


_NOT_PLAIN = re.compile(r"[^ -\[\]-~]")
_ESCAPES = {chr(octet): f"\\{octet:03d}" for octet in range(256)} | {"\\": "\\\\"}


def _array_text(values: Iterable[str]) -> str:
    """A text[] as PostgreSQL writes it."""
    return "{" + ",".join(['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]) + "}"


def _is_short(answer: Answer) -> bool:
    octets = 0
    for record in answer.records:
        octets += 64 + (len(record[-1]) if isinstance(record, tuple) else len(record))
    return octets <= _REMEMBERED_OCTETS
