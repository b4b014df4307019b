r"""Delivery status notifications: the message that tells what became of another one.

Pure: values in, octets out. Whoever settles an attempt asks `mailgate.outbound.notice` which recipients a notice is due
for, hands those of one message to `build`, and puts the octets on their way from the null reverse-path: into the queue,
or into a mailbox of ours. The words are in `mailgate.outbound.dsn_text`.

The whole message is returned only where RET=FULL asks for it, something failed, it is not large, and did not come with
REQUIRETLS; else its header.

What comes from strangers (replies, ENVID, ORCPT, the message itself) can't leave its place: it is made one line of
printable characters, or is kept in a part of its own, behind a boundary that does not occur in it.

A notification to an ASCII address is ASCII itself, but for the body of a message that it returns: addresses in UTF-8
are written `utf-8; \x{F6}...`, and headers in UTF-8 are encoded. To an address in UTF-8 everything is UTF-8.

Standards: RFC 3461 sections 4 to 6 (what is asked for), RFC 3462 and RFC 6522 (multipart/report), RFC 3464
(message/delivery-status), RFC 6533 (UTF-8), RFC 3834 (Auto-Submitted), RFC 5321 section 6.1 (from the null path),
RFC 8689 section 5 (REQUIRETLS: as if RET=HDRS were asked, and REQUIRETLS again).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailgate.composition import (
    Part,
    base64_lines,
    date,
    folded,
    has_short_lines,
    header_field,
    multipart,
    one_line,
    printable_ascii,
    quoted_printable,
    text_part,
)
from mailgate.message import fields_of
from mailgate.outbound import dsn_text
from mailgate.outbound.notice import Action, status_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailgate.outbound.notice import OriginalMessage, RecipientStatus

# Of a message that is returned whole; larger ones are returned as their header.
MAX_RETURNED_OCTETS = 1024 * 1024
MAX_RETURNED_HEADER_OCTETS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification on its way from the null reverse-path to `recipient`, not signed yet."""

    recipient: str
    subject: str
    message_id: str  # with its angle brackets
    octets: bytes
    is_eight_bit: bool  # its body has octets over 127
    is_smtputf8: bool  # it can only go where SMTPUTF8 is
    requires_tls: bool  # as the message did


def build(
    original: OriginalMessage,
    recipients: Sequence[RecipientStatus],
    *,
    hostname: str,
    author: str,
    reference: str,
    made_at: float,
) -> Notification:
    """The notification of what became of these recipients, at least one.

    `author` is the address in From, a person's in charge (the postmaster's); `reference` is an id of ours that no other
    notification has. `made_at` is seconds since the epoch.
    """
    if not original.reverse_path or not recipients:
        raise ValueError("a notification needs somebody to tell, and something to tell")
    to = one_line(original.reverse_path)
    is_smtputf8 = not to.isascii()
    header = _header_of(original.content)
    returned = _returned(original, header, recipients, is_smtputf8=is_smtputf8)
    subject = dsn_text.subject(recipients)
    parts = (
        text_part(dsn_text.text(original, header, recipients, hostname=hostname, is_whole=_is_whole(returned))),
        _status_part(original, recipients, hostname, is_smtputf8=is_smtputf8),
        returned,
    )
    content_type, body = multipart("report", " report-type=delivery-status;", parts, f"{reference} {hostname}")
    message_id = f"<{reference}@{hostname}>"
    fields = [
        folded("Date", date(made_at)),
        folded("From", f"Mail Delivery System <{author}>", "utf-8"),
        folded("To", f"<{to}>", "utf-8"),
        header_field("Subject", subject, is_utf_8=is_smtputf8),
        folded("Message-ID", message_id),
        *_thread_of(header),
        b"Auto-Submitted: auto-replied\r\n",
        b"MIME-Version: 1.0\r\n",
        f"Content-Type: {content_type}\r\n".encode("ascii"),
    ]
    if not body.isascii():
        fields.append(b"Content-Transfer-Encoding: 8bit\r\n")
    octets = b"".join(fields) + b"\r\n" + body
    return Notification(to, subject, message_id, octets, not body.isascii(), is_smtputf8, original.requires_tls)


# ---------------------------------------------------------------- for programs


def _status_part(
    original: OriginalMessage, recipients: Sequence[RecipientStatus], hostname: str, *, is_smtputf8: bool
) -> Part:
    fields = [("Reporting-MTA", f"dns; {hostname}")]
    if original.envid is not None:
        fields.insert(0, ("Original-Envelope-Id", printable_ascii(original.envid)))
    fields.append(("Arrival-Date", date(original.arrived_at)))
    groups = [fields, *(_recipient_fields(each, is_smtputf8=is_smtputf8) for each in recipients)]
    charset = "utf-8" if is_smtputf8 else "ascii"
    octets = b"\r\n".join(b"".join(folded(name, body, charset) for name, body in group) for group in groups)
    if octets.isascii():
        return Part("message/delivery-status", octets, description="Delivery report")
    return Part("message/global-delivery-status", octets, "8bit", description="Delivery report")


def _recipient_fields(recipient: RecipientStatus, *, is_smtputf8: bool) -> list[tuple[str, str]]:
    fields = []
    if recipient.orcpt is not None:
        kind, _, address = recipient.orcpt.partition(";")
        fields.append(("Original-Recipient", _typed_address(kind, address, is_smtputf8=is_smtputf8)))
    fields += [
        ("Final-Recipient", _typed_address("rfc822", recipient.recipient, is_smtputf8=is_smtputf8)),
        ("Action", recipient.action.value),
        ("Status", status_code(recipient)),
    ]
    if recipient.host and _MTA_NAME.fullmatch(recipient.host):
        fields.append(("Remote-MTA", f"dns; {_mta_name(recipient.host)}"))
    if recipient.reply:
        kind = "smtp" if recipient.host else "x-mailgate"
        fields.append(("Diagnostic-Code", f"{kind}; {printable_ascii(recipient.reply)}"))
    if recipient.last_attempt_at is not None:
        fields.append(("Last-Attempt-Date", date(recipient.last_attempt_at)))
    if recipient.retry_until is not None and recipient.action is Action.DELAYED:
        fields.append(("Will-Retry-Until", date(recipient.retry_until)))
    return fields


_MTA_NAME = re.compile(r"[A-Za-z0-9.:_\-\[\]]{1,255}")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9\-]{1,40}")

#   utf-8-addr-xtext = 1*(QCHAR / EmbeddedUnicodeChar)
# RFC 6533 section 3: what a utf-8 address is written as where only ASCII may stand.
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")


def _mta_name(host: str) -> str:
    is_address = ":" in host or not host.strip("0123456789.")
    return f"[{'IPv6:' if ':' in host else ''}{host}]" if is_address and not host.startswith("[") else host


def _typed_address(kind: str, address: str, *, is_smtputf8: bool) -> str:
    if not _ADDRESS_TYPE.fullmatch(kind):
        kind, address = "unknown", f"{kind};{address}"
    address = one_line(address, 1000)
    if address.isascii():
        return f"{kind}; {address}"
    if not is_smtputf8:
        address = _NOT_QCHAR.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address)
    return f"utf-8; {address}"


# ---------------------------------------------------------------- what comes back


def _header_of(content: bytes) -> bytes:
    """The header section with the CRLF of its last field; of a very long one, some whole lines."""
    end = 0 if content.startswith(b"\r\n") else content.find(b"\r\n\r\n", 0, MAX_RETURNED_HEADER_OCTETS + 2) + 2
    if end == 1:  # it goes on behind what was looked at, or there is no body
        end = len(content)
        if end > MAX_RETURNED_HEADER_OCTETS:
            end = content.rfind(b"\r\n", 0, MAX_RETURNED_HEADER_OCTETS) + 2
    return content[:end]


def _returned(
    original: OriginalMessage, header: bytes, recipients: Sequence[RecipientStatus], *, is_smtputf8: bool
) -> Part:
    is_asked_whole = (
        original.ret == "FULL"
        and not original.requires_tls
        and any(each.action is Action.FAILED for each in recipients)
    )
    content = original.content
    if is_asked_whole and len(content) == original.size_octets <= MAX_RETURNED_OCTETS and has_short_lines(content):
        if header.isascii():
            return Part("message/rfc822", content, "7bit" if content.isascii() else "8bit", "Undelivered message")
        if _is_utf_8(header):
            # RFC 6532 section 3.7 allows message/global any encoding.
            octets = content if is_smtputf8 else base64_lines(content)
            return Part("message/global", octets, "8bit" if is_smtputf8 else "base64", "Undelivered message")
    if header.isascii() and has_short_lines(header):
        return Part("text/rfc822-headers", header, description="Header of the message")
    if is_smtputf8 and has_short_lines(header) and _is_utf_8(header):
        return Part("message/global-headers", header, "8bit", "Header of the message")
    kind = "message/global-headers" if _is_utf_8(header) else "text/rfc822-headers"
    return Part(kind, quoted_printable(header), "quoted-printable", "Header of the message")


def _is_whole(returned: Part) -> bool:
    return returned.content_type in ("message/rfc822", "message/global")


def _is_utf_8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not octets.isascii()


_MESSAGE_ID = re.compile(rb"<[!-;=?-~]{1,250}>")


def _thread_of(header: bytes) -> list[bytes]:
    """Fields that put the notification beside the message in a mailbox."""
    found = fields_of(header, b"Message-ID")
    if len(found) != 1 or not _MESSAGE_ID.fullmatch(found[0]):
        return []
    return [b"In-Reply-To: " + found[0] + b"\r\n", b"References: " + found[0] + b"\r\n"]
