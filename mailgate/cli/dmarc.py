"""`mailgate dmarc`: what others report about our domains, and what we report about theirs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import click

from mailgate.cli.address import domain_argument, readable_domain
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.domain import id_of_domain, optional_domain
from mailgate.cli.output import Column, json_option, local_time, print_list, print_note
from mailgate.cli.reported import (
    all_option,
    day_option,
    note_unproven,
    preview_option,
    print_sent,
    reporter_of,
    since_option,
    yesterday,
)
from mailgate.reports import dmarc_report
from mailgate.reports.outgoing import asks_for_reports, dmarc_report_of
from mailgate.storage.reports import AT_MOST_ROWS, dmarc_record


@dataclass(frozen=True, slots=True)
class Source:
    """A host that sends as a domain of ours, as others saw it."""

    source: str
    messages: int
    passed: int
    dkim: int
    spf: int
    refused: int  # refused or quarantined
    reporters: tuple[str, ...]
    domains: tuple[str, ...]  # for which it signed or was a reverse-path of, and passed
    last_at: datetime

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            self.source,
            str(self.messages),
            str(self.passed),
            str(self.messages - self.passed),
            str(self.dkim),
            str(self.spf),
            str(self.refused),
            ", ".join(self.domains),
            ", ".join(self.reporters),
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "source": self.source,
            "messages": self.messages,
            "passed": self.passed,
            "failed": self.messages - self.passed,
            "aligned_dkim": self.dkim,
            "aligned_spf": self.spf,
            "refused_or_quarantined": self.refused,
            "authenticated_domains": list(self.domains),
            "reporters": list(self.reporters),
            "last_at": self.last_at,
        }


@click.group()
def dmarc() -> None:
    """DMARC reports: who sends as our domains, and what we tell others."""


@dmarc.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@since_option
@all_option
@json_option
@pass_invocation
def show(invocation: Invocation, domain: str, since: datetime, shows_all: bool, as_json: bool) -> None:
    """Show which hosts sent as DOMAIN and what is below it, by the reports that came."""
    with invocation.database() as database:
        id_of_domain(database, domain)
        rows = database.rows("dmarc_sources", domain=domain, since=since, shows_all=shows_all)
        note_unproven(database, "count_unproven_dmarc", domain, since, shows_all)
    sources = [
        Source(source, messages, passed, dkim, spf, refused, tuple(reporters), tuple(domains), last_at)
        for source, messages, passed, dkim, spf, refused, reporters, domains, last_at in rows
    ]
    columns = (
        Column("SOURCE"),
        Column("MESSAGES", is_number=True),
        Column("PASS", is_number=True),
        Column("FAIL", is_number=True),
        Column("DKIM", is_number=True),
        Column("SPF", is_number=True),
        Column("REFUSED", is_number=True),
        Column("AUTHENTICATED AS", is_flexible=True),
        Column("REPORTED BY", is_flexible=True),
    )
    note = (
        f"no reports about {readable_domain(domain)} since {local_time(since)}; they come to the address that"
        f" rua= of its DMARC record names, if that is a mailbox here"
    )
    print_list(sources, columns, as_json=as_json, note=note)


@dmarc.command()
@optional_domain
@preview_option
@day_option
@json_option
@pass_invocation
def report(invocation: Invocation, domain: str | None, preview: bool, day: date | None, as_json: bool) -> None:
    """Show the reports that we have sent to other domains, or with --preview what one would say.

    A running mailgate sends them, once a day. With --preview and no DOMAIN, show which domains would be told.
    """
    if not preview:
        print_sent(invocation, "dmarc", domain, day, as_json=as_json)
        return
    day = day or yesterday()
    if domain is None:
        _print_domains(invocation, day, as_json=as_json)
    elif as_json:
        raise click.UsageError("a report is XML; --json is for lists")
    else:
        click.echo(_preview(invocation, domain, day).decode("utf-8"), nl=False)


@dataclass(frozen=True, slots=True)
class Preview:
    """A domain that a day's mail was from."""

    domain: str
    messages: int
    passed: int
    wants: tuple[str, ...]  # the URIs of rua

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (readable_domain(self.domain), str(self.messages), str(self.passed), ", ".join(self.wants))

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {"domain": self.domain, "messages": self.messages, "passed": self.passed, "rua": list(self.wants)}


def _print_domains(invocation: Invocation, day: date, *, as_json: bool) -> None:
    with invocation.database() as database:
        rows = database.rows("preview_dmarc_domains", day=day, domain=None)
    domains = []
    for name, messages, passed, records in rows:
        record = asks_for_reports(dmarc_record(records))
        domains.append(Preview(name, messages, passed, () if record is None else record.rua))
    columns = (
        Column("DOMAIN"),
        Column("MESSAGES", is_number=True),
        Column("PASS", is_number=True),
        Column("ASKS FOR REPORTS TO", is_flexible=True),
    )
    print_list(domains, columns, as_json=as_json, note=f"no mail of {day.isoformat()} was from a domain with DMARC")


def _preview(invocation: Invocation, domain: str, day: date) -> bytes:
    reporter = reporter_of(invocation)
    shown = readable_domain(domain)
    with invocation.database() as database:
        found = database.row("preview_dmarc_domains", day=day, domain=domain)
        rows = database.rows("preview_dmarc_rows", day=day, domain=domain, at_most=AT_MOST_ROWS)
    if found is None:
        raise Failure(f"no mail of {day.isoformat()} was from a domain whose DMARC record is at {shown}")
    _, _, passed, records = found
    published = dmarc_record(records)
    record = asks_for_reports(published)
    if record is None:
        what = "is not kept any more" if published is None else "asks for no reports"
        raise Failure(f"the DMARC record of {shown} {what}, so there is no report")
    print_note(f"asked for by: {', '.join(record.rua)}; an address elsewhere is told only if it has agreed (RFC 9990)")
    if not passed and not invocation.config().reports.dmarc_without_pass:
        print_note("nothing passed, so it would not be sent; see dmarc_without_pass in [reports]")
    return dmarc_report.write(dmarc_report_of(reporter, domain, record, day, rows))
