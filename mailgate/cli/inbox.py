"""`mailgate inbox`: what is in a mailbox, and what comes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import address_argument
from mailgate.cli.database import Database, Failure, Invocation, Row, pass_invocation
from mailgate.cli.mailbox import mailbox_at
from mailgate.cli.output import Column, Table, json_line, local_time, print_json, print_note, size
from mailgate.envelope import Address
from mailgate.ids import encode_id

_POLL_SECONDS = 5.0  # how late a message is shown whose notification was lost
_MAX_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a mailbox."""

    uid: int
    id: int
    received_at: datetime
    header_from: str
    subject: str | None
    size_octets: int
    flags: list[str]
    folder: str

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        flags = " ".join(flag.removeprefix("\\") for flag in self.flags)
        subject = self.subject or ""
        return (
            encode_id(self.id),
            local_time(self.received_at),
            self.header_from,
            subject,
            size(self.size_octets),
            flags,
            self.folder,
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "id": encode_id(self.id),
            "uid": self.uid,
            "received_at": self.received_at,
            "from": self.header_from,
            "subject": self.subject,
            "size_octets": self.size_octets,
            "flags": self.flags,
            "folder": self.folder,
        }


@click.command(short_help="Show what is in a mailbox, and what comes.")
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.option("--folder", metavar="NAME", help="Only this folder, such as Junk.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="At most that many.")
@click.option("--follow", is_flag=True, help="Go on and show what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print an array of objects; with --follow, an object a line.")
@pass_invocation
def inbox(
    invocation: Invocation, address: Address, folder: str | None, limit: int, follow: bool, as_json: bool
) -> None:
    """Show the mail in the mailbox of ADDRESS, the newest last."""
    with invocation.database() as database:
        found = mailbox_at(database, address)
        if follow:
            database.listen("newmail")
        ((next_uid,),) = database.rows("next_uid", mailbox_id=found.id)
        newest = database.rows("newest_deliveries", mailbox_id=found.id, folder=folder, limit=limit)
        entries = [Entry(*row) for row in reversed(newest)]
        table = _table()
        if as_json and not follow:
            print_json(entry.record() for entry in entries)
        elif as_json:
            _print_lines(entries)
        elif entries or follow:
            table.print(entry.cells() for entry in entries)
        else:
            print_note(f"no mail in {found.address}" + (f", folder {folder}" if folder else ""))
        if follow:
            last_uid = max([next_uid - 1, *(entry.uid for entry in entries)])
            # Ctrl-C is how one leaves here, so it is no failure.
            try:
                _follow(database, found.id, folder, last_uid, None if as_json else table)
            except KeyboardInterrupt:
                click.echo(err=True)


def _follow(database: Database, mailbox_id: int, folder: str | None, last_uid: int, table: Table | None) -> None:
    """Show what comes, without end. UIDs are given out in the order of commits, so none is ever passed over."""
    while True:
        entries = [Entry(*row) for row in _later(database, mailbox_id, folder, last_uid)]
        if entries:
            last_uid = entries[-1].uid
            if table is None:
                _print_lines(entries)
            else:
                table.print(entry.cells() for entry in entries)
        try:
            database.wait_for_notification(_POLL_SECONDS)
        except Failure:
            continue  # the query says so, and waits


def _later(database: Database, mailbox_id: int, folder: str | None, last_uid: int) -> list[Row]:
    """What came after that UID; a lost connection is made anew, however long that takes."""
    wait_seconds = 0.0
    while True:
        try:
            if wait_seconds:
                database.reconnect()
                database.listen("newmail")
            return database.rows("later_deliveries", mailbox_id=mailbox_id, folder=folder, uid=last_uid)
        except Failure as failure:
            if not wait_seconds:
                print_note(f"{failure.message}; trying again")
            wait_seconds = min(wait_seconds * 2 or 0.25, _MAX_RETRY_SECONDS)
            time.sleep(wait_seconds)


def _table() -> Table:
    return Table(
        Column("ID"),
        Column("WHEN"),
        Column("FROM", is_flexible=True, min_width=16),
        Column("SUBJECT", is_flexible=True, min_width=24),
        Column("SIZE", is_number=True, min_width=9),
        Column("FLAGS"),
        Column("FOLDER", min_width=6),
    )


def _print_lines(entries: list[Entry]) -> None:
    for entry in entries:
        click.echo(json_line(entry.record()))
