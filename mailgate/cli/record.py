"""`mailgate sessions` and `mailgate refusals`: who called, and who was turned away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.database import Invocation, pass_invocation
from mailgate.cli.output import Column, json_option, local_time, print_list
from mailgate.cli.quantity import time_argument
from mailgate.ids import encode_id


@dataclass(frozen=True, slots=True)
class Session:
    """An ended connection."""

    id: int
    started_at: datetime
    ended_at: datetime
    node: str
    listener: str
    client_address: str
    client_port: int
    helo: str | None
    tls_version: str | None
    tls_cipher: str | None
    authenticated: str | None
    transactions: int
    errors: int
    ending: str
    dialogue: str

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            encode_id(self.id),
            local_time(self.started_at),
            self.client_address,
            self.helo or "",
            self.tls_version or "",
            str(self.transactions),
            str(self.errors),
            self.ending,
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "id": encode_id(self.id),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "node": self.node,
            "listener": self.listener,
            "client_address": self.client_address,
            "client_port": self.client_port,
            "helo": self.helo,
            "tls_version": self.tls_version,
            "tls_cipher": self.tls_cipher,
            "authenticated": self.authenticated,
            "transactions": self.transactions,
            "errors": self.errors,
            "ending": self.ending,
            "dialogue": self.dialogue.splitlines(),
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """A client, a transaction or a recipient that was turned away."""

    id: int
    refused_at: datetime
    client_address: str
    helo: str | None
    reverse_path: str | None  # "" for the null path; None where there was no MAIL
    forward_path: str | None
    stage: str
    reply: str
    policy: str | None
    reason: str | None

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (
            encode_id(self.id),
            local_time(self.refused_at),
            self.client_address,
            "" if self.reverse_path is None else self.reverse_path or "<>",
            self.forward_path or "",
            self.stage,
            self.reply,
        )

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "id": encode_id(self.id),
            "refused_at": self.refused_at,
            "client_address": self.client_address,
            "helo": self.helo,
            "reverse_path": self.reverse_path,
            "forward_path": self.forward_path,
            "stage": self.stage,
            "reply": self.reply,
            "policy": self.policy,
            "reason": self.reason,
        }


_since = click.option(
    "--since", type=time_argument, default="24h", show_default=True, metavar="TIME", help="90m, 24h, 7d, or a date."
)
_limit = click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="At most that many.")


@click.command(short_help="Show who connected lately.")
@_since
@_limit
@json_option
@pass_invocation
def sessions(invocation: Invocation, since: datetime, limit: int, as_json: bool) -> None:
    """Show the last sessions that ended, the newest last; `mailgate show ID` has the dialogue."""
    with invocation.database() as database:
        found = [Session(*row) for row in reversed(database.rows("list_sessions", since=since, limit=limit))]
    columns = (
        Column("ID"),
        Column("WHEN"),
        Column("CLIENT"),
        Column("HELO", is_flexible=True),
        Column("TLS"),
        Column("MAIL", is_number=True),
        Column("ERRORS", is_number=True),
        Column("ENDING"),
    )
    print_list(found, columns, as_json=as_json, note=f"no sessions ended since {local_time(since)}")


@click.command(short_help="Show what was refused lately.")
@_since
@_limit
@json_option
@pass_invocation
def refusals(invocation: Invocation, since: datetime, limit: int, as_json: bool) -> None:
    """Show what was refused or deferred lately, the newest last; `mailgate show ID` has the rest."""
    with invocation.database() as database:
        found = [Refusal(*row) for row in reversed(database.rows("list_refusals", since=since, limit=limit))]
    columns = (
        Column("ID"),
        Column("WHEN"),
        Column("CLIENT"),
        Column("FROM", is_flexible=True),
        Column("TO", is_flexible=True),
        Column("STAGE"),
        Column("REPLY", is_flexible=True),
    )
    print_list(found, columns, as_json=as_json, note=f"nothing was refused since {local_time(since)}")
