"""`mailgate db`: the database's schema."""

from __future__ import annotations

import click

from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.output import count
from mailgate.storage import migrate as migration
from mailgate.storage.errors import DatabaseRefused, StorageUnavailable


@click.group()
def db() -> None:
    """Look after the database's schema."""


@db.command()
@pass_invocation
def migrate(invocation: Invocation) -> None:
    """Bring the schema to the version that this mailgate works with."""
    with invocation.dsn() as dsn:
        try:
            applied = migration.migrate(dsn)
        except (DatabaseRefused, StorageUnavailable) as error:
            raise Failure(str(error)) from error
    if applied:
        click.echo(f"{count(len(applied), 'step')} applied; the schema has version {applied[-1]} now")
    else:
        click.echo(f"nothing to do: the schema has version {migration.EXPECTED_VERSION}")


@db.command()
@pass_invocation
def status(invocation: Invocation) -> None:
    """Say which version the schema has; exit status 1 where this mailgate can't work with it."""
    with invocation.database():
        click.echo(f"in order: the schema has version {migration.EXPECTED_VERSION}")
