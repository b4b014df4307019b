"""Finds the reports among accepted messages, and keeps what those about our domains say.

In the background, and never in the way of mail: acceptance knows nothing of it. Now and then the messages behind a
cursor are looked at, by size and subject in the database; those few that may be reports are read, and taken apart in a
thread. Whatever is in them, the worst that comes of it is a log line.

Anybody can write a report. So it is kept who proved to have sent it; `mailgate dmarc show` leaves out those that nobody
did, unless asked. Several nodes may look at the same messages: a report is kept once.

Standards: RFC 9990 section 3.5, RFC 8460 sections 3 and 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg2
from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailgate.ids import encode_id, first_id_at
from mailgate.repeated import Repeated
from mailgate.reports import dmarc_report, tls_report
from mailgate.reports.attachment import MAX_MESSAGE_OCTETS, attachments, kind_of
from mailgate.reports.dmarc_report import DmarcReport, UnreadableReport
from mailgate.reports.tls_report import MAX_JSON_OCTETS, TlsPolicyReport, TlsReport
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.reports import dmarc_statement, tls_statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mailgate.storage.reports import PossibleReport, ReportStore

INTERVAL_SECONDS = 300.0
# An id is of the beginning of a transaction, and its row is there at the end: younger ones may still be on their way.
SETTLED_SECONDS = 900.0
# Where nothing was looked at before, the search does not begin at the beginning of all mail.
_FIRST_DAYS = 7

log = Logger()


@dataclass(frozen=True, slots=True)
class Found:
    """What a message brought."""

    report: DmarcReport | TlsReport | None
    problem: str = ""  # why it is None; "" where there was nothing that looked like a report


def report_in(message: bytes) -> Found:
    """The first report in a message. Meant for a thread: it takes time, and its bounds are those of its parts."""
    problem = ""
    for attachment in attachments(message):
        try:
            report = _report_of(attachment.unpacked())
        except UnreadableReport as error:
            problem = str(error)
            continue
        if report is not None:
            return Found(report)
    return Found(None, problem)


def _report_of(chunks: Iterator[bytes]) -> DmarcReport | TlsReport | None:
    first = next(chunks, b"")
    match kind_of(first):
        case "xml":
            return dmarc_report.read(_chained(first, chunks))
        case "json":
            octets = bytearray(first)
            for chunk in chunks:
                octets += chunk
                if len(octets) > MAX_JSON_OCTETS:
                    break  # the reader says so
            return tls_report.read(bytes(octets))
        case None:
            return None


def _chained(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _statements(message_id: int, message: PossibleReport) -> tuple[list[bytes], str]:
    """What keeps the report in that message, and why there is none. Meant for a thread, as `report_in`."""
    found = report_in(message.octets)
    sender = authenticated_as(message.results)
    match found.report:
        case None:
            return [], found.problem
        case DmarcReport() as report:
            return [dmarc_statement(report, message_id, message.received_at, sender)], ""
        case TlsReport() as report:
            by_domain: dict[str, list[TlsPolicyReport]] = {}
            for policy in report.policies:
                by_domain.setdefault(policy.domain, []).append(policy)
            return [
                tls_statement(report, domain, policies, message_id, message.received_at, sender)
                for domain, policies in by_domain.items()
            ], ""


def authenticated_as(results: Sequence[dict[str, Any]]) -> str | None:  # Any: JSON
    """The domain that a message proved to be from: the author's where DMARC passed, else a signer's, else None."""
    for result in results:
        if result.get("kind") == "dmarc" and result.get("result") == "pass":
            return str(result.get("author_domain", "")) or None
    for result in results:
        if result.get("kind") == "dkim" and result.get("result") == "pass":
            return str(result.get("domain", "")) or None
    return None


class InboundReports:
    """Looks for reports every few minutes."""

    def __init__(
        self,
        reactor: Any,  # Any: one object with more interfaces than a type can name
        store: ReportStore,
        *,
        time: Callable[[], float],
    ) -> None:
        """`reactor` has the threads and the clock; `time` gives seconds since the epoch."""
        self._reactor = reactor
        self._store = store
        self._time = time
        self._repeated = Repeated(reactor, self.search, lambda: INTERVAL_SECONDS, what="the search for reports")

    def start(self) -> None:
        """Go on until `stop`."""
        self._repeated.start()

    async def stop(self) -> None:
        """Stop; what is being read is read again the next time."""
        self._repeated.stop()

    async def search(self) -> int:
        """Look at all messages that have come since the last time; how many reports were found. Failures are logged."""
        now = self._time()
        first = first_id_at(now - _FIRST_DAYS * 86_400.0)
        before = first_id_at(now - SETTLED_SECONDS)
        found = 0
        try:
            while True:
                possible, last = await self._store.possible_reports(first, before, MAX_MESSAGE_OCTETS)
                if last is None:
                    return found
                for message_id in possible:
                    found += await self._look_into(message_id)
                await self._store.looked_at(last)
        except StorageUnavailable as error:
            log.info("the search for reports waits: {reason}", reason=str(error))
        except psycopg2.Error as error:
            log.warn("search for reports: {reason}", reason=" ".join(str(error).split()))
        return found

    async def _look_into(self, message_id: int) -> bool:
        message = await self._store.possible_report(message_id)
        if message is None:
            return False
        try:
            result: tuple[list[bytes], str] = await deferToThreadPool(
                self._reactor, self._reactor.getThreadPool(), _statements, message_id, message
            )
        except CancelledError:
            raise
        except Exception:  # whatever a stranger may find that breaks a reader must not stop the search at this message
            log.failure("{id} breaks the reader of reports", id=encode_id(message_id))
            return False
        statements, problem = result
        if problem:
            log.info("{id} has no report: {problem!r}", id=encode_id(message_id), problem=problem)
        try:
            for statement in statements:
                await self._store.keep(statement)
        except psycopg2.DataError as error:
            # Whatever a stranger may find that PostgreSQL takes ill must not stop the search at this message.
            log.warn("{id}: {reason!r}", id=encode_id(message_id), reason=" ".join(str(error).split()))
            return False
        return bool(statements)
