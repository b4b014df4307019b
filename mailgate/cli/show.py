"""`mailgate show`: one message, its envelope, who got it, and how it came; or what became of an id without one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import readable
from mailgate.cli.content import StoredContent
from mailgate.cli.database import Database, Failure, Invocation, octets_of, pass_invocation
from mailgate.cli.output import clean, clean_lines, json_line, local_time, print_fields, size
from mailgate.cli.parsed import read_message
from mailgate.cli.record import Session
from mailgate.ids import decode_id, encode_id

_MAX_PARSED_OCTETS = 4 * 1024 * 1024  # what lies behind is not shown as text; --raw has it
_NUMBER = re.compile("[0-9]{17,19}")  # of this decade and those after it; no id has so many characters
_HEADER_FIELDS = ("From", "To", "Cc", "Subject", "Date", "Message-ID")


def id_argument(value: str) -> int:
    """The number of the id that was typed; it may also be typed as the number that SQL shows.

    @raises click.BadParameter: it is no id.
    """
    try:
        if _NUMBER.fullmatch(value) and int(value) < 1 << 63:
            return int(value)
        return decode_id(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@dataclass(frozen=True, slots=True)
class Transaction:
    """How a transaction went."""

    session_id: int
    node: str
    listener: str
    client_address: str
    helo: str | None
    protocol: str
    authenticated: str | None
    reverse_path: str
    disposition: str
    stage: str
    policy: str | None
    reason: str | None
    reply: str
    size_octets: int | None
    started_at: datetime
    ended_at: datetime
    envid: str | None
    ret: str | None
    tls_version: str | None  # of the session, which is recorded when it ends
    tls_cipher: str | None
    client_port: int | None

    @property
    def is_kept(self) -> bool:
        """Whether it brought a message that was kept."""
        return self.disposition in ("accepted", "quarantined")

    def fields(self) -> Iterator[tuple[str, str]]:
        """What is shown of it."""
        yield "Became", self.disposition if self.is_kept else f"{self.disposition} at {self.stage}"
        yield "Reply", self.reply
        yield "Policy", " ".join(filter(None, (self.policy, f"({self.reason})" if self.reason else None)))
        yield "Client", f"{self.client_address} ({self.helo})" if self.helo else self.client_address
        yield "Protocol", f"{self.protocol} on {self.listener} at {self.node}"
        yield "TLS", self.tls()
        yield "Account", self.authenticated or ""
        yield "Session", encode_id(self.session_id)

    def tls(self) -> str:
        """What the session was encrypted with, as far as it is known yet."""
        if self.tls_version:
            return " ".join(filter(None, (self.tls_version, self.tls_cipher)))
        has_tls = self.protocol.endswith(("SMTPS", "SMTPSA"))
        return "yes (details when the session has ended)" if has_tls else "none"

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "session": encode_id(self.session_id),
            "node": self.node,
            "listener": self.listener,
            "client_address": self.client_address,
            "client_port": self.client_port,
            "helo": self.helo,
            "protocol": self.protocol,
            "tls_version": self.tls_version,
            "tls_cipher": self.tls_cipher,
            "authenticated": self.authenticated,
            "disposition": self.disposition,
            "stage": self.stage,
            "policy": self.policy,
            "reason": self.reason,
            "reply": self.reply,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }


@click.command(short_help="Show a message, or what became of an id.")
@click.argument("identifier", metavar="ID", type=id_argument)
@click.option("--raw", is_flag=True, help="Write the message's octets, our trace fields first, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@pass_invocation
def show(invocation: Invocation, identifier: int, raw: bool, as_json: bool) -> None:
    """Show the message of that ID: its envelope, who got it, how it came, and its text.

    The ID of a refused transaction or of a session shows what is recorded of that.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other")
    with invocation.database() as database:
        found = database.row("find_message", id=identifier)
        if found is not None:
            received_at, reverse_path, *_, trace, size_octets, is_in_pieces, sha256 = found
            content = StoredContent(identifier, octets_of(trace), size_octets, is_in_pieces)
            if raw:
                _write_raw(database, content)
            else:
                _show_message(database, content, received_at, reverse_path, octets_of(sha256), as_json=as_json)
            return
        if raw:
            raise Failure(f"there is no message {encode_id(identifier)}")
        transaction = database.row("find_transaction", id=identifier)
        if transaction is not None:
            _show_transaction(database, identifier, Transaction(*transaction), as_json=as_json)
            return
        session = database.row("find_session", id=identifier)
        if session is not None:
            _show_session(Session(*session), as_json=as_json)
            return
    raise Failure(f"there is no message, transaction or session {encode_id(identifier)}")


def _write_raw(database: Database, content: StoredContent) -> None:
    for piece in content.pieces(database):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _show_message(
    database: Database,
    content: StoredContent,
    received_at: datetime,
    reverse_path: str,
    sha256: bytes,
    *,
    as_json: bool,
) -> None:
    message = read_message(content.beginning(database, _MAX_PARSED_OCTETS)[len(content.trace) :])
    row = database.row("find_transaction", id=content.id)  # none for an imported message, or a record that was dropped
    transaction = None if row is None else Transaction(*row)
    recipients = database.rows("recipients_of", id=content.id)
    deliveries = database.rows("deliveries_of", id=content.id)
    waiting = [recipient for (recipient,) in database.rows("waiting_for", id=content.id)]
    is_cut = len(content.trace) + content.size_octets > _MAX_PARSED_OCTETS
    if as_json:
        record = {
            "id": encode_id(content.id),
            "received_at": received_at,
            "reverse_path": reverse_path,
            "recipients": _recipient_records(recipients),
            "deliveries": [
                {"mailbox": readable(local, domain), "folder": folder, "uid": uid, "flags": flags}
                for local, domain, folder, uid, flags in deliveries
            ],
            "to_be_sent": waiting,
            "size_octets": content.size_octets,
            "sha256": sha256.hex(),
            "transaction": None if transaction is None else transaction.record(),
            "header": [{"name": name, "value": value} for name, value in message.header],
            "attachments": [
                {"name": part.name, "type": part.content_type, "size_octets": part.size_octets}
                for part in message.attachments
            ],
            "text": message.text,
            "text_is_complete": not is_cut,
        }
        click.echo(json_line(record))
        return
    shown = {name.lower() for name in _HEADER_FIELDS}
    fields = [(name, value) for name, value in message.header if name.lower() in shown]
    fields.sort(key=lambda field: [name.lower() for name in _HEADER_FIELDS].index(field[0].lower()))
    print_fields(
        [
            *fields,
            ("ID", encode_id(content.id)),
            ("Received", local_time(received_at)),
            ("Size", size(content.size_octets)),
            ("Envelope from", reverse_path or "<>"),
            *_recipient_fields(recipients),
            *(
                ("In", f"{readable(local, domain)}, {folder}" + (f" ({' '.join(flags)})" if flags else ""))
                for local, domain, folder, _, flags in deliveries
            ),
            *(("To be sent to", recipient) for recipient in waiting),
            *(transaction.fields() if transaction is not None else ()),
            *(
                ("Attachment", f"{part.name or 'without a name'}, {part.content_type}, {size(part.size_octets)}")
                for part in message.attachments
            ),
        ]
    )
    click.echo()
    click.echo(clean_lines(message.text).rstrip("\n"))
    if is_cut:
        click.echo(f"\n(only the first {size(_MAX_PARSED_OCTETS)} were looked at; --raw has all of it)", err=True)


def _show_transaction(database: Database, identifier: int, transaction: Transaction, *, as_json: bool) -> None:
    recipients = database.rows("recipients_of", id=identifier)
    if as_json:
        record = {
            "id": encode_id(identifier),
            "reverse_path": transaction.reverse_path,
            "recipients": _recipient_records(recipients),
            "size_octets": transaction.size_octets,
            "transaction": transaction.record(),
        }
        click.echo(json_line(record))
        return
    print_fields(
        [
            ("ID", encode_id(identifier)),
            ("When", local_time(transaction.ended_at)),
            ("Envelope from", transaction.reverse_path or "<>"),
            *_recipient_fields(recipients),
            *transaction.fields(),
        ]
    )
    click.echo("\nIts message has been removed since." if transaction.is_kept else "\nIt brought no message.")


def _show_session(session: Session, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_line(session.record()))
        return
    print_fields(
        [
            ("ID", encode_id(session.id)),
            ("Began", local_time(session.started_at)),
            ("Ended", f"{local_time(session.ended_at)} ({session.ending})"),
            ("Client", f"{session.client_address} port {session.client_port}"),
            ("Name", session.helo or ""),
            ("TLS", " ".join(filter(None, (session.tls_version, session.tls_cipher))) or "none"),
            ("Account", session.authenticated or ""),
            ("Listener", f"{session.listener} at {session.node}"),
        ]
    )
    click.echo()
    for line in session.dialogue.splitlines():
        click.echo(clean(line))


def _recipient_fields(recipients: list[tuple[Any, ...]]) -> Iterator[tuple[str, str]]:
    for forward_path, is_accepted, reply in recipients:
        yield "Envelope to", forward_path if is_accepted else f"{forward_path} (refused: {reply})"


def _recipient_records(recipients: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [
        {"forward_path": forward_path, "accepted": is_accepted, "reply": reply}
        for forward_path, is_accepted, reply in recipients
    ]
