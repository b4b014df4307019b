"""`mailgate sessions` and `mailgate refusals`: who called, and who was turned away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.database import Invocation, pass_invocation
from mailgate.cli.output import Column, Table, local_time, print_json, print_note
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


_since = click.option(
    "--since", type=time_argument, default="24h", show_default=True, metavar="TIME", help="90m, 24h, 7d, or a date."
)
_limit = click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="At most that many.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")


@click.command(short_help="Show who connected lately.")
@_since
@_limit
@_as_json
@pass_invocation
def sessions(invocation: Invocation, since: datetime, limit: int, as_json: bool) -> None:
    """Show the last sessions that ended, the newest last; `mailgate show ID` has the dialogue."""
    with invocation.database() as database:
        found = [Session(*row) for row in reversed(database.rows("list_sessions", since=since, limit=limit))]
    if as_json:
        print_json(session.record() for session in found)
    elif not found:
        print_note(f"no sessions ended since {local_time(since)}")
    else:
        Table(
            Column("ID"),
            Column("WHEN"),
            Column("CLIENT"),
            Column("HELO", is_flexible=True),
            Column("TLS"),
            Column("MAIL", is_number=True),
            Column("ERRORS", is_number=True),
            Column("ENDING"),
        ).print(
            (
                encode_id(session.id),
                local_time(session.started_at),
                session.client_address,
                session.helo or "",
                session.tls_version or "",
                str(session.transactions),
                str(session.errors),
                session.ending,
            )
            for session in found
        )


@click.command(short_help="Show what was refused lately.")
@_since
@_limit
@_as_json
@pass_invocation
def refusals(invocation: Invocation, since: datetime, limit: int, as_json: bool) -> None:
    """Show what was refused or deferred lately, the newest last; `mailgate show ID` has the rest."""
    with invocation.database() as database:
        rows = list(reversed(database.rows("list_refusals", since=since, limit=limit)))
    if as_json:
        print_json(
            {
                "id": encode_id(id_),
                "refused_at": refused_at,
                "client_address": client,
                "helo": helo,
                "reverse_path": reverse_path,
                "forward_path": forward_path,
                "stage": stage,
                "reply": reply,
                "policy": policy,
                "reason": reason,
            }
            for id_, refused_at, client, helo, reverse_path, forward_path, stage, reply, policy, reason in rows
        )
    elif not rows:
        print_note(f"nothing was refused since {local_time(since)}")
    else:
        Table(
            Column("ID"),
            Column("WHEN"),
            Column("CLIENT"),
            Column("FROM", is_flexible=True),
            Column("TO", is_flexible=True),
            Column("STAGE"),
            Column("REPLY", is_flexible=True),
        ).print(
            (
                encode_id(id_),
                local_time(refused_at),
                client,
                "" if reverse_path is None else reverse_path or "<>",
                forward_path or "",
                stage,
                reply,
            )
            for id_, refused_at, client, _helo, reverse_path, forward_path, stage, reply, _policy, _reason in rows
        )
