"""`mailgate grant`: what an account may send as, beside its own address and the aliases that lead to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import address_argument, domain_argument, readable, readable_address
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.mailbox import mailbox_at
from mailgate.cli.output import Column, json_option, print_list
from mailgate.envelope import Address


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant as it is now."""

    mailbox: str  # in U-form, as the address
    address: str
    created_at: datetime

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return self.mailbox, self.address

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {"mailbox": self.mailbox, "address": self.address, "created_at": self.created_at}


def granted_argument(value: str) -> str:
    """The address that was typed, or "@" and a domain, as the database has it.

    @raises click.BadParameter: it is neither.
    """
    return f"@{domain_argument(value[1:])}" if value.startswith("@") else str(address_argument(value))


@click.group()
def grant() -> None:
    """What an account may send as, beside its own address and aliases."""


@grant.command()
@click.argument("mailbox", metavar="MAILBOX", type=address_argument)
@click.argument("address", metavar="ADDRESS", type=granted_argument)
@pass_invocation
def add(invocation: Invocation, mailbox: Address, address: str) -> None:
    """Let the account of MAILBOX send as ADDRESS, or as any address of a domain: @example.test."""
    with invocation.database() as database:
        found = mailbox_at(database, mailbox)
        if not database.run("add_grant", mailbox_id=found.id, address=address):
            raise Failure(f"{found.address} may send as {readable_address(address)} already")
    click.echo(f"{found.address} may send as {readable_address(address)}")


@grant.command("list")
@click.argument("mailbox", metavar="[MAILBOX]", type=address_argument, required=False)
@json_option
@pass_invocation
def list_(invocation: Invocation, mailbox: Address | None, as_json: bool) -> None:
    """Show every grant, or those of one MAILBOX."""
    with invocation.database() as database:
        mailbox_id = None if mailbox is None else mailbox_at(database, mailbox).id
        rows = database.rows("list_grants", mailbox_id=mailbox_id)
    grants = [
        Grant(readable(local_part, domain), readable_address(address), created_at)
        for local_part, domain, address, created_at in rows
    ]
    note = "no grants: an account sends as its own address and the aliases that lead to it"
    print_list(grants, (Column("MAILBOX"), Column("MAY SEND AS")), as_json=as_json, note=note)


@grant.command()
@click.argument("mailbox", metavar="MAILBOX", type=address_argument)
@click.argument("address", metavar="ADDRESS", type=granted_argument)
@pass_invocation
def remove(invocation: Invocation, mailbox: Address, address: str) -> None:
    """Take back that the account of MAILBOX may send as ADDRESS."""
    with invocation.database() as database:
        found = mailbox_at(database, mailbox)
        if not database.run("remove_grant", mailbox_id=found.id, address=address):
            raise Failure(
                f"{found.address} was not granted {readable_address(address)}; `mailgate grant list {found.address}`"
                " shows what it was"
            )
    click.echo(f"{found.address} may no longer send as {readable_address(address)}, unless it is one of its own")
