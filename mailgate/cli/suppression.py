"""`mailgate suppression`: addresses elsewhere that are refused because mail to them failed for good."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from mailgate.cli.address import readable_address, target_argument
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.output import Column, json_option, local_time, print_list
from mailgate.cli.quantity import span_argument
from mailgate.envelope import Address


@dataclass(frozen=True, slots=True)
class Entry:
    """An address, and what was counted against it."""

    address: str
    failures: int
    suppressed_until: datetime | None
    last_failed_at: datetime
    last_reply: str

    def _is_refused(self) -> bool:
        return self.suppressed_until is not None and self.suppressed_until > datetime.now(UTC)

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            readable_address(self.address),
            str(self.failures),
            local_time(self.suppressed_until) if self.suppressed_until is not None and self._is_refused() else "",
            local_time(self.last_failed_at),
            self.last_reply,
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "address": self.address,
            "failures": self.failures,
            "refused": self._is_refused(),
            "suppressed_until": self.suppressed_until,
            "last_failed_at": self.last_failed_at,
            "last_reply": self.last_reply,
        }


_address = click.argument("address", metavar="ADDRESS", type=target_argument)


@click.group()
def suppression() -> None:
    """Addresses elsewhere that are refused for a while, because mail to them failed for good."""


@suppression.command("list")
@click.option("--all", "shows_all", is_flag=True, help="Also those that are only counted.")
@json_option
@pass_invocation
def list_(invocation: Invocation, shows_all: bool, as_json: bool) -> None:
    """Show the addresses that are refused now."""
    with invocation.database() as database:
        entries = [Entry(*row) for row in database.rows("list_suppressions", shows_all=shows_all)]
    columns = (
        Column("ADDRESS", is_flexible=True),
        Column("FAILURES", is_number=True),
        Column("REFUSED UNTIL"),
        Column("LAST FAILED"),
        Column("REPLY", is_flexible=True),
    )
    print_list(entries, columns, as_json=as_json, note="no addresses are suppressed")


@suppression.command()
@_address
@click.option("--for", "span", type=span_argument, default="14d", show_default=True, metavar="TIME", help="24h, 14d.")
@click.option("--reason", default="refused by the operator", show_default=True, help="What senders are told.")
@pass_invocation
def add(invocation: Invocation, address: Address, span: timedelta, reason: str) -> None:
    """Refuse mail to ADDRESS for some time; heeded where suppress_days in [outbound] is not 0."""
    with invocation.database() as database:
        database.run("add_suppression", address=str(address), until=datetime.now(UTC) + span, reason=reason)
    click.echo(f"refused {readable_address(str(address))}")


@suppression.command()
@_address
@pass_invocation
def remove(invocation: Invocation, address: Address) -> None:
    """Take mail to ADDRESS again, and forget what was counted against it."""
    shown = readable_address(str(address))
    with invocation.database() as database:
        if not database.run("remove_suppression", address=str(address)):
            raise Failure(f"{shown} is not suppressed; see `mailgate suppression list --all`")
    click.echo(f"removed {shown}")
