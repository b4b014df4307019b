"""The `mailgate` command: its own options, and the commands, one file a topic.

Exit status: 0, 1 where a command failed, 2 where it was called wrongly.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click

from mailgate.cli import (
    alias,
    app_password,
    ban,
    check,
    dkim,
    dmarc,
    domain,
    domain_records,
    explain,
    exporting,
    grant,
    importing,
    inbox,
    lookup,
    mailbox,
    queue,
    record,
    schema,
    send,
    show,
    suppression,
    tls_report,
)
from mailgate.cli.database import Invocation


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The configuration; else $MAILGATE_CONFIG, the running mailgate's, or /etc/mailgate/mailgate.toml.",
)
@click.version_option(package_name="mailgate", prog_name="mailgate", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Look after a mailgate: who gets mail here, what came, and what was refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark
    context.obj = Invocation(config)


def _take_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.obj = Invocation(value)


def _allow_config_behind(command: click.Command) -> None:
    """Let --config stand behind the command too, where people often put it."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _allow_config_behind(below)
    command.params.append(
        click.Option(
            ["-c", "--config"],
            type=click.Path(path_type=Path, dir_okay=False),
            callback=_take_config,
            expose_value=False,
            hidden=True,
        )
    )


domain.domain.add_command(domain_records.records)
mailbox.mailbox.add_command(app_password.app_password)

for command in (
    check.check_config,
    schema.db,
    domain.domain,
    dkim.dkim,
    mailbox.mailbox,
    alias.alias,
    grant.grant,
    send.send,
    ban.ban,
    inbox.inbox,
    show.show,
    explain.explain,
    exporting.export,
    importing.import_,
    record.sessions,
    record.refusals,
    lookup.lookup,
    queue.queue,
    dmarc.dmarc,
    tls_report.tls,
    suppression.suppression,
):
    _allow_config_behind(command)
    main.add_command(command)
