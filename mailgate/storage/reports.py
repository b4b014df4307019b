r"""Reports in the database: what ours are to say, that one was sent, and those that came.

A report of ours is made from `dmarc_day` or `tls_result`. It is sent and noted in one transaction; whichever node comes
second finds the note, and sends nothing. A report that came is kept once, if it is about a domain of ours.

Standards: RFC 9990 (DMARC), RFC 8460 (TLS); RFC 1035 section 5.1 (`\\DDD` in records).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mailgate.smtp.grammar import domain_key, local_key
from mailgate.storage import literal
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from mailgate.envelope import Address
    from mailgate.reports.dmarc_report import DmarcReport, ReportRow
    from mailgate.reports.tls_report import TlsPolicyReport, TlsReport
    from mailgate.storage.pool import Connection, Pool, Row

_TIMEOUT_SECONDS = 60.0
_COUNTING_SECONDS = 600.0  # a day of a busy node, grouped
_AT_MOST_DOMAINS = 200
AT_MOST_ROWS = 10_000
# Of DMARC reports that one domain proves to have sent, or nobody: the next report is not kept. A report of 50,000 rows
# is a message of some 50 KB, and anybody may write one.
MAX_ROWS_A_DAY = 200_000


@dataclass(frozen=True, slots=True)
class DmarcDomain:
    """A domain that a day's mail was from."""

    name: str
    messages: int
    passed: int
    record: bytes | None  # the DMARC record as published; None where it is not kept any more


@dataclass(frozen=True, slots=True)
class OwnMail:
    """A message of ours as it leaves, signed, from the null path."""

    id: int
    made_at: float  # seconds since the epoch
    header_from: str
    subject: str
    message_id: str
    octets: bytes
    recipients: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class PossibleReport:
    """A message that may bring a report. `results` are the transaction's."""

    received_at: float
    results: tuple[dict[str, Any], ...]  # Any: JSON, as mailgate.storage.evidence wrote it
    octets: bytes


class ReportStore:
    """All that reports need of the database."""

    def __init__(self, pool: Pool | Connection) -> None:
        """`pool` is not the writer's, and its setup is `literal.settle`."""
        self._pool = pool

    # ------------------------------------------------------------ ours

    async def collect(self, day: date) -> bool:
        """Count the record of that day, unless that was done. False where another node is at it."""
        ((is_done,),) = await self._execute("collect_dmarc_day", _COUNTING_SECONDS, day=literal.text(day.isoformat()))
        return bool(is_done)

    async def dmarc_domains(self, day: date, after: str) -> list[DmarcDomain]:
        """The next domains behind `after` for which a report of that day was not made yet; [] at the end."""
        rows = await self._execute("list_dmarc_domains", **_page(day, after))
        return [DmarcDomain(name, messages, passed, dmarc_record(records)) for name, messages, passed, records in rows]

    async def dmarc_rows(self, day: date, domain: str) -> list[Row]:
        """Rows of `dmarc_day`, for `mailgate.reports.outgoing.report_rows`."""
        return await self._execute(
            "list_dmarc_rows",
            day=literal.text(day.isoformat()),
            domain=literal.text(domain),
            at_most=str(AT_MOST_ROWS),
        )

    async def tls_domains(self, day: date, after: str) -> list[str]:
        """As `dmarc_domains`, for TLS reports."""
        return [name for (name,) in await self._execute("list_tls_domains", **_page(day, after))]

    async def tls_results(self, day: date, domain: str) -> list[Row]:
        """Rows of `tls_result`, for `mailgate.reports.outgoing.tls_policies`."""
        return await self._execute(
            "list_tls_results",
            day=literal.text(day.isoformat()),
            domain=literal.text(domain),
            at_most=str(AT_MOST_ROWS),
        )

    async def send(
        self, kind: str, domain: str, day: date, report_id: str, addresses: Sequence[str], mail: OwnMail | None
    ) -> bool:
        """Send it and note it: one transaction. None: only note that nobody could be told.

        False, and nothing done, where a report of that kind, domain and day is noted already.
        """
        recipients = () if mail is None else mail.recipients
        statement = QUERIES["send_report"] % {
            b"kind": _text(kind),
            b"domain": _text(domain),
            b"day": _text(day.isoformat()),
            b"report_id": _text(report_id),
            b"addresses": literal.encoded(literal.text_array(addresses)),
            b"id": b"0" if mail is None else str(mail.id).encode("ascii"),
            b"now": b"0" if mail is None else repr(float(mail.made_at)).encode("ascii"),
            b"header_from": _text("" if mail is None else mail.header_from),
            b"subject": _text("" if mail is None else mail.subject),
            b"header_message_id": _text("" if mail is None else mail.message_id),
            b"content": literal.octets(b"" if mail is None else mail.octets),
            b"sha256": literal.octets(hashlib.sha256(b"" if mail is None else mail.octets).digest()),
            b"recipients": literal.encoded(literal.text_array(map(str, recipients))),
            b"local_keys": literal.encoded(literal.text_array(local_key(each.local) for each in recipients)),
            b"domains": literal.encoded(literal.text_array(domain_key(each.domain) for each in recipients)),
        }
        ((is_sent,),) = await self._pool.execute(statement, timeout_seconds=_TIMEOUT_SECONDS)
        return bool(is_sent)

    # ------------------------------------------------------------ theirs

    async def possible_reports(self, first: int, before: int, max_octets: int) -> tuple[list[int], int | None]:
        """Some messages that may bring reports, and the id that was looked at last; None at the end."""
        rows = await self._execute(
            "find_possible_reports",
            first=str(first),
            before=str(before),
            at_most="2000",
            max_octets=str(max_octets),
        )
        return [row[0] for row in rows if row[2]], rows[-1][0] if rows else None

    async def possible_report(self, message_id: int) -> PossibleReport | None:
        """That message; None where it is gone."""
        rows = await self._execute("read_possible_report", id=str(message_id))
        if not rows:
            return None
        ((received_at, results, octets),) = rows
        return PossibleReport(received_at, tuple(results or ()), bytes(octets))

    async def looked_at(self, message_id: int) -> None:
        """The search has come to that message."""
        await self._execute("move_report_cursor", message_id=str(message_id))

    async def keep(self, statement: bytes) -> None:
        """Keep a report: what `dmarc_statement` or `tls_statement` says."""
        await self._pool.execute(statement, timeout_seconds=_TIMEOUT_SECONDS)

    async def forget(self, before: float, now: float) -> None:
        """Remove reports that end before that time (seconds since the epoch), and counts that nobody needs any more."""
        await self._execute("forget_reports", before=repr(float(before)), now=repr(float(now)))

    async def _execute(self, name: str, timeout_seconds: float = _TIMEOUT_SECONDS, /, **values: str) -> list[Row]:
        return await self._pool.execute(_statement(name, **values), timeout_seconds=timeout_seconds)


def dmarc_statement(report: DmarcReport, message_id: int, received_at: float, authenticated_as: str | None) -> bytes:
    """What keeps that report, if it is about a domain of ours and not there yet. Of many rows, it takes time."""
    rows = report.rows
    policy = {name: text for name, text in asdict(report.policy).items() if text}
    return _statement(
        "keep_dmarc_report",
        rows_a_day=str(MAX_ROWS_A_DAY),
        **_origin(report, message_id, received_at, authenticated_as),
        domain=literal.text(report.policy.domain),
        contact=literal.text(report.contact),
        policy=literal.text(_json(policy)),
        row_position=literal.number_array(range(len(rows))),
        row_source=literal.text_array(row.source for row in rows),
        row_messages=literal.number_array(row.messages for row in rows),
        row_disposition=literal.text_array(row.disposition for row in rows),
        row_dkim=literal.text_array(row.dkim for row in rows),
        row_spf=literal.text_array(row.spf for row in rows),
        row_reasons=literal.text_array(_array([f"{a}: {b}" if b else a for a, b in row.reasons]) for row in rows),
        row_header_from=literal.text_array(row.header_from for row in rows),
        row_envelope_from=literal.text_array(row.envelope_from for row in rows),
        row_envelope_to=literal.text_array(row.envelope_to for row in rows),
        row_results=literal.text_array(_json(_results(row)) for row in rows),
    )


def tls_statement(
    report: TlsReport,
    domain: str,
    policies: Sequence[TlsPolicyReport],
    message_id: int,
    received_at: float,
    authenticated_as: str | None,
) -> bytes:
    """What keeps that report's policies of one domain, if that is ours and they are not there yet."""
    return _statement(
        "keep_tls_report",
        **_origin(report, message_id, received_at, authenticated_as),
        domain=literal.text(domain),
        successes=str(sum(policy.successes for policy in policies)),
        failures=str(sum(policy.failures for policy in policies)),
        policies=literal.text(_json([asdict(policy) for policy in policies])),
    )


def _statement(name: str, **values: str) -> bytes:
    return QUERIES[name] % {key.encode("ascii"): literal.encoded(value) for key, value in values.items()}


def _page(day: date, after: str) -> dict[str, str]:
    return {
        "day": literal.text(day.isoformat()),
        "after": literal.text(after),
        "at_most": str(_AT_MOST_DOMAINS),
    }


def _origin(
    report: DmarcReport | TlsReport, message_id: int, received_at: float, authenticated_as: str | None
) -> dict[str, str]:
    return {
        "organization": literal.text(report.organization),
        "report_id": literal.text(report.report_id),
        "begins_at": repr(float(report.begins_at)),
        "ends_at": repr(float(report.ends_at)),
        "message_id": str(message_id),
        "received_at": repr(float(received_at)),
        "authenticated_as": literal.text(authenticated_as),
    }


def _results(row: ReportRow) -> list[dict[str, str]]:
    return [
        *({"kind": "dkim", **asdict(each)} for each in row.dkim_results),
        *({"kind": "spf", **asdict(each)} for each in row.spf_results),
    ]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _array(values: Sequence[str]) -> str:
    """A text[] as PostgreSQL writes it."""
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"


def _text(value: str) -> bytes:
    return literal.encoded(literal.text(value))


_ESCAPED = re.compile(rb"\\([0-9]{3})")


def dmarc_record(records: Sequence[str] | None) -> bytes | None:
    """The DMARC record among those of a dns_answer row, as it was published; None where there is none."""
    for record in records or ():
        octets = _ESCAPED.sub(lambda match: bytes((int(match[1]) & 255,)), record.encode("utf-8"))
        if octets[:8].replace(b" ", b"").lower().startswith(b"v=dmarc1"):
            return octets
    return None
