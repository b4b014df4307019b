"""How far a client's session has come, and what the host owes it: the words of `mailgate.smtp.client`."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """How far a session has come."""

    HANDSHAKE = "handshake"  # TLS is to be started
    OPENING = "opening"
    READY = "ready"
    QUITTING = "quitting"
    CLOSED = "closed"


class Awaited(Enum):
    """What the host owes us. The value is how it is called when it doesn't come."""

    NOTHING = "nothing"
    HANDSHAKE = "the TLS handshake"
    GREETING = "the greeting"
    EHLO = "the reply to EHLO"
    HELO = "the reply to HELO"
    STARTTLS = "the reply to STARTTLS"
    AUTH = "the reply to AUTH"
    RSET = "the reply to RSET"
    MAIL = "the reply to MAIL"
    RCPT = "the reply to RCPT"
    DATA = "the reply to DATA"
    CONTENT = "the message to be read"
    CHUNK = "the reply to BDAT"
    END = "the reply to the end of the message"
    NO_END = "the reply to an end without a message"
    QUIT = "the reply to QUIT"
