"""What `mailgate dmarc` and `mailgate tls` have in common: options, and the reports that we have made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

from mailgate.cli.address import readable_domain
from mailgate.cli.database import Database, Invocation
from mailgate.cli.output import Column, count, local_time, print_list, print_note
from mailgate.cli.quantity import time_argument
from mailgate.reports.outgoing import Reporter


@dataclass(frozen=True, slots=True)
class Sent:
    """A report that we have made."""

    kind: str
    domain: str
    day: date
    report_id: str
    recipients: list[str]
    made_at: datetime

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            self.day.isoformat(),
            readable_domain(self.domain),
            ", ".join(self.recipients) or "nobody",
            local_time(self.made_at),
            self.report_id,
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "day": self.day.isoformat(),
            "domain": self.domain,
            "recipients": self.recipients,
            "made_at": self.made_at,
            "report_id": self.report_id,
        }


_SENT_COLUMNS = (Column("DAY"), Column("DOMAIN"), Column("TO", is_flexible=True), Column("MADE"), Column("REPORT"))
since_option = click.option(
    "--since", type=time_argument, default="30d", show_default=True, metavar="TIME", help="90m, 24h, 7d, or a date."
)
all_option = click.option(
    "--all", "shows_all", is_flag=True, help="Also reports of which nobody proved to be the sender."
)


def _date_argument(value: str) -> date:
    """The day that was typed.

    @raises click.BadParameter: it is none.
    """
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a day; write it as 2026-11-23") from error


preview_option = click.option(
    "--preview", is_flag=True, help="Print what the report of that day would say, and send nothing."
)
day_option = click.option(
    "--date", "day", type=_date_argument, metavar="DATE", help="The day in UTC.  [default: yesterday]"
)


def yesterday() -> date:
    """The day that reports are about now."""
    return datetime.now(UTC).date() - timedelta(days=1)


def reporter_of(invocation: Invocation) -> Reporter:
    """Who we are in reports, by the configuration."""
    # Imported here: it brings all of the service.
    from mailgate.settings import report_settings

    return report_settings(invocation.config()).reporter


def note_unproven(database: Database, query: str, domain: str, since: datetime, shows_all: bool) -> None:
    """Tell people that there are reports that were left out."""
    ((unproven,),) = database.rows(query, domain=domain, since=since)
    if unproven and not shows_all:
        print_note(
            f"{count(unproven, 'report')} left out, of which nobody proved to be the sender; see them with --all"
        )


def print_sent(invocation: Invocation, kind: str, domain: str | None, day: date | None, *, as_json: bool) -> None:
    """Print the reports of that kind, "dmarc" or "tls", that we have made."""
    with invocation.database() as database:
        sent = [Sent(*row) for row in database.rows("list_reports_sent", kind=kind, domain=domain, day=day)]
    print_list(sent, _SENT_COLUMNS, as_json=as_json, note="no reports have been made")
