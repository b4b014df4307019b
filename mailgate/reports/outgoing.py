"""The reports that we send: made of what the database has counted, and put into messages.

Pure. `mailgate.reports.daily` sees to it that they are made, in a thread, since a large one takes a second;
`mailgate dmarc report --preview` shows them.

A DMARC report is about one record. Where a domain has changed its record within the day, the last one is told.

Standards: RFC 9990 sections 3.1 and 3.5, RFC 8460 sections 4 and 5.3, RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from mailgate.auth.dmarc_record import DmarcRecord, Psd, parse_record
from mailgate.composition import (
    Part,
    base64_lines,
    folded,
    header_field,
    multipart,
    text_part,
)
from mailgate.composition import date as date_text
from mailgate.reports import dmarc_report, tls_report
from mailgate.reports.dmarc_report import DkimAuthResult, DmarcReport, PublishedPolicy, ReportRow, SpfAuthResult
from mailgate.reports.tls_report import TlsFailure, TlsPolicyReport, TlsReport

if TYPE_CHECKING:
    from mailgate.envelope import Address

GENERATOR = "mailgate"
_DAY_SECONDS = 86_400
_REASONS = frozenset({"local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder"})


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: ourselves."""

    organization: str
    contact: str  # an address: From, and email in the report
    submitter: str  # a domain name: our host's


@dataclass(frozen=True, slots=True)
class ReportMail:
    """A report in a message that is not signed yet."""

    report_id: str
    subject: str
    message_id: str
    octets: bytes
    attached_octets: int


def begin_of(day: date) -> int:
    """The first second of that day in UTC, since the epoch."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def report_id(kind: str, domain: str, day: date) -> str:
    """An id that is the same whichever node makes the report."""
    return f"{day:%Y%m%d}.{kind}.{domain}"


# ---------------------------------------------------------------- DMARC


def dmarc_report_of(
    reporter: Reporter, domain: str, record: DmarcRecord, day: date, rows: Sequence[Sequence[Any]]
) -> DmarcReport:
    """The report of that day; `rows` are those of `list_dmarc_rows`."""
    begin = begin_of(day)
    return DmarcReport(
        reporter.organization,
        reporter.contact,
        report_id("dmarc", domain, day),
        begin,
        begin + _DAY_SECONDS - 1,
        PublishedPolicy(
            domain,
            record.p,
            record.sp or "",
            record.np or "",
            record.adkim,
            record.aspf,
            record.fo,
            "y" if record.is_testing else "n",
            "treewalk",
        ),
        tuple(_report_row(*row) for row in rows),
        generator=GENERATOR,
    )


def _report_row(
    source: str,
    messages: int,
    disposition: str,
    aligned_dkim: bool,
    aligned_spf: bool,
    header_from: str,
    envelope_from: str,
    reasons_json: str,
    results_json: str,
) -> ReportRow:
    reasons: list[dict[str, str | None]] = json.loads(reasons_json)
    results: list[dict[str, str]] = json.loads(results_json)
    return ReportRow(
        source,
        messages,
        disposition,
        "pass" if aligned_dkim else "fail",
        "pass" if aligned_spf else "fail",
        header_from,
        envelope_from,
        reasons=tuple(
            (kind if (kind := each.get("reason") or "other") in _REASONS else "other", each.get("comment") or "")
            for each in reasons
        ),
        dkim_results=tuple(
            DkimAuthResult(each["domain"], each["selector"], each["result"], each["problem"])
            for each in results
            if each["kind"] == "dkim"
        ),
        spf_results=tuple(SpfAuthResult(each["domain"], each["result"]) for each in results if each["kind"] == "spf"),
    )


def asks_for_reports(record: bytes | None) -> DmarcRecord | None:
    """The record, if it names anybody who wants aggregate reports; a public suffix is told nothing of its children."""
    parsed = None if record is None else parse_record(record)
    return parsed if parsed is not None and parsed.rua and parsed.psd is not Psd.YES else None


def dmarc_mail(reporter: Reporter, report: DmarcReport, recipients: Sequence[Address], made_at: float) -> ReportMail:
    """The report as a message."""
    domain = report.policy.domain
    messages = sum(row.messages for row in report.rows)
    failed = sum(row.messages for row in report.rows if "pass" not in (row.dkim, row.spf))
    packed = dmarc_report.compressed(dmarc_report.write(report))
    return _mail(
        reporter,
        recipients,
        made_at,
        report.report_id,
        dmarc_report.subject(reporter.submitter, domain, report.report_id),
        f"This is a DMARC aggregate report (RFC 9990) about mail from {domain} that came to\n"
        f"{reporter.submitter} on {_day_text(report.begins_at)}: {messages} messages, of which {failed} failed.\n",
        Part(
            "application/gzip",
            base64_lines(packed),
            "base64",
            file_name=dmarc_report.file_name(reporter.submitter, report),
        ),
        len(packed),
        subtype="mixed",
    )


# ---------------------------------------------------------------- TLS


def tls_report_of(reporter: Reporter, domain: str, day: date, rows: Sequence[Sequence[Any]]) -> TlsReport:
    """The report of that day; `rows` are those of `list_tls_results`."""
    policies: dict[tuple[str, str], list[Sequence[Any]]] = {}
    for row in rows:
        policies.setdefault((row[0], row[1]), []).append(row)
    begin = begin_of(day)
    return TlsReport(
        reporter.organization,
        reporter.contact,
        report_id("tls", domain, day),
        begin,
        begin + _DAY_SECONDS - 1,
        tuple(_tls_policy(domain, kind, policy, found) for (kind, policy), found in policies.items()),
    )


def _tls_policy(domain: str, kind: str, policy: str, rows: Sequence[Sequence[Any]]) -> TlsPolicyReport:
    lines = tuple(policy.splitlines())
    details = tuple(
        TlsFailure(result, sessions, sending, host, receiving, reason)
        for _, _, host, result, sending, receiving, sessions, reason in rows
        if result
    )
    mx_hosts = tuple(
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip().lower() == "mx"
    )
    return TlsPolicyReport(
        domain,
        kind,
        lines,
        mx_hosts if kind == "sts" else (),
        sum(row[6] for row in rows if not row[3]),
        sum(row[6] for row in rows if row[3]),
        details,
    )


def tls_mail(
    reporter: Reporter, domain: str, day: date, report: TlsReport, recipients: Sequence[Address], made_at: float
) -> ReportMail:
    """The report as a message."""
    packed = dmarc_report.compressed(tls_report.write(report))
    good, bad = (sum(getattr(each, name) for each in report.policies) for name in ("successes", "failures"))
    return _mail(
        reporter,
        recipients,
        made_at,
        report.report_id,
        dmarc_report.subject(reporter.submitter, domain, report.report_id),
        f"This is a TLS report (RFC 8460) about mail that {reporter.submitter} sent to {domain} on\n"
        f"{_day_text(report.begins_at)}: {good} sessions went well, {bad} failed.\n",
        Part(
            "application/tlsrpt+gzip",
            base64_lines(packed),
            "base64",
            file_name=tls_report.file_name(reporter.submitter, domain, day, report.report_id),
        ),
        len(packed),
        subtype="report",
        parameters=" report-type=tlsrpt;",
        # A report of TLS that fails must not fail with it: RFC 8460 section 3, RFC 8689 section 3.
        more=(
            folded("TLS-Report-Domain", domain),
            folded("TLS-Report-Submitter", reporter.submitter),
            b"TLS-Required: No\r\n",
        ),
    )


# ---------------------------------------------------------------- both


def _mail(
    reporter: Reporter,
    recipients: Sequence[Address],
    made_at: float,
    identifier: str,
    subject: str,
    text: str,
    attachment: Part,
    attached_octets: int,
    *,
    subtype: str,
    parameters: str = "",
    more: Sequence[bytes] = (),
) -> ReportMail:
    message_id = f"<{identifier}@{reporter.submitter}>"
    content_type, body = multipart(subtype, parameters, (text_part(text), attachment), message_id)
    fields = [
        folded("Date", date_text(made_at)),
        folded("From", f"<{reporter.contact}>", "utf-8"),
        folded("To", ", ".join(f"<{address}>" for address in recipients), "utf-8"),
        header_field("Subject", subject),
        folded("Message-ID", message_id),
        *more,
        b"Auto-Submitted: auto-generated\r\n",
        b"MIME-Version: 1.0\r\n",
        f"Content-Type: {content_type}\r\n".encode("ascii"),
    ]
    return ReportMail(identifier, subject, message_id, b"".join(fields) + b"\r\n" + body, attached_octets)


def _day_text(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
