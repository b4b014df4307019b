"""Suppression: addresses elsewhere that have failed for good more than once are refused for a while.

Off unless config gives it days: a provider that says 550 to all mail for an hour would otherwise cost its addresses a
fortnight. Where it is on, a client that submits hears at once what a bounce would have told it, and other mail systems
are not asked again and again for mailboxes that they do not have.

What counts is only that the address itself is wrong: 5.1.1 and its kin, said by the other host. A full mailbox, a
refused message or a lost network says nothing of the address.

Standards: RFC 3463 section 3.2 (X.1.Y), RFC 5321 section 4.2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from mailgate.smtp.grammar import GrammarError, domain_key
from mailgate.smtp.reply import Reply, reply

THRESHOLD = 3

# Bad mailbox, bad domain, mailbox moved, null MX; and the mailbox disabled.
_OF_THE_ADDRESS = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"})


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Why an address is refused, and until when (seconds since the epoch)."""

    until: float
    last_reply: str

    def reply(self) -> Reply:
        """What RCPT hears."""
        until = f"{datetime.fromtimestamp(self.until, UTC):%Y-%m-%d}"
        return reply(
            550,
            "5.1.1",
            f"Mail to this address has failed for good several times; it is not tried again before {until}.",
            f"The last answer was: {self.last_reply[:300]}",
        )


def tells_of_the_address(status: str) -> bool:
    """Whether a failure with that status, said by the other host, is one of the address."""
    return status in _OF_THE_ADDRESS


def key_of(address: str) -> str:
    """The address as suppression compares it."""
    local, at, domain = address.rpartition("@")
    try:
        return f"{local}{at}{domain_key(domain)}"
    except GrammarError:
        return address
