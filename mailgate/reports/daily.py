"""Sends the reports about the day before, once a day, whatever the number of nodes.

Every node tries, some time after midnight UTC, at a time of its own. Counting a day is done by the first that comes.
For each domain a report is made, signed and sent in one transaction with a note of it, so that it is made once: a node
that dies leaves the rest to the others, or to its own next round.

A report goes nowhere if nobody may be told: the domain names no address, those elsewhere have not agreed, or no mail
passed and the operator did not ask to report even so. That is noted too. Where the DNS does not answer, it is tried
again.

Standards: RFC 9990 sections 3.5 and 4, RFC 8460 sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import psycopg2
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailgate.ids import encode_id
from mailgate.message import MessageContent
from mailgate.repeated import Repeated
from mailgate.reports.destination import Destination, Undecided, agreed, mail_destinations, tls_destinations
from mailgate.reports.outgoing import (
    Reporter,
    ReportMail,
    asks_for_reports,
    dmarc_mail,
    dmarc_report_of,
    report_id,
    tls_mail,
    tls_report_of,
)
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.reports import OwnMail

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from mailgate.dns.settle import Resolver
    from mailgate.policy.signing import Signing
    from mailgate.storage.reports import DmarcDomain, ReportStore

# A round begins so many seconds behind midnight, and is repeated as long as the day lasts for what was undecided.
_FIRST_SECONDS = 1800.0
_ROUND_SECONDS = 3600.0
_PAUSE_SECONDS = 0.05  # between reports, so that a thousand of them hold nobody up

log = Logger()
_random = SystemRandom()


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What config says of reports."""

    reporter: Reporter
    dmarc: bool = True
    dmarc_without_pass: bool = False
    tls: bool = True
    keep_days: int = 365


class DailyReports:
    """Makes and sends the reports of yesterday."""

    def __init__(
        self,
        reactor: Any,  # Any: one object with more interfaces than a type can name
        store: ReportStore,
        resolver: Resolver,
        settings: ReportSettings,
        *,
        signing: Signing | None,
        next_id: Callable[[], int],
        time: Callable[[], float],
    ) -> None:
        """`reactor` has the threads and the clock; `time` gives seconds since the epoch.

        `signing` is None where nothing of ours is signed.
        """
        self._reactor = reactor
        self._store = store
        self._resolver = resolver
        self._settings = settings
        self._signing = signing
        self._next_id = next_id
        self._time = time
        self._repeated = Repeated(reactor, self.make, self._seconds_to_next_round, what="making reports")

    def start(self) -> None:
        """Go on until `stop`."""
        self._repeated.start()

    async def stop(self) -> None:
        """Stop; a report that is under way in the database is sent, or not, as a whole."""
        self._repeated.stop()

    def _seconds_to_next_round(self) -> float:
        since_midnight = self._time() % 86_400.0
        # Not all nodes at once, and not all mail systems of the world either.
        spread = _random.uniform(0, _ROUND_SECONDS)
        return _FIRST_SECONDS - since_midnight + spread if since_midnight < _FIRST_SECONDS else spread + 60.0

    async def make(self) -> int:
        """Make all that is still to be made about yesterday; how many reports were sent. Failures are logged."""
        now = self._time()
        yesterday = datetime.fromtimestamp(now, UTC).date() - timedelta(days=1)
        sent = 0
        try:
            if self._settings.dmarc:
                sent += await self._make_dmarc(yesterday)
            if self._settings.tls:
                sent += await self._make_tls(yesterday)
            await self._store.forget(now - self._settings.keep_days * 86_400.0, now)
        except StorageUnavailable as error:
            log.info("reports wait: {reason}", reason=str(error))
        except psycopg2.Error as error:
            log.warn("reports: {reason}", reason=" ".join(str(error).split()))
        if sent:
            log.info("{sent} reports about {day} sent", sent=sent, day=yesterday.isoformat())
        return sent

    async def _make_dmarc(self, day: date) -> int:
        if not await self._store.collect(day):
            return 0
        sent = 0
        after = ""
        while domains := await self._store.dmarc_domains(day, after):
            for domain in domains:
                sent += await self._try(self._dmarc(day, domain), domain.name)
            after = domains[-1].name
        return sent

    async def _make_tls(self, day: date) -> int:
        sent = 0
        after = ""
        while domains := await self._store.tls_domains(day, after):
            for domain in domains:
                sent += await self._try(self._tls(day, domain), domain)
            after = domains[-1]
        return sent

    async def _try(self, making: Coroutine[Any, Any, bool], domain: str) -> bool:
        try:
            is_sent = await making
        except Undecided:
            log.debug("whom to report about {domain} can't be looked up now", domain=domain)
            return False
        except psycopg2.DataError as error:
            log.warn("no report about {domain}: {reason}", domain=domain, reason=" ".join(str(error).split()))
            return False
        except (StorageUnavailable, psycopg2.Error, CancelledError):
            raise
        except Exception:  # whatever is wrong with what one domain has published must not harm the others
            log.failure("making the report about {domain} failed", domain=domain)
            return False
        await deferLater(self._reactor, _PAUSE_SECONDS)
        return is_sent

    async def _dmarc(self, day: date, domain: DmarcDomain) -> bool:
        record = asks_for_reports(domain.record)
        destinations: tuple[Destination, ...] = ()
        if record is not None and (domain.passed or self._settings.dmarc_without_pass):
            destinations = await agreed(domain.name, mail_destinations(record.rua), self._resolver)
        identifier = report_id("dmarc", domain.name, day)
        if record is None or not destinations:
            await self._store.send("dmarc", domain.name, day, identifier, (), None)
            return False
        reporter = self._settings.reporter
        rows = await self._store.dmarc_rows(day, domain.name)

        def made(chosen: Sequence[Destination], now: float) -> ReportMail:
            report = dmarc_report_of(reporter, domain.name, record, day, rows)
            return dmarc_mail(reporter, report, [each.address for each in chosen], now)

        return await self._send("dmarc", domain.name, day, destinations, made)

    async def _tls(self, day: date, domain: str) -> bool:
        destinations = await tls_destinations(domain, self._resolver)
        if not destinations:
            await self._store.send("tls", domain, day, report_id("tls", domain, day), (), None)
            return False
        reporter = self._settings.reporter
        rows = await self._store.tls_results(day, domain)

        def made(chosen: Sequence[Destination], now: float) -> ReportMail:
            report = tls_report_of(reporter, domain, day, rows)
            return tls_mail(reporter, domain, day, report, [each.address for each in chosen], now)

        return await self._send("tls", domain, day, destinations, made)

    async def _send(
        self,
        kind: str,
        domain: str,
        day: date,
        destinations: Sequence[Destination],
        made: Callable[[Sequence[Destination], float], ReportMail],
    ) -> bool:
        now = self._time()
        mail = await self._in_thread(made, destinations, now)
        fitting = [each for each in destinations if each.max_octets is None or mail.attached_octets <= each.max_octets]
        if not fitting:
            await self._store.send(kind, domain, day, mail.report_id, (), None)
            return False
        if len(fitting) != len(destinations):
            mail = await self._in_thread(made, fitting, now)
        identifier = self._next_id()
        own = OwnMail(
            identifier,
            now,
            self._settings.reporter.contact,
            mail.subject,
            mail.message_id,
            await self._signed(mail.octets) + mail.octets,
            tuple(each.address for each in fitting),
        )
        is_sent = await self._store.send(kind, domain, day, mail.report_id, [str(each) for each in own.recipients], own)
        if is_sent:
            log.debug("{kind} report about {domain}: {id}", kind=kind, domain=domain, id=encode_id(identifier))
        return is_sent

    async def _in_thread(
        self,
        made: Callable[[Sequence[Destination], float], ReportMail],
        destinations: Sequence[Destination],
        now: float,
    ) -> ReportMail:
        mail: ReportMail = await deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), made, destinations, now
        )
        return mail

    async def _signed(self, octets: bytes) -> bytes:
        """The signatures to put on top; b"" where our own domain has no keys."""
        if self._signing is None:
            return b""
        signed = self._signing.sign(MessageContent([octets], len(octets), b""))
        return (await signed if isinstance(signed, Deferred) else signed).fields
