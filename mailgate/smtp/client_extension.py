"""What a host offers in its reply to EHLO.

A keyword is taken however its case; a parameter that makes no sense counts as absent, so that a host with an odd SIZE
still gets mail.

Standards: RFC 5321 section 4.1.1.1 (EHLO); RFC 1870 (SIZE), RFC 2852 (DELIVERBY), RFC 2920 (PIPELINING), RFC 3030
(CHUNKING), RFC 3207 (STARTTLS), RFC 3461 (DSN), RFC 4954 (AUTH), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 8689
(REQUIRETLS), RFC 9422 (LIMITS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailgate.smtp.client_reply import ReceivedReply


@dataclass(frozen=True, slots=True)
class Extensions:
    """The extensions of one host, as it offers them now: before and after STARTTLS they may differ."""

    pipelining: bool = False
    size: bool = False
    max_size_octets: int | None = None  # None where it names no limit
    eight_bit: bool = False
    smtputf8: bool = False
    chunking: bool = False
    dsn: bool = False
    starttls: bool = False
    requiretls: bool = False
    deliver_by: bool = False
    min_by_seconds: int = 0
    max_recipients: int | None = None  # RCPTMAX
    max_messages: int | None = None  # MAILMAX
    mechanisms: frozenset[str] = frozenset()  # of AUTH


NO_EXTENSIONS = Extensions()


def parse_extensions(reply: ReceivedReply) -> Extensions:
    """What the reply to EHLO or LHLO offers; its first line is a greeting."""
    offered: dict[str, list[str]] = {}
    for line in reply.lines[1:]:
        words = line.decode("latin-1").split()
        if not words:
            continue
        keyword, separator, rest = words[0].upper().partition("=")
        parameters = [*([rest] if separator and rest else []), *words[1:]]
        # Some repeat AUTH in the form "AUTH=LOGIN" of drafts before RFC 2554.
        offered.setdefault(keyword, []).extend(parameters)
    limits = dict(_limit(parameter) for parameter in offered.get("LIMITS", ()))
    return Extensions(
        pipelining="PIPELINING" in offered,
        size="SIZE" in offered,
        max_size_octets=_positive(offered.get("SIZE", [])),
        eight_bit="8BITMIME" in offered,
        smtputf8="SMTPUTF8" in offered,
        chunking="CHUNKING" in offered,
        dsn="DSN" in offered,
        starttls="STARTTLS" in offered,
        requiretls="REQUIRETLS" in offered,
        deliver_by="DELIVERBY" in offered,
        min_by_seconds=_positive(offered.get("DELIVERBY", [])) or 0,
        max_recipients=limits.get("RCPTMAX"),
        max_messages=limits.get("MAILMAX"),
        mechanisms=frozenset(word.upper() for word in offered.get("AUTH", ())),
    )


def _limit(parameter: str) -> tuple[str, int | None]:
    #   limit-parameter = limit-name "=" 1*DIGIT-or-words ; RFC 9422 section 3: RCPTMAX and MAILMAX have a number
    name, _, value = parameter.partition("=")
    return name.upper(), _positive([value])


def _positive(parameters: list[str]) -> int | None:
    """A number of at most 20 digits (RFC 1870 section 3); 0 means that there is no limit."""
    word = parameters[0].partition(",")[0] if parameters else ""
    return (int(word) or None) if word.isascii() and word.isdigit() and len(word) <= 20 else None
