"""`mailgate export`: a mailbox as a maildir, or as mbox files.

One way: the folder becomes what the mailbox is, and a second export adds what has come since. Messages pass through
piece by piece, and are read in many short queries, so that an export of any size holds up nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from mailgate.cli.address import address_argument
from mailgate.cli.content import StoredContent
from mailgate.cli.database import Database, Failure, Invocation, octets_of, pass_invocation
from mailgate.cli.lines import with_lf
from mailgate.cli.mailbox import mailbox_at
from mailgate.cli.maildir import MaildirWriter
from mailgate.cli.mbox import MboxWriter, file_of
from mailgate.cli.output import count, progress
from mailgate.envelope import Address
from mailgate.ids import encode_id

_BATCH_MESSAGES = 200


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A message of a folder, without its content."""

    uid: int
    message_id: int
    flags: list[str]
    delivered_at: datetime
    reverse_path: str
    trace: memoryview
    size_octets: int
    is_in_pieces: bool

    def pieces(self, database: Database) -> Iterator[bytes]:
        """The whole message, with LF as line ends."""
        content = StoredContent(self.message_id, octets_of(self.trace), self.size_octets, self.is_in_pieces)
        return with_lf(content.pieces(database))


@click.command("export", short_help="Write a mailbox to maildir or mbox.")
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.option("--format", "format_", type=click.Choice(["maildir", "mbox"]), required=True, help="How to write it.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@pass_invocation
def export(invocation: Invocation, address: Address, format_: str, directory: Path) -> None:
    """Write the mail of ADDRESS into DIR: all folders, with flags.

    A maildir that is there already gets what is new. Of mbox, there is a file a folder, and it is written anew.
    """
    with invocation.database() as database:
        found = mailbox_at(database, address)
        folders = [(folder, messages) for folder, messages in database.rows("folders_of", mailbox_id=found.id)]
        total = sum(messages for _, messages in folders)
        names = [folder for folder, _ in folders]
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with progress(f"Exporting {found.address}", total) as advance:
                write = _to_maildir if format_ == "maildir" else _to_mbox
                written, known = write(database, found.id, names, directory, advance)
        except OSError as error:
            raise Failure(f"{error.filename or directory}: {error.strerror or error}") from error
    click.echo(
        f"exported {count(written, 'message')} of {found.address} to {directory}"
        + (f"; {known:,} were there already" if known else "")
    )


def _to_maildir(
    database: Database, mailbox_id: int, folders: list[str], directory: Path, advance: Callable[[int], None]
) -> tuple[int, int]:
    maildir = MaildirWriter(directory)
    written = known = 0
    for folder in folders:
        for delivery in _deliveries(database, mailbox_id, folder):
            seconds = int(delivery.delivered_at.timestamp())
            base = f"{seconds}.{encode_id(delivery.message_id)}_{delivery.uid}.mailgate"
            if maildir.put(base, folder, delivery.flags, delivery.delivered_at, delivery.pieces(database)):
                written += 1
            else:
                known += 1
            advance(written + known)
    return written, known


def _to_mbox(
    database: Database, mailbox_id: int, folders: list[str], directory: Path, advance: Callable[[int], None]
) -> tuple[int, int]:
    written = 0
    for folder in folders:
        mbox = MboxWriter(directory / file_of(folder))
        try:
            for delivery in _deliveries(database, mailbox_id, folder):
                mbox.put(delivery.reverse_path, delivery.flags, delivery.delivered_at, delivery.pieces(database))
                written += 1
                advance(written)
            mbox.finish()
        finally:
            mbox.abandon()
    return written, 0


def _deliveries(database: Database, mailbox_id: int, folder: str) -> Iterator[_Delivery]:
    uid = 0
    while rows := database.rows(
        "deliveries_to_export", mailbox_id=mailbox_id, folder=folder, uid=uid, limit=_BATCH_MESSAGES
    ):
        for row in rows:
            yield _Delivery(*row)
        uid = rows[-1][0]
