"""`mailgate mailbox`: where mail is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import address_argument, readable, readable_address
from mailgate.cli.database import Database, Failure, Invocation, pass_invocation
from mailgate.cli.domain import id_of_domain, optional_domain, rows_within
from mailgate.cli.output import Column, count, json_option, print_list, print_note, size
from mailgate.cli.password import ask_for_password, store_password
from mailgate.cli.quantity import size_argument
from mailgate.envelope import Address


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox as it is now."""

    id: int
    address: str  # in U-form
    is_enabled: bool
    quota_octets: int | None
    messages: int
    octets: int
    created_at: datetime
    sending_limit: int | None

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            self.address,
            "enabled" if self.is_enabled else "disabled",
            f"{self.messages:,}",
            size(self.octets),
            "none" if self.quota_octets is None else size(self.quota_octets),
            "" if self.sending_limit is None else f"{self.sending_limit:,}",
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "address": self.address,
            "enabled": self.is_enabled,
            "quota_octets": self.quota_octets,
            "messages": self.messages,
            "octets": self.octets,
            "created_at": self.created_at,
            "sending_limit": self.sending_limit,
        }


def mailbox_at(database: Database, address: Address) -> Mailbox:
    """The mailbox of exactly that address.

    @raises Failure: there is none; the message says what the address is instead.
    """
    found = database.row("find_mailbox", domain=address.domain, local_part=address.local)
    shown = readable(address.local, address.domain)
    if found is not None:
        return Mailbox(found[0], shown, *found[1:])
    id_of_domain(database, address.domain)
    targets = _targets(database, address)
    if targets:
        raise Failure(f"{shown} is no mailbox but an alias of {', '.join(targets)}")
    raise Failure(f"there is no mailbox {shown}; `mailgate mailbox list` shows those there are")


def _targets(database: Database, address: Address) -> list[str]:
    """Where an alias of that address leads, apart from itself; nothing where there is none."""
    rows = database.rows("find_alias", domain=address.domain, local_part=address.local)
    return [readable_address(target) for (target,) in rows if target.lower() != str(address).lower()]


@click.group()
def mailbox() -> None:
    """The mailboxes that mail is kept in."""


@mailbox.command()
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.option(
    "--quota", "quota_octets", type=size_argument, metavar="SIZE", help="At most that much mail, such as 2GiB."
)
@pass_invocation
def add(invocation: Invocation, address: Address, quota_octets: int | None) -> None:
    """Keep mail for ADDRESS; its domain must be there."""
    shown = readable(address.local, address.domain)
    with invocation.database() as database:
        domain_id = id_of_domain(database, address.domain)
        if not database.run(
            "add_mailbox",
            domain_id=domain_id,
            local_part=address.local,
            quota_octets=quota_octets,
            is_enabled=None,
        ):
            raise Failure(f"{shown} is there already")
        targets = _targets(database, address)
    if targets:
        print_note(f"{shown} is an alias too, of {', '.join(targets)}: that is where its mail goes")
    click.echo(f"added {shown}")


@mailbox.command("list")
@optional_domain
@json_option
@pass_invocation
def list_(invocation: Invocation, domain: str | None, as_json: bool) -> None:
    """Show every mailbox, or those of one DOMAIN."""
    mailboxes = [
        Mailbox(id_, readable(local_part, name), *state)
        for id_, local_part, name, *state in rows_within(invocation, "list_mailboxes", domain)
    ]
    columns = (
        Column("ADDRESS"),
        Column("STATE"),
        Column("MESSAGES", is_number=True),
        Column("SIZE", is_number=True),
        Column("QUOTA", is_number=True),
        Column("SENDS A DAY", is_number=True),
    )
    note = "no mailboxes yet; add one with `mailgate mailbox add ADDRESS`"
    print_list(mailboxes, columns, as_json=as_json, note=note)


@mailbox.command("set")
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.option(
    "--quota", "quota_octets", type=size_argument, metavar="SIZE", help="At most that much mail, such as 2GiB."
)
@click.option("--no-quota", is_flag=True, help="Any amount of mail.")
@click.option(
    "--sending-limit",
    type=click.IntRange(0),
    metavar="N",
    help="Let it send to so many recipients a day (UTC), whatever the configuration says.",
)
@click.option("--no-sending-limit", is_flag=True, help="Let the limits of the configuration hold.")
@click.option("--enable/--disable", "is_enabled", default=None, help="Take mail for it and let it send, or don't.")
@click.option(
    "--password/--no-password",
    "has_password",
    default=None,
    help="Let its owner send with a password, which is asked for, or read from standard input; or no longer.",
)
@pass_invocation
def set_(
    invocation: Invocation,
    address: Address,
    quota_octets: int | None,
    no_quota: bool,
    sending_limit: int | None,
    no_sending_limit: bool,
    is_enabled: bool | None,
    has_password: bool | None,
) -> None:
    """Change the mailbox of ADDRESS; what is not named stays."""
    if quota_octets is not None and no_quota:
        raise click.UsageError("--quota and --no-quota exclude each other")
    if sending_limit is not None and no_sending_limit:
        raise click.UsageError("--sending-limit and --no-sending-limit exclude each other")
    changes_quota = no_quota or quota_octets is not None
    changes_sending_limit = no_sending_limit or sending_limit is not None
    if not changes_quota and not changes_sending_limit and is_enabled is None and has_password is None:
        raise click.UsageError("nothing to change; see `mailgate mailbox set --help`")
    with invocation.database() as database:
        found = mailbox_at(database, address)
        if has_password:
            store_password(database, found.id, address, "", ask_for_password(found.address))
        elif has_password is False and not database.run("remove_password", mailbox_id=found.id, name=""):
            raise Failure(f"{found.address} has no password of its own; see also `mailgate mailbox app-password list`")
        database.run(
            "set_mailbox",
            mailbox_id=found.id,
            changes_quota=changes_quota,
            quota_octets=quota_octets,
            changes_sending_limit=changes_sending_limit,
            sending_limit=sending_limit,
            is_enabled=is_enabled,
        )
    click.echo(f"changed {found.address}")


@mailbox.command()
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.option("--with-mail", is_flag=True, help="Remove the mail in it as well, for good.")
@pass_invocation
def remove(invocation: Invocation, address: Address, with_mail: bool) -> None:
    """Remove the mailbox of ADDRESS."""
    with invocation.database() as database, database.transaction():
        found = mailbox_at(database, address)
        database.rows("lock_mailbox", mailbox_id=found.id)
        ((messages,),) = database.rows("count_deliveries", mailbox_id=found.id)
        if messages and not with_mail:
            raise Failure(
                f"{found.address} holds {count(messages, 'message')}: export them with `mailgate export`, or remove"
                " them as well with --with-mail"
            )
        database.run("remove_deliveries", mailbox_id=found.id)
        database.run("remove_mailbox", mailbox_id=found.id)
        aliases = [readable(*row) for row in database.rows("aliases_to", target=str(address))]
    click.echo(f"removed {found.address}" + (f" and {count(messages, 'message')}" if messages else ""))
    if aliases:
        print_note(f"still leading there: {', '.join(aliases)}; see `mailgate alias remove`")
