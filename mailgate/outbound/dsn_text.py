"""What a delivery status notification says to people: its subject, and its first part.

English. First what happened and to whom, then the other host's own words, then what to do about it, found by the
status code. Nothing here is for programs: they read the second part.

Standards: RFC 3464 section 2 (the first part is for people), RFC 3463 (what the codes mean).
"""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import fill
from typing import TYPE_CHECKING

from mailgate.composition import one_line
from mailgate.message import readable_field
from mailgate.outbound.notice import Action, status_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailgate.outbound.notice import OriginalMessage, RecipientStatus

_WIDTH = 76
_MAX_LISTED = 100

# The worst comes first, and names the message.
_ORDER = (Action.FAILED, Action.DELAYED, Action.RELAYED, Action.EXPANDED, Action.DELIVERED)

_SUBJECTS = {
    Action.FAILED: "Not delivered",
    Action.DELAYED: "Delayed, still trying",
    Action.RELAYED: "Passed on",
    Action.EXPANDED: "Delivered to a list",
    Action.DELIVERED: "Delivered",
}

_BEGINNINGS = {
    Action.FAILED: "Your message could not be delivered to:",
    Action.DELAYED: "Your message has not been delivered yet, and is still being tried, to:",
    Action.RELAYED: (
        "Your message was passed on, to a host that does not tell what becomes of it. You will hear of it again only if"
        " that host bounces it. It was for:"
    ),
    Action.EXPANDED: "Your message was delivered to a list, which sent it to its members:",
    Action.DELIVERED: "Your message was delivered to:",
}

# By status code without its class, the longest that fits first.
_ADVICE = {
    "1": "The address is wrong, or not in use any longer. Check it, letter by letter.",
    "1.1": "There is no such address there. Check it, letter by letter, in front of the at-sign.",
    "1.2": "There is no such domain. Check the address, letter by letter, behind the at-sign.",
    "1.6": "The recipient has moved and left no new address. Ask for it another way.",
    "1.7": "Your own address was not accepted as it is written. Check your mail program's settings.",
    "1.8": "The domain of your own address was not found. Check your mail program's settings.",
    "1.10": "The domain says that it takes no mail. Check the address behind the at-sign.",
    "2": "The mailbox does not take mail now. Reach the recipient another way.",
    "2.1": "The mailbox is switched off. Reach the recipient another way.",
    "2.2": "The mailbox is full. Tell the recipient another way, and send it again later.",
    "2.3": "The message is larger than this recipient takes. Send a link, or a smaller message.",
    "3": "The other mail system can't take the message. Try again later, or tell its postmaster.",
    "3.4": "The message is larger than that mail system takes. Send a link, or a smaller message.",
    "4": "The other mail system could not be reached. If the address is right, try again later.",
    "4.4": "No mail system was found for that domain. Check the address behind the at-sign.",
    "4.6": "The message goes round in circles between mail systems. Tell the recipient's postmaster.",
    "4.7": "The mail system there did not take the message in all that time. Check the address, or try again later.",
    "5": "The mail systems did not understand each other. Tell your postmaster.",
    "6": "The other mail system does not take a message of this kind.",
    "6.7": "The other mail system does not take addresses with letters beyond ASCII.",
    "7": "The other mail system does not want this message. What it says may tell why; else ask its postmaster.",
    "7.1": "You are not allowed to send to this address. Reach the recipient another way.",
    "7.30": "The way there is not encrypted as you asked. Nothing was sent in the clear.",
    "7.26": "The message did not prove to the other mail system that it is from your domain. Tell your postmaster.",
}


def subject(recipients: Sequence[RecipientStatus]) -> str:
    """What happened and to whom, in a few words."""
    worst = min((each.action for each in recipients), key=_ORDER.index)
    concerned = [one_line(each.recipient, 100) for each in recipients if each.action is worst]
    more = f" and {len(concerned) - 1} more" if len(concerned) > 1 else ""
    return f"{_SUBJECTS[worst]}: {concerned[0]}{more}"


def text(
    original: OriginalMessage,
    header: bytes,
    recipients: Sequence[RecipientStatus],
    *,
    hostname: str,
    is_whole: bool,
) -> str:
    """The first part. `header` is that of the message, which is returned whole where `is_whole` says so."""
    paragraphs = [fill(f"This is the mail system at {hostname}.", _WIDTH)]
    for action in _ORDER:
        concerned = [each for each in recipients if each.action is action]
        if concerned:
            paragraphs.append(fill(_BEGINNINGS[action], _WIDTH))
            paragraphs += [_paragraph(each, original) for each in concerned[:_MAX_LISTED]]
            if len(concerned) > _MAX_LISTED:
                paragraphs.append(f"and {len(concerned) - _MAX_LISTED} more, who are in the delivery report.")
    paragraphs.append(_which(original, header))
    if any(each.action is Action.DELAYED for each in recipients):
        paragraphs.append("You need not send it again. You will be told if it can't be delivered at all.")
    attached = "the message" if is_whole else "the header of the message"
    paragraphs.append(fill(f"Attached are a report for mail programs, and {attached}.", _WIDTH))
    return "\n\n".join(paragraphs) + "\n"


def _paragraph(recipient: RecipientStatus, original: OriginalMessage) -> str:
    lines = [f"  {one_line(recipient.recipient, 300)}"]
    alias = (recipient.orcpt or "").partition(";")[2]
    if alias and alias.lower() != recipient.recipient.lower():
        lines.append(_indented(f"which you addressed as {one_line(alias, 300)}"))
    if recipient.is_expired:
        seconds = (recipient.last_attempt_at or original.arrived_at) - original.arrived_at
        lines.append(_indented(f"It was tried for {_span(seconds)}, and the time for trying is up."))
    if recipient.reply and recipient.action in (Action.FAILED, Action.DELAYED):
        lead = f"The host {one_line(recipient.host, 255)} says:" if recipient.host else "The reason:"
        lines += [_indented(lead), _indented(one_line(recipient.reply), 8)]
    if recipient.retry_until is not None and recipient.action is Action.DELAYED:
        lines.append(_indented(f"It is tried until {_moment(recipient.retry_until)}."))
    if recipient.action is Action.FAILED:
        advice = _advice(recipient)
        if advice:
            lines.append(_indented(advice))
    return "\n".join(lines)


def _advice(recipient: RecipientStatus) -> str:
    subject_and_detail = status_code(recipient)[2:]
    return _ADVICE.get(subject_and_detail) or _ADVICE.get(subject_and_detail.partition(".")[0], "")


def _which(original: OriginalMessage, header: bytes) -> str:
    lines = [f"The message came to us on {_moment(original.arrived_at)}."]
    for name, label in ((b"Subject", "Its subject"), (b"Date", "Its date")):
        value = readable_field(header, name, 200)
        if value:
            lines.append(fill(f"{label}: {one_line(value)}", _WIDTH, subsequent_indent="    "))
    return "\n".join(lines)


def _indented(line: str, blanks: int = 4) -> str:
    indent = " " * blanks
    return fill(line, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(int(seconds), UTC)
    return f"{moment:%Y-%m-%d} at {moment:%H:%M} UTC"


def _span(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        number = round(seconds / length)
        if number >= 1 and seconds >= length * 0.9:
            return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
    return "less than a minute"
