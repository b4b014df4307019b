"""`mailgate send`: hand in a message, as a program or a mail client would.

It goes where `mailgate-sendmail` sends, over mailgate's Unix socket or as sendmail.toml says, and by the same rules:
the account behind it may send as itself.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from mailgate.cli.database import Failure
from mailgate.cli.output import clean, count, json_line, json_option, print_error
from mailgate.outbound.plan import Result
from mailgate.submission.addresses import NotAnAddress, addresses_in, completed, with_domain
from mailgate.submission.client_settings import SettingsError, client_settings, read_settings
from mailgate.submission.composing import Attachment, compose
from mailgate.submission.handing_in import Request, hand_in, outgoing
from mailgate.submission.program_mail import Author, program_mail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailgate.outbound.plan import Delivery
    from mailgate.submission.client_settings import ClientSettings


@click.command()
@click.option("--from", "author", metavar="ADDRESS", help='Who it is from, as "Alice <alice@example.test>".')
@click.option(
    "--to", multiple=True, metavar="ADDRESS", help="Whom it is for; may be given several times, as the next two."
)
@click.option("--cc", multiple=True, metavar="ADDRESS", help="Who gets a copy.")
@click.option("--bcc", multiple=True, metavar="ADDRESS", help="Who gets a copy that nobody is told of.")
@click.option("-s", "--subject", default="", help="What it is about.")
@click.option("--text", help="What it says; by default what stands on standard input.")
@click.option(
    "--attach",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="A file to go along; may be given several times.",
)
@click.option(
    "--message",
    type=click.File("rb"),
    metavar="FILE",
    help='A whole message instead, "-" for standard input. Without --to, its header says whom it is for.',
)
@click.option("--require-tls", is_flag=True, help="Rather fail than let it cross the network unencrypted (REQUIRETLS).")
@click.option(
    "--settings",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Where to hand it in, instead of /etc/mailgate/sendmail.toml.",
)
@json_option
def send(
    author: str | None,
    to: tuple[str, ...],
    cc: tuple[str, ...],
    bcc: tuple[str, ...],
    subject: str,
    text: str | None,
    files: tuple[Path, ...],
    message: BinaryIO | None,
    require_tls: bool,
    settings: Path | None,
    as_json: bool,
) -> None:
    """Hand in a message to be delivered."""
    if message is not None and (subject or text is not None or files or cc):
        raise click.UsageError(
            "--message brings its own header and text; leave --subject, --text, --attach and --cc out"
        )
    if message is None and not (to or cc or bcc):
        raise click.UsageError("nobody to send to; use --to")
    try:
        server = client_settings() if settings is None else read_settings(settings)
        author = completed(author or getpass.getuser(), server.domain)
        sender = with_domain(author, server.domain)
        if message is not None:
            mail = program_mail(message.read(), Author(sender), server.domain)
            content = mail.octets()
            recipients = _completed((*to, *bcc), server) if to or bcc else mail.recipients()
        else:
            content = compose(
                author=author,
                to=[completed(words, server.domain) for words in to],
                cc=[completed(words, server.domain) for words in cc],
                subject=subject,
                text=sys.stdin.read() if text is None else text,
                attachments=[Attachment(path.name, path.read_bytes()) for path in files],
            )
            recipients = _completed((*to, *cc, *bcc), server)
    except SettingsError as error:
        raise Failure(str(error)) from error
    except NotAnAddress as error:
        raise click.UsageError(str(error)) from error
    if not recipients:
        raise Failure("the message names no recipients; use --to")
    _report(
        hand_in(outgoing(content, sender, recipients, Request(requires_tls=require_tls)), server), recipients, as_json
    )


def _addresses(words: Iterable[str]) -> list[str]:
    return [found.text for field in words for found in addresses_in(field)]


def _completed(words: Iterable[str], server: ClientSettings) -> list[str]:
    return list(dict.fromkeys(with_domain(address, server.domain) for address in _addresses(words)))


def _report(delivery: Delivery, recipients: list[str], as_json: bool) -> None:
    if not delivery.outcomes:
        raise Failure(clean(delivery.trouble.reply) if delivery.trouble is not None else "the server said nothing")
    refused = [outcome for outcome in delivery.outcomes if outcome.result is not Result.DELIVERED]
    if as_json:
        for outcome in delivery.outcomes:
            record = {"recipient": recipients[outcome.queue_id], "result": outcome.result.value, "reply": outcome.reply}
            click.echo(json_line(record))
    taken = [outcome for outcome in delivery.outcomes if outcome.result is Result.DELIVERED]
    if taken and not as_json:
        click.echo(f"handed in for {count(len(taken), 'recipient')}: {clean(taken[0].reply)}")
    for outcome in refused[:-1]:
        print_error(f"{recipients[outcome.queue_id]}: {clean(outcome.reply)}")
    if refused:
        raise Failure(f"{recipients[refused[-1].queue_id]}: {clean(refused[-1].reply)}")
