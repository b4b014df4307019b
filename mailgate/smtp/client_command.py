"""MAIL and RCPT as a client sends them, and what must not be sent to a host that offers too little.

Mail is never mangled to suit a host: where it would have to be, there is a refusal of ours with the status that the
standard has for it.

Standards: RFC 5321 sections 4.1.1.2 and 4.1.1.3; RFC 1870 (SIZE), RFC 2852 (BY), RFC 3461 sections 4 and 5.2.1 (DSN),
RFC 6152 (BODY), RFC 6531 sections 3.4 and 3.5 (SMTPUTF8), RFC 6533 section 3 (utf-8 ORCPT), RFC 8689 (REQUIRETLS).
"""

from __future__ import annotations

import re
from math import floor
from typing import TYPE_CHECKING

from mailgate.smtp.grammar import GrammarError, domain_key, encode_xtext
from mailgate.smtp.reply import Reply, reply

if TYPE_CHECKING:
    from mailgate.outbound.plan import OutgoingMessage, OutgoingRecipient
    from mailgate.smtp.client_extension import Extensions

NO_REQUIRETLS = reply(550, "5.7.30", "The next host does not offer REQUIRETLS, which this message needs (RFC 8689)")
NO_SMTPUTF8 = reply(550, "5.6.7", "The next host does not offer SMTPUTF8, which this message needs (RFC 6531)")
NO_EIGHT_BIT = reply(550, "5.6.3", "The next host does not offer 8BITMIME, which this message needs (RFC 6152)")
NO_DELIVER_BY = reply(550, "5.3.3", "The next host does not promise delivery by the time asked for (RFC 2852)")
TOO_LATE = reply(550, "5.4.7", "The time by which it was to be delivered has passed (RFC 2852)")
BAD_SENDER = reply(550, "5.1.7", "The reverse-path can't be sent: it holds a control character, or is no address")
BAD_RECIPIENT = reply(550, "5.1.3", "The address can't be sent: it holds a control character, or is no address")

MAX_BY_SECONDS = 999_999_999  # RFC 2852 section 4: by-time has at most nine digits

# What would end the command. Addresses have been parsed when they came; nothing depends on that here.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ORCPT_LIMIT = 500  # RFC 3461 section 4.2


def refusal_of(
    message: OutgoingMessage, extensions: Extensions, now: float, *, is_relayed: bool = True
) -> Reply | None:
    """Why the message can't go to a host with these extensions; None where it can. `now` is seconds since the epoch.

    `is_relayed` is False where it goes to a mailbox without leaving the machine.
    """
    if message.requires_tls and is_relayed and not extensions.requiretls:
        return NO_REQUIRETLS
    if message.is_smtputf8 and not extensions.smtputf8:
        return NO_SMTPUTF8
    # RFC 6531 section 3.1 (8): who offers SMTPUTF8 must offer 8BITMIME; some forget to say so.
    if message.is_eight_bit and not (extensions.eight_bit or extensions.smtputf8):
        return NO_EIGHT_BIT
    limit = extensions.max_size_octets
    if limit is not None and message.content.size_octets > limit:
        return reply(552, "5.3.4", f"The next host takes at most {limit} octets (RFC 1870)")
    if message.deliver_by is not None and message.deliver_by_mode == "R":
        # RFC 2852 section 4: with mode "R", nobody may take it on who doesn't promise to hand it over or back in time.
        if message.deliver_by <= now:
            return TOO_LATE
        if not extensions.deliver_by or message.deliver_by - now < extensions.min_by_seconds:
            return NO_DELIVER_BY
    return None


def mail_command(message: OutgoingMessage, extensions: Extensions, now: float) -> bytes | Reply:
    """The command, or why there is none."""
    path = _path(message.reverse_path, is_smtputf8=message.is_smtputf8)
    if path is None:
        return BAD_SENDER if message.reverse_path.isascii() else NO_SMTPUTF8
    words = [f"MAIL FROM:<{path}>"]
    if extensions.size:
        words.append(f"SIZE={message.content.size_octets}")
    if message.is_eight_bit:
        words.append("BODY=8BITMIME")
    if message.is_smtputf8:
        words.append("SMTPUTF8")
    if message.requires_tls and extensions.requiretls:
        words.append("REQUIRETLS")
    if extensions.dsn:
        if message.ret is not None:
            words.append(f"RET={message.ret}")
        if message.envid is not None:
            words.append(f"ENVID={encode_xtext(message.envid)}")
    if extensions.deliver_by and message.deliver_by is not None and message.deliver_by_mode:
        seconds = max(-MAX_BY_SECONDS, min(floor(message.deliver_by - now), MAX_BY_SECONDS))
        words.append(f"BY={seconds};{message.deliver_by_mode}")
    return (" ".join(words) + "\r\n").encode("utf-8")


def rcpt_command(recipient: OutgoingRecipient, extensions: Extensions, *, is_smtputf8: bool) -> bytes | Reply:
    """The command, or why there is none for this recipient."""
    path = _path(recipient.address, is_smtputf8=is_smtputf8)
    if path is None or not path:
        return BAD_RECIPIENT if recipient.address.isascii() else NO_SMTPUTF8
    command = f"RCPT TO:<{path}>"
    if extensions.dsn:
        if recipient.notify:
            command += " NOTIFY=" + ",".join(sorted(recipient.notify))
        if recipient.orcpt is not None:
            command += _orcpt(recipient.orcpt, is_smtputf8=is_smtputf8)
    return (command + "\r\n").encode("utf-8")


def _path(address: str, *, is_smtputf8: bool) -> str | None:
    """The address as it stands between the brackets; None where it can't."""
    if _CONTROL.search(address) is not None:
        return None
    if address.isascii() or is_smtputf8:
        return address
    # Without SMTPUTF8 a domain may still go in its A-form (RFC 6531 section 3.2); a local part has no other form.
    local, _, domain = address.rpartition("@")
    if not local.isascii():
        return None
    try:
        return f"{local}@{domain_key(domain)}"
    except GrammarError:
        return None


#   original-recipient-address = addr-type ";" xtext          ; RFC 3461 section 4.2
#   utf-8-addr-xtext or utf-8-addr-unitext with type utf-8    ; RFC 6533 section 3
def _orcpt(orcpt: str, *, is_smtputf8: bool) -> str:
    kind, _, address = orcpt.partition(";")
    if kind.lower() == "utf-8":
        escape = _NOT_UNITEXT if is_smtputf8 else _NOT_UTF_8_XTEXT
        encoded = escape.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address)
    else:
        encoded = encode_xtext(address)
    parameter = f" ORCPT={kind};{encoded}"
    # One that is too long to be sent is left out: a server may refuse the recipient for it.
    return parameter if len(parameter.encode("utf-8")) <= _ORCPT_LIMIT else ""


# QCHAR = %x21-2a / %x2c-3c / %x3e-5b / %x5d-7e
_NOT_UTF_8_XTEXT = re.compile(r"[^!-*,-<>-\[\]-~]")
_NOT_UNITEXT = re.compile(r"[^!-*,-<>-\[\]-~\xa0-\U0010ffff]")
