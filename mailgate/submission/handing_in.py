"""Handing one message in, for commands: `mailgate.smtp.client` over a socket that blocks.

Standards: RFC 6409 (submission), RFC 8314 (TLS); RFC 5321 section 4.5.3.2 (time-outs).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailgate.outbound.plan import (
    Credentials,
    Delivery,
    Endpoint,
    OutgoingMessage,
    OutgoingRecipient,
    TlsDemand,
    TlsLevel,
    TlsUsed,
)
from mailgate.smtp.client import ClientSession
from mailgate.smtp.client_state import Phase

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from mailgate.submission.client_settings import ClientSettings

TIMEOUT_SECONDS = 300.0
_CONNECT_SECONDS = 30.0
_PIECE_OCTETS = 65_536


@dataclass(frozen=True, slots=True)
class Request:
    """What the envelope says beside the addresses."""

    notify: frozenset[str] | None = None  # of NEVER, SUCCESS, FAILURE, DELAY (RFC 3461)
    ret: str | None = None  # "FULL" or "HDRS"
    envid: str | None = None
    requires_tls: bool = False  # RFC 8689


@dataclass(frozen=True, slots=True)
class _Content:
    """A message in memory."""

    octets: bytes

    @property
    def size_octets(self) -> int:
        return len(self.octets)

    def piece(self, number: int) -> bytes:
        return self.octets[number * _PIECE_OCTETS : (number + 1) * _PIECE_OCTETS]


def outgoing(
    content: bytes, reverse_path: str, recipients: Iterable[str], request: Request = Request()
) -> OutgoingMessage:
    """The message with its envelope; every line of `content` ends in CRLF, and the null path is ""."""
    addressed = tuple(OutgoingRecipient(number, address, request.notify) for number, address in enumerate(recipients))
    end = content.find(b"\r\n\r\n")
    header = content if end < 0 else content[:end]
    is_ascii = reverse_path.isascii() and all(recipient.address.isascii() for recipient in addressed)
    return OutgoingMessage(
        0,
        reverse_path,
        addressed,
        _Content(content),  # type: ignore[arg-type]  # a property is as good as the attribute
        is_eight_bit=not content.isascii(),
        is_smtputf8=not (is_ascii and header.isascii()),
        ret=request.ret,
        envid=request.envid,
        requires_tls=request.requires_tls,
    )


def hand_in(
    message: OutgoingMessage, settings: ClientSettings, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Delivery:
    """What became of the message; its `trouble` says why nothing did. Blocks, for each answer so long at most."""
    endpoint = Endpoint(settings.host or "localhost", settings.socket or settings.host, settings.port)
    session = ClientSession(
        endpoint=endpoint,
        protocol="smtp",
        helo=_helo(settings),
        tls_demand=_demand(settings),
        time=time.time,
        credentials=Credentials(settings.username, settings.password) if settings.username else None,
        is_local=settings.is_local,
    )
    try:
        connection = _connect(settings)
    except OSError as error:
        session.connect_failed(f"{settings.socket or settings.host}: {error.strerror or error}")
    else:
        connection.settimeout(timeout_seconds)
        with connection:
            delivery = _converse(session, connection, message, settings)
        if delivery is not None:
            return delivery
    now = time.time()
    return Delivery(0, endpoint, session.tls, now, now, (), session.trouble)


def _converse(
    session: ClientSession, connection: socket.socket, message: OutgoingMessage, settings: ClientSettings
) -> Delivery | None:
    """The delivery of the message; None where the session came to nothing before."""
    is_sent = False
    ended: Delivery | None = None
    while session.phase is not Phase.CLOSED:
        try:
            output = session.take_output()
            if output:
                connection.sendall(output)
            elif session.phase is Phase.HANDSHAKE:
                connection = _in_tls(session, connection, settings)
            elif session.is_usable and not is_sent:
                is_sent = True
                session.send(message)
            elif (wanted := session.wanted) is not None:
                session.content(message.content.piece(wanted[1]))  # type: ignore[arg-type]  # ours is never late
            else:
                received = connection.recv(_PIECE_OCTETS)
                if received:
                    session.receive(received)
                else:
                    session.connection_lost("the server closed it")
        except TimeoutError:
            session.time_out()
        except OSError as error:
            session.connection_lost(error.strerror or str(error))
        for _token, delivery in session.take_deliveries():
            ended = delivery
            session.quit()
    connection.close()
    return ended


def _connect(settings: ClientSettings) -> socket.socket:
    if not settings.socket:
        return socket.create_connection((settings.host, settings.port), _CONNECT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(settings.socket)
    except OSError:
        connection.close()
        raise
    return connection


def _helo(settings: ClientSettings) -> str:
    return settings.domain if settings.domain.isascii() and settings.domain else "localhost"


def _demand(settings: ClientSettings) -> TlsDemand:
    if settings.socket or settings.tls == "none":
        return TlsDemand(TlsLevel.NONE)
    return TlsDemand(TlsLevel.ENCRYPT, source="config", is_implicit=settings.tls == "implicit")


def _in_tls(
    session: ClientSession, connection: socket.socket, settings: ClientSettings
) -> ssl.SSLSocket | socket.socket:
    import ssl  # here, because over the Unix socket there is none, and this is run for each mail of cron

    context = ssl.create_default_context(cafile=settings.ca_file or None)
    is_verified = bool(settings.ca_file) or not settings.is_local
    if not is_verified:
        # The certificate of a server on this machine is often of its own making, and nobody stands between.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        secured = context.wrap_socket(connection, server_hostname=settings.host)
    except ssl.SSLCertVerificationError as error:
        session.tls_failed(error.verify_message, "validation-failure")
        return connection
    cipher = secured.cipher()
    session.tls_started(TlsUsed(secured.version() or "", cipher[0] if cipher else "", is_verified, "config"))
    return secured
