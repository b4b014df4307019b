"""Who is told what of a message's way: the values of delivery status notifications, and whether one is due.

Pure. `mailgate.outbound.dsn` makes the message. The decisions:

- For mail from the null reverse-path nobody is told anything, so notifications never answer notifications.
- NOTIFY decides; where it was not given, failures and delays are told, as RFC 3461 section 4.1 lets us choose.
- A notice is one message however many recipients it is about, and whatever became of each of them.
- Mail that we refused is not ours, and its client tells the sender.

Standards: RFC 3461 sections 4 and 5, RFC 3463 (status codes), RFC 3464 section 2.3 (actions).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What became of a recipient (RFC 3464 section 2.3.3). The value is the word in the notification."""

    FAILED = "failed"
    DELAYED = "delayed"  # it is still tried
    DELIVERED = "delivered"  # it is in the recipient's mailbox
    RELAYED = "relayed"  # a host has it that does not do notifications: nothing more will be heard
    EXPANDED = "expanded"  # delivered to a list, whose members' notices nobody gets


_DEFAULT_NOTIFY = frozenset({"FAILURE", "DELAY"})
_ASKED_BY = {
    Action.FAILED: "FAILURE",
    Action.DELAYED: "DELAY",
    Action.DELIVERED: "SUCCESS",
    Action.RELAYED: "SUCCESS",
    Action.EXPANDED: "SUCCESS",
}


def wants(reverse_path: str, notify: frozenset[str] | None, action: Action) -> bool:
    """Whether the sender is to be told (RFC 3461 section 4.1). `notify` is None where the client gave none."""
    return bool(reverse_path) and _ASKED_BY[action] in (_DEFAULT_NOTIFY if notify is None else notify)


def success_action(*, relays_dsn: bool, is_final: bool) -> Action | None:
    """What a delivery comes to: None where the next host took over the duty to tell (RFC 3461 section 5.2.2).

    `is_final` where the host was the recipient's mailbox: LMTP, or a mailbox of ours.
    """
    if is_final:
        return Action.DELIVERED
    return None if relays_dsn else Action.RELAYED


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """What is told of one recipient. Times are seconds since the epoch."""

    recipient: str  # the address as it was tried
    action: Action
    status: str  # RFC 3463: "5.1.1"
    reply: str = ""  # as one line: the host's own words, or ours
    host: str = ""  # whose words: a name or an IP address; "" where they are ours
    orcpt: str | None = None  # "rfc822;alice@example.test", decoded
    last_attempt_at: float | None = None
    retry_until: float | None = None  # while it is delayed
    is_expired: bool = False  # failed only because the time was up: the reply is that of the last attempt


@dataclass(frozen=True, slots=True)
class OriginalMessage:
    """The message that the notification is about."""

    reverse_path: str  # not the null path
    arrived_at: float  # seconds since the epoch
    content: bytes  # header and body; of one over MAX_RETURNED_OCTETS, at least the header
    size_octets: int  # of all of it
    ret: str | None = None  # "FULL" or "HDRS"
    envid: str | None = None  # decoded
    requires_tls: bool = False  # RFC 8689


_STATUS = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}")
_CLASS = {Action.FAILED: "54", Action.DELAYED: "4"}


def status_code(recipient: RecipientStatus) -> str:
    """The code that fits the action: that of the recipient, unless it is none or says something else (RFC 3463)."""
    if recipient.is_expired:
        return "4.4.7"
    classes = _CLASS.get(recipient.action, "2")
    match = _STATUS.fullmatch(recipient.status)
    if match is None or match[1] not in classes:
        return f"{classes[0]}.0.0"
    return recipient.status
