"""`mailgate alias`: addresses that lead to others, here or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import address_argument, readable, readable_address, target_argument
from mailgate.cli.database import Database, Failure, Invocation, Row, pass_invocation
from mailgate.cli.domain import id_of_domain, optional_domain, rows_within
from mailgate.cli.output import Column, count, json_option, print_list, print_note
from mailgate.envelope import Address


@dataclass(frozen=True, slots=True)
class Alias:
    """An alias as it is now."""

    address: str  # in U-form, as the targets
    targets: tuple[str, ...]
    created_at: datetime

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return self.address, ", ".join(self.targets)

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {"address": self.address, "targets": self.targets, "created_at": self.created_at}


def _targets(database: Database, address: Address) -> list[Row]:
    return database.rows("find_alias", domain=address.domain, local_part=address.local)


@click.group()
def alias() -> None:
    """Addresses that lead to others, here or elsewhere."""


@alias.command()
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.argument("targets", metavar="TARGET...", type=target_argument, nargs=-1, required=True)
@pass_invocation
def add(invocation: Invocation, address: Address, targets: tuple[Address, ...]) -> None:
    """Have mail for ADDRESS go to each TARGET; to those that it has already, targets are added."""
    shown = readable(address.local, address.domain)
    with invocation.database() as database, database.transaction():
        domain_id = id_of_domain(database, address.domain)
        added = 0
        for target in targets:
            added += database.run("add_alias_target", domain_id=domain_id, local_part=address.local, target=str(target))
        if not added:
            raise Failure(f"{shown} leads there already")
        mailbox = database.row("find_mailbox", domain=address.domain, local_part=address.local)
        all_targets = [target.lower() for (target,) in _targets(database, address)]
    if mailbox is not None and str(address).lower() not in all_targets:
        print_note(f"{shown} is a mailbox too, and gets no mail any more; add {shown} as a target to keep a copy there")
    click.echo(f"added {shown} with {count(added, 'target')}")


@alias.command("list")
@optional_domain
@json_option
@pass_invocation
def list_(invocation: Invocation, domain: str | None, as_json: bool) -> None:
    """Show every alias, or those of one DOMAIN."""
    aliases = [
        Alias(readable(local_part, name), tuple(map(readable_address, targets)), created_at)
        for local_part, name, targets, created_at in rows_within(invocation, "list_aliases", domain)
    ]
    note = "no aliases yet; add one with `mailgate alias add ADDRESS TARGET`"
    print_list(aliases, (Column("ADDRESS"), Column("TARGETS")), as_json=as_json, note=note)


@alias.command("set")
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.argument("targets", metavar="TARGET...", type=target_argument, nargs=-1, required=True)
@pass_invocation
def set_(invocation: Invocation, address: Address, targets: tuple[Address, ...]) -> None:
    """Have mail for ADDRESS go to these TARGETs and no others."""
    shown = readable(address.local, address.domain)
    with invocation.database() as database, database.transaction():
        domain_id = id_of_domain(database, address.domain)
        if not database.run("remove_alias", domain_id=domain_id, local_part=address.local, target=None):
            raise Failure(f"there is no alias {shown}; add it with `mailgate alias add`")
        for target in targets:
            database.run("add_alias_target", domain_id=domain_id, local_part=address.local, target=str(target))
    click.echo(f"changed {shown}")


@alias.command()
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.argument("targets", metavar="[TARGET]...", type=target_argument, nargs=-1)
@pass_invocation
def remove(invocation: Invocation, address: Address, targets: tuple[Address, ...]) -> None:
    """Remove the alias ADDRESS, or only these TARGETs of it."""
    shown = readable(address.local, address.domain)
    with invocation.database() as database, database.transaction():
        domain_id = id_of_domain(database, address.domain)
        for target in map(str, targets) if targets else (None,):
            if not database.run("remove_alias", domain_id=domain_id, local_part=address.local, target=target):
                what = f"{shown} does not lead to {target}" if target else f"there is no alias {shown}"
                raise Failure(what)
    click.echo(f"removed {shown}" if not targets else f"removed {count(len(targets), 'target')} of {shown}")
