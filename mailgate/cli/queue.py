"""`mailgate queue`: what waits to be sent, and what an operator can do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import wraps
from typing import Any

import click

from mailgate.cli.address import domain_argument, readable_address, readable_domain
from mailgate.cli.database import Database, Failure, Invocation, pass_invocation
from mailgate.cli.output import (
    Column,
    Table,
    count,
    json_line,
    json_option,
    local_time,
    print_fields,
    print_list,
    print_note,
    size,
)
from mailgate.ids import decode_id, encode_id

_MAX_LISTED = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """Which recipients a command is for: those that meet all that is given."""

    messages: list[int] | None
    recipient: str | None
    domain: str | None
    sender: str | None

    def parameters(self) -> dict[str, Any]:
        """For the queries."""
        return asdict(self)

    @property
    def is_everything(self) -> bool:
        """Whether nothing was given."""
        return self.messages is None and self.recipient is None and self.domain is None and self.sender is None


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipient that waits."""

    id: int
    message_id: int
    recipient: str
    domain: str
    reverse_path: str
    sender: str
    size_octets: int
    created_at: datetime
    state: str
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    last_status: str | None
    last_reply: str | None

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            encode_id(self.message_id),
            local_time(self.created_at),
            size(self.size_octets),
            readable_address(self.reverse_path) if self.reverse_path else "<>",
            readable_address(self.recipient),
            self.state,
            str(self.attempts),
            local_time(self.next_attempt_at) if self.next_attempt_at is not None else "",
            self.last_reply or "",
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return asdict(self) | {"message_id": encode_id(self.message_id)}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was tried for a recipient."""

    attempted_at: datetime
    recipient: str
    result: str
    status: str
    reply: str
    is_remote: bool
    is_ambiguous: bool
    host: str | None
    address: str | None
    port: int | None
    tls_version: str | None
    tls_cipher: str | None
    tls_is_verified: bool | None
    tls_source: str | None
    duration_seconds: float
    node: str

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        verified = " verified" if self.tls_is_verified else ""
        return (
            local_time(self.attempted_at),
            readable_address(self.recipient),
            self.result + (" (unclear)" if self.is_ambiguous else ""),
            f"{self.host} [{self.address}]" if self.address else self.host or "",
            f"{self.tls_version}{verified}" if self.tls_version else "",
            self.reply,
        )


@dataclass(frozen=True, slots=True)
class Destination:
    """Where something waits to go."""

    name: str
    recipients: int
    messages: int
    oldest_at: datetime | None
    is_paused: bool
    backed_off_until: datetime | None
    failures: int
    reason: str | None

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        state = "paused" if self.is_paused else "in trouble" if self.failures else ""
        return (
            readable_domain(self.name),
            str(self.recipients),
            str(self.messages),
            local_time(self.oldest_at) if self.oldest_at is not None else "",
            state,
            local_time(self.backed_off_until) if self.backed_off_until is not None else "",
            self.reason or "",
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return asdict(self)


def _id(value: str) -> int:
    try:
        return decode_id(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that make a Selection."""

    @click.argument("ids", metavar="[ID]...", nargs=-1, type=_id)
    @click.option("--recipient", metavar="ADDRESS", help="Only this recipient.")
    @click.option("--domain", metavar="DOMAIN", type=domain_argument, help="Only recipients of this domain.")
    @click.option("--sender", metavar="ADDRESS", help="Only mail of this account or reverse-path.")
    @wraps(command)
    def selecting(
        *arguments: Any,  # Any: what the command takes
        ids: tuple[int, ...],
        recipient: str | None,
        domain: str | None,
        sender: str | None,
        **options: Any,  # Any: likewise
    ) -> None:
        command(*arguments, selection=Selection(list(ids) or None, recipient, domain, sender), **options)

    return selecting


def _changing(command: Callable[..., None]) -> Callable[..., None]:
    """As _selecting, for a command that changes something: all of the queue only with --all."""

    @click.option("--all", "is_all", is_flag=True, help="The whole queue.")
    @_selecting
    @wraps(command)
    def changing(*arguments: Any, selection: Selection, is_all: bool, **options: Any) -> None:  # Any: as above
        if selection.is_everything != is_all:
            raise click.UsageError(
                "--all takes no other selection"
                if is_all
                else "say which: IDs of messages, --recipient, --domain, --sender, or --all"
            )
        command(*arguments, selection=selection, **options)

    return changing


@click.group()
def queue() -> None:
    """Mail that waits to be sent, and the destinations it is for."""


@queue.command("list")
@_selecting
@click.option("--limit", type=click.IntRange(min=0), default=_MAX_LISTED, show_default=True, help="At most that many.")
@json_option
@pass_invocation
def list_(invocation: Invocation, selection: Selection, limit: int, as_json: bool) -> None:
    """Show what waits, the oldest first."""
    with invocation.database() as database:
        entries = [Entry(*row) for row in database.rows("list_queue", **selection.parameters(), limit=limit)]
        recipients, messages = _count(database, selection)
    columns = (
        Column("MESSAGE"),
        Column("SINCE"),
        Column("SIZE", is_number=True),
        Column("FROM", is_flexible=True),
        Column("TO", is_flexible=True),
        Column("STATE"),
        Column("TRIES", is_number=True),
        Column("NEXT"),
        Column("LAST REPLY", is_flexible=True),
    )
    print_list(entries, columns, as_json=as_json, note="nothing waits to be sent")
    if entries and not as_json:
        print_note(f"{count(recipients, 'recipient')} of {count(messages, 'message')}")


@queue.command()
@click.argument("message_id", metavar="ID", type=_id)
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@pass_invocation
def show(invocation: Invocation, message_id: int, as_json: bool) -> None:
    """Show what waits of a message, and what was tried for it, whether it waits still or not."""
    selection = Selection([message_id], None, None, None)
    with invocation.database() as database:
        entries = [Entry(*row) for row in database.rows("list_queue", **selection.parameters(), limit=None)]
        attempts = [Attempt(*row) for row in database.rows("list_attempts", id=message_id)]
    if not entries and not attempts:
        raise Failure(f"{encode_id(message_id)} does not wait to be sent, and nothing was tried for it")
    if as_json:
        found = {
            "message_id": encode_id(message_id),
            "recipients": [entry.record() for entry in entries],
            "attempts": [asdict(attempt) for attempt in attempts],
        }
        click.echo(json_line(found))
        return
    for entry in entries:
        print_fields(
            (
                ("To", readable_address(entry.recipient)),
                ("From", readable_address(entry.reverse_path) if entry.reverse_path else "<>"),
                ("State", entry.state),
                ("Since", local_time(entry.created_at)),
                ("Attempts", str(entry.attempts)),
                ("Next attempt", local_time(entry.next_attempt_at) if entry.next_attempt_at is not None else ""),
                ("Last reply", entry.last_reply or ""),
            )
        )
        click.echo()
    if attempts:
        Table(
            Column("WHEN"),
            Column("TO", is_flexible=True),
            Column("RESULT"),
            Column("HOST", is_flexible=True),
            Column("TLS"),
            Column("REPLY", is_flexible=True),
        ).print(attempt.cells() for attempt in attempts)


@queue.command()
@_changing
@pass_invocation
def retry(invocation: Invocation, selection: Selection) -> None:
    """Try again now; destinations that are in trouble are tried too.

    A smarthost in trouble is tried with --all, or after `queue resume`.
    """
    with invocation.database() as database:
        database.run("retry_destinations", **selection.parameters())
        changed = database.run("retry_queue", **selection.parameters())
        _tell_runners(database, "destination")
    _say("to be tried now", changed)


@queue.command()
@_changing
@pass_invocation
def hold(invocation: Invocation, selection: Selection) -> None:
    """Don't send for now; what is under way at this moment may still go."""
    with invocation.database() as database:
        changed = database.run("hold_queue", **selection.parameters())
    _say("held", changed)


@queue.command()
@_changing
@pass_invocation
def release(invocation: Invocation, selection: Selection) -> None:
    """Send what was held; the days until it is given up begin anew."""
    with invocation.database() as database:
        changed = database.run("release_queue", **selection.parameters())
        _tell_runners(database)
    _say("released", changed)


@queue.command()
@_changing
@click.option("--reason", default="The operator has returned it", show_default=True, help="What senders are told.")
@pass_invocation
def bounce(invocation: Invocation, selection: Selection, reason: str) -> None:
    """Give up, and tell the senders; what is under way at this moment is left out."""
    with invocation.database() as database:
        changed = database.run("bounce_queue", **selection.parameters(), reason=reason)
        _tell_runners(database)
    _say("returned", changed)


@queue.command()
@_changing
@pass_invocation
def remove(invocation: Invocation, selection: Selection) -> None:
    """Give up, and tell nobody; what is under way at this moment is left out."""
    with invocation.database() as database, database.transaction():
        row = database.row("remove_queue", **selection.parameters())
        changed, messages = row or (0, [])
        database.run("remove_unqueued_messages", messages=messages)
    _say("removed", changed)


@queue.command()
@click.argument("name", metavar="DESTINATION")
@click.option("--reason", default="Paused by the operator", show_default=True, help="Kept with it.")
@pass_invocation
def pause(invocation: Invocation, name: str, reason: str) -> None:
    """Send nothing to DESTINATION: a domain, or a smarthost as `queue destinations` names it."""
    with invocation.database() as database:
        database.run("pause_destination", name=_destination(name), reason=reason)
        _tell_runners(database, "destination")
    click.echo(f"paused {name}")


@queue.command()
@click.argument("name", metavar="DESTINATION")
@pass_invocation
def resume(invocation: Invocation, name: str) -> None:
    """Send to DESTINATION again, at once, whether it was paused or in trouble."""
    with invocation.database() as database:
        changed = database.run("resume_destination", name=_destination(name))
        _tell_runners(database, "destination")
    if not changed:
        raise Failure(f"{name} is neither paused nor in trouble")
    click.echo(f"resumed {name}")


@queue.command()
@click.option("--limit", type=click.IntRange(min=0), default=_MAX_LISTED, show_default=True, help="At most that many.")
@json_option
@pass_invocation
def destinations(invocation: Invocation, limit: int, as_json: bool) -> None:
    """Show where mail waits to go, and what is left alone, the most mail first."""
    with invocation.database() as database:
        found = [Destination(*row) for row in database.rows("list_destinations", limit=limit)]
    columns = (
        Column("DESTINATION", is_flexible=True),
        Column("RECIPIENTS", is_number=True),
        Column("MESSAGES", is_number=True),
        Column("OLDEST"),
        Column("STATE"),
        Column("UNTIL"),
        Column("REASON", is_flexible=True),
    )
    print_list(found, columns, as_json=as_json, note="nothing waits to be sent")


def _destination(name: str) -> str:
    """A domain in A-form; the name of a smarthost as it is."""
    try:
        return domain_argument(name)
    except click.BadParameter:
        return name


def _count(database: Database, selection: Selection) -> tuple[int, int]:
    recipients, messages = database.row("count_queue", **selection.parameters()) or (0, 0)
    return recipients, messages


def _tell_runners(database: Database, payload: str = "") -> None:
    database.rows("notify_queue", payload=payload)


def _say(what: str, changed: int) -> None:
    if not changed:
        raise Failure("nothing in the queue is meant by that")
    click.echo(f"{what}: {count(changed, 'recipient')}")
