"""A DNS question, the answer to it, and the answers that an evaluation rests on.

Values, and one exception that pure code uses to say what it still has to know. Nothing here sends a packet.

How results and evidence come together: an evaluation (`mailgate.auth`) is a pure function of its inputs and of
`Answers`. Where it needs an answer that is not there, `Answers.get` raises `Missing`; whoever drives the evaluation
(`mailgate.dns.settle`) looks that up and evaluates again. What was asked for in the last pass is the evidence.

Standards: RFC 1035, RFC 2308 (negative answers), RFC 4035 section 3.2.3 (the AD bit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum


class RecordType(Enum):
    """The types that mailgate asks for. The value is the type's mnemonic."""

    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    MX = "MX"
    PTR = "PTR"
    TLSA = "TLSA"
    TXT = "TXT"


class Outcome(Enum):
    """What a look-up came to. The value is the word in the database."""

    ANSWER = "answer"  # there are records
    NODATA = "nodata"  # the name exists, without records of this type
    NXDOMAIN = "nxdomain"  # the name does not exist
    FAILURE = "failure"  # nobody answered in time, or the servers failed: nothing is known


@dataclass(frozen=True, slots=True)
class Question:
    """A name in A-form, lower case, without the final dot, and a type."""

    name: str
    type: RecordType


@dataclass(frozen=True, slots=True)
class Answer:
    """What was learned for one question.

    `records` holds a value for each record, in the order received: bytes for TXT (its strings joined), a str for A,
    AAAA (in text form), PTR and CNAME (names as in Question), (preference, name) for MX, (usage, selector, matching
    type, bytes) for TLSA. Empty unless the outcome is ANSWER.
    """

    question: Question
    outcome: Outcome
    records: tuple[bytes | str | tuple[int, str] | tuple[int, int, int, bytes], ...] = ()
    rcode: str = "NOERROR"  # as the server said it; "" where none did
    ttl_seconds: int = 0  # how long it held when it was received; for negative answers by RFC 2308
    is_authenticated: bool = False  # the AD bit, from a resolver that config trusts
    answered_at: float = 0.0  # seconds since the epoch
    detail: str = ""  # why it failed, for people


class Missing(Exception):
    """An evaluation needs answers to these questions before it can go on.

    Those in `ahead` it may need later: they are looked up meanwhile, and not waited for.
    """

    def __init__(self, questions: Iterable[Question], ahead: Iterable[Question] = ()) -> None:
        super().__init__()
        self.questions = frozenset(questions)
        self.ahead = frozenset(ahead)


class Answers:
    """The answers that an evaluation may use; it notes which it has asked for."""

    __slots__ = ("_expected", "_fetch", "_known", "used")

    def __init__(
        self, known: dict[Question, Answer], fetch: Callable[[Question], Answer | None] = lambda question: None
    ) -> None:
        """`known` is shared with whoever adds to it. `fetch` may know more, at once."""
        self._known = known
        self._fetch = fetch
        self._expected: list[Iterable[Question]] = []
        self.used: dict[Question, Answer] = {}

    def get(self, name: str, record_type: RecordType) -> Answer:
        """The answer. @raises Missing: it is not known yet."""
        question = Question(name, record_type)
        answer = self._known.get(question) or self._fetch(question)
        if answer is None:
            raise Missing((question,), (q for questions in self._expected for q in questions if q not in self._known))
        self.used[question] = answer
        return answer

    def need(self, questions: Iterable[Question]) -> None:
        """Say early what will be asked, so that it is looked up at once. @raises Missing: some are not known yet."""
        missing = [q for q in questions if q not in self._known and self._fetch(q) is None]
        if missing:
            raise Missing(missing)

    def expect(self, questions: Iterable[Question]) -> None:
        """Say what may be asked later. It is gone through only where something is missing, and at most once."""
        self._expected.append(questions)
