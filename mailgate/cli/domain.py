"""`mailgate domain`: the domains that mail is taken for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import address_argument, domain_argument, readable_address, readable_domain
from mailgate.cli.database import Database, Failure, Invocation, Row, pass_invocation
from mailgate.cli.output import Column, count, json_option, print_list
from mailgate.envelope import Address


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as it is now."""

    name: str
    is_enabled: bool
    catch_all: str | None
    plus_separator: str
    mailboxes: int
    aliases: int
    created_at: datetime

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            readable_domain(self.name),
            "enabled" if self.is_enabled else "disabled",
            str(self.mailboxes),
            str(self.aliases),
            self.plus_separator or "off",
            "" if self.catch_all is None else readable_address(self.catch_all),
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "domain": readable_domain(self.name),
            "a_form": self.name,
            "enabled": self.is_enabled,
            "catch_all": None if self.catch_all is None else readable_address(self.catch_all),
            "plus_separator": self.plus_separator,
            "mailboxes": self.mailboxes,
            "aliases": self.aliases,
            "created_at": self.created_at,
        }


def id_of_domain(database: Database, name: str) -> int:
    """The id of that domain.

    @raises Failure: it is not ours.
    """
    found = database.row("find_domain", name=name)
    if found is None:
        shown = readable_domain(name)
        raise Failure(f"{shown} is not one of our domains; add it with `mailgate domain add {shown}`")
    return int(found[0])


optional_domain = click.argument("domain", metavar="[DOMAIN]", required=False, type=domain_argument)


def rows_within(invocation: Invocation, query: str, domain: str | None) -> list[Row]:
    """The rows of that query, or only those of the domain that was typed.

    @raises Failure: it is not ours.
    """
    with invocation.database() as database:
        if domain is not None:
            id_of_domain(database, domain)
        return database.rows(query, domain=domain)


def _separator_argument(value: str) -> str:
    """The plus separator that was typed.

    @raises click.BadParameter: it can't be one.
    """
    if value and (len(value) != 1 or value.isalnum() or not value.isprintable() or value in ' @%!.,;:<>()[]"\\'):
        raise click.BadParameter(f'{value!r} is not a single character such as "+" or "-", or "" for none')
    return value


@click.group()
def domain() -> None:
    """The domains that mail is taken for."""


@domain.command()
@click.argument("name", metavar="DOMAIN", type=domain_argument)
@click.option("--catch-all", type=address_argument, metavar="ADDRESS", help="Who gets mail for unknown local parts.")
@click.option(
    "--plus-separator",
    type=_separator_argument,
    metavar="CHARACTER",
    help='What sets off the detail in alice+detail; "" for none.  [default: +]',
)
@pass_invocation
def add(invocation: Invocation, name: str, catch_all: Address | None, plus_separator: str | None) -> None:
    """Take mail for DOMAIN, a name in A- or U-form or an address literal such as "[192.0.2.1]"."""
    with invocation.database() as database:
        if not database.run(
            "add_domain",
            name=name,
            catch_all=None if catch_all is None else str(catch_all),
            plus_separator=plus_separator,
            is_enabled=None,
        ):
            raise Failure(f"{readable_domain(name)} is there already")
    click.echo(f"added {readable_domain(name)}")


@domain.command("list")
@json_option
@pass_invocation
def list_(invocation: Invocation, as_json: bool) -> None:
    """Show every domain."""
    with invocation.database() as database:
        domains = [Domain(*row) for row in database.rows("list_domains")]
    columns = (
        Column("DOMAIN"),
        Column("STATE"),
        Column("MAILBOXES", is_number=True),
        Column("ALIASES", is_number=True),
        Column("PLUS"),
        Column("CATCH-ALL"),
    )
    print_list(domains, columns, as_json=as_json, note="no domains yet; add one with `mailgate domain add DOMAIN`")


@domain.command("set")
@click.argument("name", metavar="DOMAIN", type=domain_argument)
@click.option("--catch-all", type=address_argument, metavar="ADDRESS", help="Who gets mail for unknown local parts.")
@click.option("--no-catch-all", is_flag=True, help="Refuse mail for unknown local parts.")
@click.option(
    "--plus-separator",
    type=_separator_argument,
    metavar="CHARACTER",
    help='What sets off the detail in alice+detail; "" for none.',
)
@click.option("--enable/--disable", "is_enabled", default=None, help="Take mail for it, or don't.")
@pass_invocation
def set_(
    invocation: Invocation,
    name: str,
    catch_all: Address | None,
    no_catch_all: bool,
    plus_separator: str | None,
    is_enabled: bool | None,
) -> None:
    """Change a DOMAIN; what is not named stays."""
    if catch_all is not None and no_catch_all:
        raise click.UsageError("--catch-all and --no-catch-all exclude each other")
    if catch_all is None and not no_catch_all and plus_separator is None and is_enabled is None:
        raise click.UsageError("nothing to change; see `mailgate domain set --help`")
    with invocation.database() as database:
        id_of_domain(database, name)
        database.run(
            "set_domain",
            name=name,
            changes_catch_all=no_catch_all or catch_all is not None,
            catch_all=None if catch_all is None else str(catch_all),
            plus_separator=plus_separator,
            is_enabled=is_enabled,
        )
    click.echo(f"changed {readable_domain(name)}")


@domain.command()
@click.argument("name", metavar="DOMAIN", type=domain_argument)
@pass_invocation
def remove(invocation: Invocation, name: str) -> None:
    """Take no more mail for DOMAIN. Its aliases go with it; its mailboxes must be removed before."""
    shown = readable_domain(name)
    with invocation.database() as database, database.transaction():
        domain_id = id_of_domain(database, name)
        ((mailboxes,),) = database.rows("count_mailboxes_of_domain", domain_id=domain_id)
        if mailboxes:
            raise Failure(
                f"{shown} has {count(mailboxes, 'mailbox', 'mailboxes')}: remove them first with"
                f" `mailgate mailbox remove`, or only stop its mail with `mailgate domain set {shown} --disable`"
            )
        database.run("remove_aliases_of_domain", domain_id=domain_id)
        database.run("remove_domain", domain_id=domain_id)
    click.echo(f"removed {shown}")
