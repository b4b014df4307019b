"""`mailgate tls`: how TLS to our domains went by the reports of others, and what we report about theirs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import click

from mailgate.cli.address import domain_argument, readable_domain
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.domain import id_of_domain, optional_domain
from mailgate.cli.output import Column, json_option, local_time, print_list
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
from mailgate.reports import tls_report
from mailgate.reports.outgoing import tls_report_of
from mailgate.storage.reports import AT_MOST_ROWS


@dataclass(frozen=True, slots=True)
class Reported:
    """What one organization saw of TLS to a domain of ours in one report."""

    organization: str
    begins_at: datetime
    ends_at: datetime
    successes: int
    failures: int
    policies: list[dict[str, Any]]  # Any: JSON
    authenticated_as: str | None

    def _problems(self) -> list[str]:
        totals: dict[str, int] = {}
        for policy in self.policies:
            for each in policy.get("details", ()):
                name = f"{each['result_type']} at {each['receiving_host'] or '?'}"
                totals[name] = totals.get(name, 0) + each["sessions"]
        return [f"{name} ({sessions})" for name, sessions in sorted(totals.items(), key=lambda item: -item[1])]

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            local_time(self.begins_at),
            self.organization,
            ", ".join(sorted({policy.get("policy_type", "") for policy in self.policies})),
            str(self.successes),
            str(self.failures),
            "; ".join(self._problems()),
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "organization": self.organization,
            "begins_at": self.begins_at,
            "ends_at": self.ends_at,
            "successes": self.successes,
            "failures": self.failures,
            "policies": self.policies,
            "authenticated_as": self.authenticated_as,
        }


@click.group()
def tls() -> None:
    """TLS reports: how encrypted our domains' mail comes, and what we tell others."""


@tls.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@since_option
@all_option
@json_option
@pass_invocation
def show(invocation: Invocation, domain: str, since: datetime, shows_all: bool, as_json: bool) -> None:
    """Show how TLS to DOMAIN went, by the reports that came, the newest last."""
    with invocation.database() as database:
        id_of_domain(database, domain)
        rows = database.rows("list_tls_reports", domain=domain, since=since, shows_all=shows_all)
        note_unproven(database, "count_unproven_tls", domain, since, shows_all)
    columns = (
        Column("FROM"),
        Column("REPORTED BY"),
        Column("POLICY"),
        Column("GOOD", is_number=True),
        Column("FAILED", is_number=True),
        Column("PROBLEMS", is_flexible=True),
    )
    note = (
        f"no TLS reports about {readable_domain(domain)} since {local_time(since)}; they come to the address that the"
        f" TXT record at _smtp._tls.{readable_domain(domain)} names, if that is a mailbox here"
    )
    print_list([Reported(*row) for row in rows], columns, as_json=as_json, note=note)


@tls.command()
@optional_domain
@preview_option
@day_option
@json_option
@pass_invocation
def report(invocation: Invocation, domain: str | None, preview: bool, day: date | None, as_json: bool) -> None:
    """Show the TLS reports that we have sent to other domains, or with --preview what one would say.

    A running mailgate sends them, once a day.
    """
    if not preview:
        print_sent(invocation, "tls", domain, day, as_json=as_json)
        return
    if domain is None:
        raise click.UsageError("--preview needs a DOMAIN")
    day = day or yesterday()
    reporter = reporter_of(invocation)
    with invocation.database() as database:
        rows = database.rows("preview_tls_results", day=day, domain=domain, at_most=AT_MOST_ROWS)
    if not rows:
        raise Failure(f"no TLS with {readable_domain(domain)} was counted on {day.isoformat()}")
    click.echo(tls_report.write(tls_report_of(reporter, domain, day, rows)).decode("ascii"))
