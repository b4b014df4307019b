"""What is to be sent, where to, under which demands, and what came of it: the values that the parts of delivery share.

Nothing here does I/O. A *route* is where mail of one domain goes; a *batch* of it goes over one connection to one
*host* of the route; each recipient of it has an *outcome*.

Standards: RFC 5321 section 5 (where mail goes), RFC 3461 (what a DSN request asks), RFC 3463 (status codes), RFC 7672
(DANE), RFC 8461 (MTA-STS), RFC 8689 (REQUIRETLS).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from mailgate.smtp.reply import Reply


# ---------------------------------------------------------------- where to


class TlsLevel(Enum):
    """What a connection has to reach before mail may go over it, weakest first."""

    NONE = "none"  # TLS is not even tried
    OPPORTUNISTIC = "opportunistic"  # where it is offered and works; else in plain text
    ENCRYPT = "encrypt"  # without TLS not at all, whoever the host is
    VERIFY = "verify"  # with a certificate that the trusted authorities gave to one of `names`
    DANE = "dane"  # with a certificate that matches one of `tlsa`


@dataclass(frozen=True, slots=True)
class PublishedPolicy:
    """The policy of a recipient's domain that a connection is counted under (RFC 8460 section 4.2)."""

    domain: str
    type: Literal["tlsa", "sts", "no-policy-found"] = "no-policy-found"
    text: tuple[str, ...] = ()  # TLSA records, or the lines of the MTA-STS policy


@dataclass(frozen=True, slots=True)
class TlsDemand:
    """What is asked of TLS with one host, and who asks it."""

    level: TlsLevel = TlsLevel.OPPORTUNISTIC
    source: str = "default"  # "default", "config", "dane", "mta-sts", "requiretls", "tls-required-no"
    names: tuple[str, ...] = ()  # names in A-form, or addresses; the certificate has to be that of one of them
    tlsa: tuple[tuple[int, int, int, bytes], ...] = ()  # usage, selector, matching type, data
    is_implicit: bool = False  # TLS comes before the greeting
    is_testing: bool = False  # MTA-STS in mode testing: OPPORTUNISTIC, but `names` are looked at and failures counted
    published: PublishedPolicy | None = None  # what TLS reports count it under; None: not reported (a smarthost)


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a route. `addresses` are IP addresses in the order to try; or `unix_path` names a socket."""

    name: str  # A-form: the MX host, the smarthost; the address itself where there is no name
    addresses: tuple[str, ...] = ()
    port: int = 25
    tls: TlsDemand = TlsDemand()
    unix_path: str = ""
    trouble: Reply | None = None  # why it can't be used at all (no address, names that MTA-STS doesn't allow)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What we authenticate with at a smarthost (RFC 4954)."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Route:
    """Where mail of a domain goes now. Hosts are in the order to try."""

    key: str  # what connections, concurrency and back-off go by: the domain, or the smarthost
    hosts: tuple[Host, ...]
    protocol: Literal["smtp", "lmtp"] = "smtp"
    credentials: Credentials | None = None
    needs_requiretls: bool = False  # the next host must offer REQUIRETLS (RFC 8689)


@dataclass(frozen=True, slots=True)
class NoRoute:
    """There is nowhere to go: for good (5xx) or for now (4xx)."""

    key: str
    reply: Reply


# ---------------------------------------------------------------- what


class OutgoingContent(Protocol):
    """The octets of a message as they go out, without dot-stuffing; every line ends in CRLF."""

    size_octets: int

    def piece(self, number: int) -> bytes | Deferred[bytes]:
        """Piece 0, 1, 2 and so on; b"" behind the last. May be asked again from 0 for another attempt."""


@dataclass(frozen=True, slots=True)
class OutgoingRecipient:
    """One queue row on its way."""

    queue_id: int
    address: str
    notify: frozenset[str] | None = None  # of NEVER, SUCCESS, FAILURE, DELAY; None where nothing was asked
    orcpt: str | None = None  # "rfc822;alice@example.test", decoded


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to some recipients of one route. All of them share reverse-path and options."""

    message_id: int
    reverse_path: str  # without angle brackets; "" for the null path
    recipients: tuple[OutgoingRecipient, ...]
    content: OutgoingContent
    is_eight_bit: bool = False  # its body has octets over 127
    is_smtputf8: bool = False  # it needs SMTPUTF8 (RFC 6531): an address or a header field has octets over 127
    ret: str | None = None  # "FULL" or "HDRS"
    envid: str | None = None  # decoded
    requires_tls: bool = False  # RFC 8689
    tls_is_optional: bool = False  # "TLS-Required: No" (RFC 8689 section 3)
    deliver_by: float | None = None  # seconds since the epoch (RFC 2852); None where nothing was asked
    deliver_by_mode: Literal["", "N", "R"] = ""


# ---------------------------------------------------------------- what came of it


class Result(Enum):
    """What an attempt came to for one recipient. The value is the word in the database."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TlsUsed:
    """The TLS that a connection has."""

    version: str  # "TLSv1.3"
    cipher: str
    is_verified: bool  # a name or a TLSA record was matched
    source: str  # of the demand that it met
    tls_result: str = ""  # a failure that was passed over (MTA-STS in mode testing), as in Trouble


@dataclass(frozen=True, slots=True)
class RecipientOutcome:
    """What became of one recipient in one attempt."""

    queue_id: int
    result: Result
    reply: str  # as one line: the host's own words, or ours
    status: str  # RFC 3463: "5.1.1"; from the reply, or what its code amounts to
    is_remote: bool = True  # the host said it; else we did
    relays_dsn: bool = False  # the host took over the DSN request of this recipient (RFC 3461 section 5.2.2)
    is_ambiguous: bool = False  # the connection was lost behind the final dot: the host may have it


class TroubleKind(Enum):
    """What was wrong with a host as such. The value is the word in the database."""

    CONNECT = "connect"  # no connection
    GREETING = "greeting"  # refused before any transaction: at the greeting, EHLO or AUTH
    TLS = "tls"  # the demand was not met
    TIMEOUT = "timeout"  # it stalled
    LOST = "lost"  # the connection was lost
    SHUTDOWN = "shutdown"  # 421
    PROTOCOL = "protocol"  # it doesn't speak SMTP


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a host can't be used now: for another host of the route to try, and for back-off to count."""

    kind: TroubleKind
    reply: str  # as one line
    status: str  # "4.4.1"
    is_remote: bool = False
    tls_result: str = ""  # RFC 8460 section 4.3, "certificate-expired"; "" where TLS was not the reason


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which host a connection is to."""

    host: str
    address: str  # IP address, or the path of a socket
    port: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one message on one connection. Recipients without an outcome were not tried."""

    message_id: int
    endpoint: Endpoint
    tls: TlsUsed | None
    started_at: float  # seconds since the epoch
    ended_at: float
    outcomes: tuple[RecipientOutcome, ...]
    trouble: Trouble | None = None  # the connection is of no use any more
