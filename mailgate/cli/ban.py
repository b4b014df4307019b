"""`mailgate ban`: who may not authenticate for a while."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from mailgate.cli.address import address_argument, readable_address
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.output import Column, count, json_option, local_time, print_list
from mailgate.cli.quantity import span_argument


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a ban is for."""

    kind: str  # "network" or "account"
    text: str  # as the database has it

    def shown(self) -> str:
        """How people write it; a single address without its prefix length."""
        if self.kind == "account":
            return readable_address(self.text)
        network = ipaddress.ip_network(self.text)
        return str(network.network_address) if network.num_addresses == 1 else self.text


@dataclass(frozen=True, slots=True)
class Ban:
    """A network or an account, and what counts against it."""

    kind: str
    subject: str
    failures: int
    counted_since: datetime
    banned_until: datetime | None
    is_endless: bool
    reason: str | None

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        until = "" if self.banned_until is None else local_time(self.banned_until)
        return (
            self.kind,
            Subject(self.kind, self.subject).shown(),
            "lifted" if self.is_endless else until,
            str(self.failures),
            self.reason or "",
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "banned": self.banned_until is not None or self.is_endless,
            "banned_until": self.banned_until,
            "failures": self.failures,
            "counted_since": self.counted_since,
            "reason": self.reason,
        }


def subject_argument(value: str) -> Subject:
    """The address, network or account that was typed.

    @raises click.BadParameter: it is none of them.
    """
    try:
        return Subject("network", str(ipaddress.ip_network(value.strip(), strict=False)))
    except ValueError:
        pass
    try:
        return Subject("account", str(address_argument(value)))
    except click.BadParameter:
        raise click.BadParameter(
            f"{value!r} is neither a client nor an account; write it as 192.0.2.7, 2001:db8::/64 or alice@example.org"
        ) from None


@click.group()
def ban() -> None:
    """Who may not authenticate for a while, after failures or because somebody says so."""


@ban.command("list")
@click.option("--all", "with_counts", is_flag=True, help="Failures that have led to no ban, too.")
@json_option
@pass_invocation
def list_(invocation: Invocation, with_counts: bool, as_json: bool) -> None:
    """Show who is banned now, and until when."""
    with invocation.database() as database:
        bans = [Ban(*row) for row in database.rows("list_bans", with_counts=with_counts)]
    columns = (
        Column("KIND"),
        Column("WHO", is_flexible=True),
        Column("UNTIL"),
        Column("FAILURES", is_number=True),
        Column("REASON", is_flexible=True),
    )
    note = "nothing counts against anybody" if with_counts else "nobody is banned"
    print_list(bans, columns, as_json=as_json, note=note)


@ban.command()
@click.argument("subject", metavar="WHO", type=subject_argument)
@pass_invocation
def lift(invocation: Invocation, subject: Subject) -> None:
    """Let WHO in again, a client (every ban that holds for it), a network, or an account, and count from nothing."""
    with invocation.database() as database:
        is_account = subject.kind == "account"
        lifted = database.run(
            "lift_bans",
            account=subject.text if is_account else None,
            network=None if is_account else subject.text,
        )
    if not lifted:
        raise Failure(f"nothing counts against {subject.shown()}; see `mailgate ban list --all`")
    click.echo(
        f"lifted what counted against {subject.shown()}"
        + (f" ({count(lifted, 'entry', 'entries')})" if lifted > 1 else "")
    )


@ban.command()
@click.argument("subject", metavar="WHO", type=subject_argument)
@click.option("--for", "span", type=span_argument, metavar="TIME", help="So long, such as 2h or 7d; else until lifted.")
@click.option("--reason", default="by the operator", show_default=True, help="Why, for those who look later.")
@pass_invocation
def add(invocation: Invocation, subject: Subject, span: timedelta | None, reason: str) -> None:
    """Ban WHO, a client, a network or an account, from authenticating. Its mail for us is taken as before."""
    until = None if span is None else datetime.now(UTC) + span
    with invocation.database() as database:
        database.run("add_ban", kind=subject.kind, subject=subject.text, until=until, reason=reason)
    click.echo(f"banned {subject.shown()}" + ("" if until is None else f" until {local_time(until)}"))
