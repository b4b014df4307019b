"""`mailgate import`: messages from a maildir, mbox files or eml files into a mailbox.

Messages come in batches, each a transaction: what is reported as imported is committed, and what an interruption leaves
out is left out whole. A message gets an id of its own, and has no transaction in the record, for nobody delivered it.

Standards: RFC 5322 section 2.1 (lines end in CRLF; they are made to).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from mailgate.cli.address import address_argument
from mailgate.cli.database import Database, Failure, Invocation, pass_invocation, text_array_literal
from mailgate.cli.foreign import INBOX, ForeignMessage, FormatError, time_of_file
from mailgate.cli.lines import with_crlf
from mailgate.cli.mailbox import Mailbox, mailbox_at
from mailgate.cli.maildir import count_messages, read_maildir, read_pieces
from mailgate.cli.mbox import files_of, folder_of, read_mbox
from mailgate.cli.output import count, progress, size
from mailgate.envelope import Address
from mailgate.ids import IdGenerator
from mailgate.message import MessageContent, fields_of, readable_field
from mailgate.smtp.grammar import GrammarError, parse_path
from mailgate.storage.acceptance import FIELD_CHARS

_MAX_BATCH_MESSAGES = 100
_MAX_BATCH_OCTETS = 4 * 1024 * 1024
_MAX_INLINE_OCTETS = 1024 * 1024
_PIECE_OCTETS = 256 * 1024
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)


@click.command("import", short_help="Read maildir, mbox or eml into a mailbox.")
@click.argument("address", metavar="ADDRESS", type=address_argument)
@click.option("--format", "format_", type=click.Choice(["maildir", "mbox", "eml"]), required=True, help="What PATH is.")
@click.option("--folder", metavar="NAME", help="Put everything there, whatever folder it comes from.")
@click.option("--ignore-quota", is_flag=True, help="Go on where the mailbox is full.")
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path, exists=True))
@pass_invocation
def import_(
    invocation: Invocation, address: Address, format_: str, folder: str | None, ignore_quota: bool, path: Path
) -> None:
    """Put the messages in PATH into the mailbox of ADDRESS, with folders and flags.

    PATH is a maildir; an mbox file, or a folder of files that end in .mbox and are named for their folders; or an eml
    file, or a folder of files that end in .eml.
    """
    with invocation.database() as database:
        found = mailbox_at(database, address)
        importer = _Importer(database, found, ignores_quota=ignore_quota)
        try:
            source = _SOURCES[format_](path)
            with progress(f"Importing into {found.address}", source.total) as advance:
                for message, done in source.messages:
                    importer.add(message, folder or message.folder)
                    advance(done)
                importer.flush()
        except OSError as error:
            raise Failure(f"{error.filename or path}: {error.strerror or error}; {importer.summary()}") from error
        except FormatError as error:
            raise Failure(f"{error}; {importer.summary()}") from error
        except KeyboardInterrupt as error:
            raise Failure(f"stopped; {importer.summary()}") from error
        except _Full as error:
            raise Failure(
                f"{found.address} is full: {error} does not fit; {importer.summary()}; raise its quota with"
                " `mailgate mailbox set`, or import the rest with --ignore-quota"
            ) from error
    click.echo(importer.summary())


# ---------------------------------------------------------------- where messages come from


@dataclass(frozen=True, slots=True)
class _Source:
    """Messages, each with how much of `total` is done when it has been taken."""

    messages: Iterator[tuple[ForeignMessage, int]]
    total: int


def _from_maildir(path: Path) -> _Source:
    if not path.is_dir():
        raise FormatError(f"{path} is no maildir: it is no folder")
    total = count_messages(path)
    return _Source(((message, number) for number, message in enumerate(read_maildir(path), 1)), total)


def _from_mbox(path: Path) -> _Source:
    files = files_of(path)

    def messages() -> Iterator[tuple[ForeignMessage, int]]:
        before = 0
        for file in files:
            folder = INBOX if file == path else folder_of(file)
            for message, position in read_mbox(file, folder):
                yield message, before + position
            before += file.stat().st_size

    return _Source(messages(), sum(file.stat().st_size for file in files))


def _from_eml(path: Path) -> _Source:
    files = sorted(path.glob("*.eml")) if path.is_dir() else [path]
    if not files:
        raise FormatError(f"{path} has no file that ends in .eml")

    def message(file: Path) -> ForeignMessage:
        return ForeignMessage(str(file), INBOX, (), time_of_file(file), lambda: read_pieces(file))

    return _Source(((message(file), number) for number, file in enumerate(files, 1)), len(files))


_SOURCES: dict[str, Callable[[Path], _Source]] = {"maildir": _from_maildir, "mbox": _from_mbox, "eml": _from_eml}


# ---------------------------------------------------------------- where they go


class _Full(Exception):
    """The mailbox's quota has no room for the message of that name."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A message that waits for its batch. `content` is None where its pieces are in the database already."""

    id: int
    name: str
    folder: str
    flags: tuple[str, ...]
    received_at: datetime
    header: bytes
    content: bytes | None
    size_octets: int
    sha256: bytes


class _Importer:
    """Puts messages into one mailbox."""

    def __init__(self, database: Database, mailbox: Mailbox, *, ignores_quota: bool) -> None:
        self._database = database
        self._mailbox = mailbox
        self._ignores_quota = ignores_quota
        self._ids = IdGenerator(_draw_instance(database), time.time)
        self._pending: list[_Pending] = []
        self._pending_octets = 0
        self._imported = 0
        self._skipped = 0

    def summary(self) -> str:
        """What has been committed."""
        done = f"imported {count(self._imported, 'message')} into {self._mailbox.address}"
        return done + (f"; skipped {count(self._skipped, 'empty file')}" if self._skipped else "")

    def add(self, message: ForeignMessage, folder: str) -> None:
        """Take a message; it is committed with its batch."""
        pieces = _regular(with_crlf(message.pieces()))
        first: list[bytes] = []
        octets = 0
        for piece in pieces:
            first.append(piece)
            octets += len(piece)
            if octets > _MAX_INLINE_OCTETS:
                self.flush()
                self._add_large(message, folder, first, pieces)
                return
        if not octets:
            self._skipped += 1
            return
        content = b"".join(first)
        self._pending.append(
            _pending(self._ids.next(), message, folder, [content], content, octets, hashlib.sha256(content).digest())
        )
        self._pending_octets += octets
        if len(self._pending) >= _MAX_BATCH_MESSAGES or self._pending_octets >= _MAX_BATCH_OCTETS:
            self.flush()

    def flush(self) -> None:
        """Commit what waits.

        @raises _Full: the quota has no room for all of it; what fits has been committed.
        """
        batch, self._pending, self._pending_octets = self._pending, [], 0
        if not batch:
            return
        try:
            self._commit(batch)
        except _Full:
            # As much as fits, in order: the one that does not fit ends it.
            for pending in batch:
                self._commit([pending])

    def _commit(self, batch: list[_Pending]) -> None:
        with self._database.transaction():
            for pending in batch:
                self._insert_message(pending)
            self._deliver(batch)
        self._imported += len(batch)

    def _add_large(self, message: ForeignMessage, folder: str, first: list[bytes], rest: Iterator[bytes]) -> None:
        """A message too large to hold: a transaction of its own, a piece at a time, the message itself last."""
        identifier = self._ids.next()
        digest = hashlib.sha256()
        octets = 0
        with self._database.transaction():
            for position, piece in enumerate(_both(first, rest)):
                digest.update(piece)
                octets += len(piece)
                self._database.run("add_piece", id=identifier, position=position, octets=piece)
            pending = _pending(identifier, message, folder, first, None, octets, digest.digest())
            self._insert_message(pending)
            self._deliver([pending])
        self._imported += 1

    def _insert_message(self, pending: _Pending) -> None:
        self._database.run(
            "add_message",
            id=pending.id,
            received_at=pending.received_at,
            reverse_path=_reverse_path(pending.header),
            header_from=readable_field(pending.header, b"From", FIELD_CHARS),
            subject=readable_field(pending.header, b"Subject", FIELD_CHARS),
            header_message_id=readable_field(pending.header, b"Message-ID", FIELD_CHARS),
            content=pending.content,
            size_octets=pending.size_octets,
            sha256=pending.sha256,
        )

    def _deliver(self, batch: list[_Pending]) -> None:
        """Last, because from here to the commit nobody else can deliver to this mailbox."""
        octets = sum(pending.size_octets for pending in batch)
        claimed = self._database.row(
            "claim_uids",
            mailbox_id=self._mailbox.id,
            messages=len(batch),
            octets=octets,
            ignores_quota=self._ignores_quota,
        )
        if claimed is None:
            raise _Full(f"{batch[0].name} ({size(octets)})")
        self._database.rows(
            "add_deliveries",
            mailbox_id=self._mailbox.id,
            first_uid=claimed[0],
            ids=[pending.id for pending in batch],
            folders=[pending.folder for pending in batch],
            flags=[text_array_literal(pending.flags) for pending in batch],
            times=[pending.received_at for pending in batch],
        )


def _pending(
    identifier: int,
    message: ForeignMessage,
    folder: str,
    beginning: list[bytes],
    content: bytes | None,
    size_octets: int,
    sha256: bytes,
) -> _Pending:
    return _Pending(
        id=identifier,
        name=message.name,
        folder=_storable(folder) or INBOX,
        flags=tuple(dict.fromkeys(filter(None, map(_storable, message.flags)))),
        received_at=_plausible(message.received_at),
        header=MessageContent(beginning, size_octets, sha256).header(),
        content=content,
        size_octets=size_octets,
        sha256=sha256,
    )


def _storable(text: str) -> str:
    """The text without what PostgreSQL's text can't hold; names of files and fields of others may have it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _plausible(received_at: datetime | None) -> datetime:
    """That time, or now where nobody can have received anything then."""
    now = datetime.now(UTC)
    return received_at if received_at is not None and _EARLIEST < received_at < now else now


def _both(first: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from first
    yield from rest


def _regular(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same octets in pieces of one size, the last one excepted."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= _PIECE_OCTETS:
            yield bytes(held[:_PIECE_OCTETS])
            del held[:_PIECE_OCTETS]
    if held:
        yield bytes(held)


def _reverse_path(header: bytes) -> str:
    """The reverse-path as the last host wrote it on top; "" where it did not, or wrote nonsense."""
    for body in fields_of(header, b"Return-Path")[:1]:
        try:
            address, _ = parse_path(body.decode("utf-8", "replace"))
        except GrammarError:
            break
        return "" if address is None else str(address)
    return ""


def _draw_instance(database: Database) -> int:
    """A number for ids that no living process has; ours for as long as the connection lives."""
    while True:
        ((number, is_taken),) = database.rows("draw_instance")
        if not is_taken:
            database.rows("hold_instance", instance=number)
            return int(number)
