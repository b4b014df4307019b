"""The envelope of a message: who it is from and who it is for, as the dialogue said.

Values only. Parsing lives in `mailgate.smtp.grammar`; what becomes of a recipient is decided by policies.

Standards: RFC 5321 sections 2.3.11 and 4.1.2 (Mailbox, Reverse-path, Forward-path), RFC 6531 (UTF-8 addresses),
RFC 3461 (DSN parameters), RFC 1870 (SIZE), RFC 6152 (BODY), RFC 8689 (REQUIRETLS), RFC 4865 (HOLDFOR, HOLDUNTIL),
RFC 2852 (BY).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

_ATEXT = r"[^\x00-\x20()<>\[\]:;@\\,.\"\x7f]"
_DOT_STRING = re.compile(rf"{_ATEXT}++(?:\.{_ATEXT}{_ATEXT}*+)*+")


@dataclass(frozen=True, slots=True)
class Address:
    """RFC 5321's Mailbox.

    `local` is the local part as meant: quotes and backslashes are already removed. `domain` is as sent: a name in
    A- or U-form, an address literal with its brackets, or "" for the bare `<Postmaster>` of RCPT.
    """

    local: str
    domain: str

    def __str__(self) -> str:
        """The address in its shortest valid form: the local part is quoted only where RFC 5321 needs it."""
        local = self.local
        if not _DOT_STRING.fullmatch(local):
            local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{local}@{self.domain}" if self.domain else local


@dataclass(frozen=True, slots=True)
class MailParameters:
    """The parameters of MAIL FROM; None where the client gave none."""

    size_octets: int | None = None  # RFC 1870
    body: str | None = None  # "7BIT" or "8BITMIME" (RFC 6152)
    smtputf8: bool = False  # RFC 6531
    ret: str | None = None  # "FULL" or "HDRS" (RFC 3461 section 4.3)
    envid: str | None = None  # decoded from xtext (RFC 3461 section 4.4)
    auth: str | None = None  # decoded from xtext, "<>" included (RFC 4954 section 5)
    requires_tls: bool = False  # REQUIRETLS (RFC 8689)
    hold_until: float | None = None  # seconds since the epoch: HOLDUNTIL, or HOLDFOR from MAIL on (RFC 4865)
    deliver_by: float | None = None  # seconds since the epoch: BY from MAIL on (RFC 2852)
    deliver_by_mode: Literal["", "N", "R"] = ""  # what is due then: a notice, or the end; "" without BY


@dataclass(frozen=True, slots=True)
class RcptParameters:
    """The parameters of RCPT TO; None where the client gave none."""

    notify: frozenset[str] | None = None  # of NEVER, SUCCESS, FAILURE, DELAY (RFC 3461 section 4.1)
    orcpt: str | None = None  # "rfc822;alice@example.test", the address decoded from xtext (RFC 3461 section 4.2)


NO_MAIL_PARAMETERS = MailParameters()
NO_RCPT_PARAMETERS = RcptParameters()


@dataclass(frozen=True, slots=True)
class ReversePath:
    """Where failures are reported to. `address` is None for the null reverse-path `<>`."""

    address: Address | None
    parameters: MailParameters = NO_MAIL_PARAMETERS

    def __str__(self) -> str:
        """The path without its angle brackets; "" for the null path."""
        return "" if self.address is None else str(self.address)


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """Whom a message is for, as sent."""

    address: Address
    parameters: RcptParameters = NO_RCPT_PARAMETERS

    def __str__(self) -> str:
        """The path without its angle brackets."""
        return str(self.address)


@dataclass(frozen=True, slots=True)
class MailboxDestination:
    """A mailbox of ours that a recipient leads to."""

    mailbox_id: int
    address: str  # the mailbox's own address, "alice@example.test"
    detail: str = ""  # what stood behind the plus sign, as sent


@dataclass(frozen=True, slots=True)
class ForwardDestination:
    """An address elsewhere that an alias leads to; kept for sending."""

    address: str
    reverse_path: str | None = None  # what it is sent on with (SRS); None: as it came


@dataclass(frozen=True, slots=True)
class Resolution:
    """A note of the recipients policy: all that one forward-path leads to, no destination twice."""

    destinations: tuple[MailboxDestination | ForwardDestination, ...] = field(default=())
