"""`mailgate mailbox app-password`: a password for each program, made here, and taken back alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.accounts.passwords import make_app_password
from mailgate.cli.address import address_argument
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.mailbox import mailbox_at
from mailgate.cli.output import Column, clean, json_line, json_option, local_time, print_list, print_note
from mailgate.cli.password import store_password
from mailgate.envelope import Address

_MAX_NAME_CHARS = 60
_MAX_PASSWORDS = 50  # of one account: a SCRAM login tries each


@dataclass(frozen=True, slots=True)
class AppPassword:
    """An app password as it is now; the password itself is nowhere any more."""

    name: str
    created_at: datetime
    last_used_at: datetime | None
    last_used_from: str | None

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            self.name,
            local_time(self.created_at),
            "never" if self.last_used_at is None else local_time(self.last_used_at),
            self.last_used_from or "",
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "name": self.name,
            "created_at": self.created_at,
            "last_used_at": self.last_used_at,
            "last_used_from": self.last_used_from,
        }


@click.group("app-password")
def app_password() -> None:
    """Passwords for single programs, beside the account's own."""


@app_password.command()
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.argument("name", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@pass_invocation
def add(invocation: Invocation, address: Address, name: str, as_json: bool) -> None:
    """Make a password for ADDRESS and show it, this once; NAME says what it is for, such as "phone"."""
    if not name or name != clean(name) or len(name) > _MAX_NAME_CHARS:
        raise click.BadParameter(f"a name has 1 to {_MAX_NAME_CHARS} characters that can be shown", param_hint="NAME")
    password = make_app_password()
    with invocation.database() as database:
        found = mailbox_at(database, address)
        if len(database.rows("list_app_passwords", mailbox_id=found.id)) >= _MAX_PASSWORDS:
            raise Failure(
                f"{found.address} has {_MAX_PASSWORDS} app passwords, and that is all that an account may have"
            )
        if not store_password(database, found.id, address, name, password.encode()):
            raise Failure(f"{found.address} has an app password {name!r} already; remove it, or use another name")
    if as_json:
        click.echo(json_line({"address": found.address, "name": name, "password": password}))
        return
    print_note(f"the password of {found.address} for {name!r}, which is not shown again:")
    click.echo(password)


@app_password.command("list")
@click.argument("address", metavar="ADDRESS", type=address_argument)
@json_option
@pass_invocation
def list_(invocation: Invocation, address: Address, as_json: bool) -> None:
    """Show the app passwords of ADDRESS, and when and from where each was used last."""
    with invocation.database() as database:
        found = mailbox_at(database, address)
        passwords = [AppPassword(*row) for row in database.rows("list_app_passwords", mailbox_id=found.id)]
    columns = (Column("NAME", is_flexible=True), Column("MADE"), Column("LAST USED"), Column("FROM"))
    note = (
        f"{found.address} has no app passwords; make one with `mailgate mailbox app-password add {found.address} NAME`"
    )
    print_list(passwords, columns, as_json=as_json, note=note)


@app_password.command()
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.argument("name", metavar="NAME")
@pass_invocation
def remove(invocation: Invocation, address: Address, name: str) -> None:
    """Take the app password NAME back; whoever uses it is not let in any more."""
    with invocation.database() as database:
        found = mailbox_at(database, address)
        if not name or not database.run("remove_password", mailbox_id=found.id, name=name):
            raise Failure(f"{found.address} has no app password {name!r}; see `mailgate mailbox app-password list`")
    click.echo(f"removed {name} of {found.address}")
