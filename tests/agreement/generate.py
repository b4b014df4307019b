"""The messages on which implementations should agree, and the DNS that they rest on.

Each case is made several times, with other words, blanks and folding each time, which a name does not tell apart since
they must not matter. The same seed makes the same messages.

Standards: RFC 7208, RFC 6376, RFC 8617, RFC 9989.
"""

from __future__ import annotations

from random import Random

from mailgate.dns.zone import Zone
from tests.agreement import arc_mail, dkim_mail, dmarc_mail, spf_mail
from tests.agreement.case import Case

_KINDS = (dkim_mail, spf_mail, dmarc_mail, arc_mail)


def zone() -> Zone:
    """All records."""
    made = Zone()
    for kind in _KINDS:
        kind.add_to(made)
    return made


def cases(seed: int, rounds: int = 1) -> list[Case]:
    """All cases, as many times as there are rounds."""
    random = Random(seed)
    return [case for _ in range(rounds) for kind in _KINDS for case in kind.cases(random)]
