"""`mailgate check-config`: whether a configuration would be taken, without starting anything."""

from __future__ import annotations

from pathlib import Path

import click

from mailgate.config import load_config
from mailgate.toml import ConfigError


@click.command("check-config", short_help="Check a configuration file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def check_config(context: click.Context, file: Path) -> None:
    """Check a configuration FILE: a line a fault, exit status 1; certificates and keys are opened."""
    try:
        load_config(file)
    except ConfigError as error:
        for fault in error.faults:
            click.echo(str(fault), err=True)
        context.exit(1)
    click.echo(f"{file}: in order")
