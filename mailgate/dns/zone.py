"""A resolver that is a table of records: the DNS of a test, with its failures and delays.

It answers as `mailgate.dns.resolver` does, and as a recursive server would: a CNAME is followed, a wildcard matches, a
name that only has names below it exists. What is asked for is noted in order. It never touches a network.

Standards: RFC 1034 section 4.3.2 (the algorithm), RFC 1035 section 5 (master files), RFC 4592 (wildcards), RFC 8020
(nothing lies below a name that does not exist).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.rdatatype
import dns.zone
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.dns.wire import ImpossibleName, Record, from_wire_name, normal_name, records_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_MAX_CHAIN = 16
_MAX_TTL_SECONDS = (1 << 31) - 1  # RFC 2181 section 8
_TYPES = {dns.rdatatype.from_text(record_type.value): record_type for record_type in RecordType}


class Zone:
    """All the domains that a test knows of. What is not in it does not exist."""

    def __init__(
        self,
        text: str = "",
        clock: IReactorTime | None = None,
        *,
        ttl_seconds: int = 300,
        negative_ttl_seconds: int = 60,
        is_authenticated: bool = False,
    ) -> None:
        """Read the records of a master file whose names are all complete, with or without the final dot.

        A record takes `ttl_seconds` where it names none. The clock is needed for delays.

        @raises dns.exception.DNSException: it can't be read.
        """
        self.asked: list[Question] = []
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._negative_ttl_seconds = negative_ttl_seconds
        self._is_authenticated = is_authenticated
        self._records: dict[Question, tuple[tuple[Record, ...], int]] = {}
        self._names: set[str] = set()
        self._failures: dict[tuple[str, RecordType | None], tuple[str, str]] = {}
        self._delays: dict[tuple[str, RecordType | None], float] = {}
        self._read(text)

    def _read(self, text: str) -> None:
        zone = dns.zone.from_text(
            f"$TTL {self._ttl_seconds}\n{text}\n", origin=".", relativize=False, check_origin=False
        )
        for name, rdataset in zone.iterate_rdatasets():
            record_type = _TYPES.get(rdataset.rdtype)
            if record_type is not None:
                self.add(from_wire_name(name), record_type, *records_of(rdataset), ttl_seconds=rdataset.ttl)

    def add(self, name: str, record_type: RecordType, *records: Record, ttl_seconds: int | None = None) -> None:
        """Add records, in the form that `Answer` has them, to those of that name and type."""
        normal = normal_name(name)
        question = Question(normal, record_type)
        before, ttl = self._records.get(question, ((), self._ttl_seconds))
        self._records[question] = (before + records, ttl if ttl_seconds is None else ttl_seconds)
        while normal and normal not in self._names:
            self._names.add(normal)
            normal = normal.partition(".")[2]

    def remove(self, name: str, record_type: RecordType) -> None:
        """Take all records of that name and type out. The name remains."""
        self._records.pop(Question(normal_name(name), record_type), None)

    def fail(
        self, name: str, record_type: RecordType | None = None, *, rcode: str = "SERVFAIL", detail: str = "it fails"
    ) -> None:
        """Answer for that name, of that type or of all, with a failure; an rcode of "" is a server that is silent."""
        self._failures[normal_name(name), record_type] = (rcode, detail)

    def delay(self, name: str, seconds: float, record_type: RecordType | None = None) -> None:
        """Answer for that name, of that type or of all, so much later on the clock."""
        if self._clock is None:
            raise ValueError("a zone with delays needs a clock")
        self._delays[normal_name(name), record_type] = seconds

    def heal(self) -> None:
        """Take all failures and delays back."""
        self._failures.clear()
        self._delays.clear()

    def lookup(self, name: str, record_type: RecordType) -> Answer | Deferred[Answer]:
        """The answer; at once, unless the name is one that takes time."""
        try:
            question = Question(normal_name(name), record_type)
        except ImpossibleName as error:
            return Answer(Question(name, record_type), Outcome.NXDOMAIN, rcode="", detail=str(error))
        self.asked.append(question)
        delay = self._delays.get((question.name, record_type), self._delays.get((question.name, None)))
        if delay is None or self._clock is None:
            return self._answer(question)
        return deferLater(self._clock, delay, self._answer, question)

    def _answer(self, question: Question) -> Answer:
        """Follow the name to its records, the failure on the way, or the end."""
        now = self._clock.seconds() if self._clock is not None else 0.0
        name = question.name
        ttl = _MAX_TTL_SECONDS
        for _ in range(_MAX_CHAIN):
            failure = self._failures.get((name, question.type), self._failures.get((name, None)))
            if failure is not None:
                rcode, detail = failure
                return Answer(question, Outcome.FAILURE, rcode=rcode, answered_at=now, detail=detail)
            owner = self._owner_of(name)
            found = self._records.get(Question(owner, question.type))
            if found is not None:
                ttl = min(ttl, found[1])
                return Answer(question, Outcome.ANSWER, found[0], "NOERROR", ttl, self._is_authenticated, now)
            alias = self._records.get(Question(owner, RecordType.CNAME))
            if alias is None:
                ttl = min(ttl, self._negative_ttl_seconds)
                exists = owner in self._names or not owner
                outcome, rcode = (Outcome.NODATA, "NOERROR") if exists else (Outcome.NXDOMAIN, "NXDOMAIN")
                return Answer(question, outcome, (), rcode, ttl, self._is_authenticated, now)
            name = str(alias[0][0])
            ttl = min(ttl, alias[1])
        return Answer(question, Outcome.FAILURE, rcode="", answered_at=now, detail="a CNAME chain without an end")

    def _owner_of(self, name: str) -> str:
        """The name itself, or the wildcard that stands in for it (RFC 4592 section 3.3.1)."""
        if name in self._names:
            return name
        encloser = name
        while encloser and encloser not in self._names:
            encloser = encloser.partition(".")[2]
        wildcard = f"*.{encloser}" if encloser else "*"
        return wildcard if wildcard in self._names else name
