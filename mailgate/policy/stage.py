"""The stages of a dialogue, and what a policy sees at each of them.

Immutable views, made by `mailgate.smtp.session`. Nothing here does I/O or decides anything.

Standards: RFC 5321 section 3 (the order of the dialogue).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mailgate.envelope import ForwardPath, ReversePath
    from mailgate.message import MessageContent
    from mailgate.policy.verdict import Fate
    from mailgate.smtp.reply import Reply


_N = TypeVar("_N")


class Stage(Enum):
    """When a policy is asked. The value is the word used in configuration, logs and the database."""

    CONNECT = "connect"
    HELO = "helo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # before 354, or before the first BDAT is taken
    END_OF_DATA = "end_of_data"


class Role(Enum):
    """What a listener is for."""

    MX = "mx"
    SUBMISSION = "submission"


@dataclass(frozen=True, slots=True)
class TlsState:
    """What a TLS handshake agreed on."""

    version: str  # "TLSv1.3"
    cipher: str  # "TLS_AES_256_GCM_SHA384"
    bits: int  # of the cipher's secret
    server_name: str | None = None  # SNI, A-form
    client_certificate: str | None = None  # the subject's common name, where a certificate was asked for and verified
    channel_binding: bytes | None = field(default=None, repr=False, compare=False)  # tls-exporter; None below 1.3


@dataclass(frozen=True, slots=True)
class SessionView:
    """One connection, as known so far."""

    id: int
    listener: str  # the listener's name in the configuration
    role: Role
    client_address: str  # IP address in text form, from the PROXY header where one was trusted
    client_port: int
    client_network: str  # the network that limits count by, "192.0.2.7/32" or "2001:db8::/64"
    server_address: str
    server_port: int
    started_at: float  # seconds since the epoch
    helo: str | None = None  # the client's own name, as sent
    is_esmtp: bool = False
    tls: TlsState | None = None
    authenticated: str | None = None  # the account's name


@dataclass(frozen=True, slots=True)
class RecipientView:
    """A forward-path and its fate."""

    forward_path: ForwardPath
    accepted: bool
    reply: Reply
    notes: tuple[object, ...] = ()  # what policies left about it: frozen dataclasses, found by type
    fate: Fate | None = None  # where it differs from that of the message

    def note(self, kind: type[_N]) -> _N | None:
        """The first note of that type, or None."""
        for note in self.notes:
            if isinstance(note, kind):
                return note
        return None


@dataclass(frozen=True, slots=True)
class TransactionView:
    """MAIL to the end of data, as known so far. `recipients` holds the refused ones too, in order."""

    id: int
    started_at: float  # seconds since the epoch
    reverse_path: ReversePath
    recipients: tuple[RecipientView, ...] = ()
    notes: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class TraceFields:
    """A note: header fields that go on top of an accepted message, each ending in CRLF."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class RemovedFields:
    """A note: header fields that an accepted message loses. `spans` are starts and ends in its header, as it came."""

    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class AddedFields:
    """A note: header fields that an accepted message lacked and gets, below its trace fields; each ends in CRLF."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """What the session asks the chain. Fields are set as far as the stage has them."""

    stage: Stage
    session: SessionView
    transaction: TransactionView | None = None
    forward_path: ForwardPath | None = None  # at RCPT: the recipient in question, not yet in the transaction
    content: MessageContent | None = None  # at END_OF_DATA
    notes: tuple[object, ...] = field(default=())  # what earlier stages left
