"""What a session asks of whoever owns its connection. Values; `mailgate.smtp.session` says how each is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailgate.policy.stage import Request
    from mailgate.storage.records import IncomingMessage


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the chain."""

    request: Request


@dataclass(frozen=True, slots=True)
class Store:
    """Make this message ours before the client hears 250."""

    message: IncomingMessage


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send the output, then start TLS."""


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Take a step of a SASL exchange. `mechanism` is set on the first step only."""

    mechanism: str | None
    response: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Close:
    """Send the output, then close the connection."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Send the output and let others have a turn: the client has said much at once."""


Action = Decide | Store | StartTls | Authenticate | Yield | Close
