"""Where reports go: the URIs that a domain names, and whether a destination elsewhere has agreed.

A domain can name anybody. Who is not of its own organization is asked first, by a record of its own: else a domain
could have the world's reports sent to a victim. For TLS reports RFC 8460 asks nobody; it wants reports signed instead.

Standards: RFC 9990 section 4 (verification of external destinations), RFC 9989 section 4.7 (rua), RFC 7489 section 6.3
(the size behind an exclamation mark), RFC 8460 section 3 (the TLSRPT record), RFC 6068 (mailto).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from twisted.internet.defer import Deferred

from mailgate.auth.alignment import organizational_domain, walk
from mailgate.dns.answer import Answers, Outcome, RecordType
from mailgate.dns.settle import settle
from mailgate.smtp.grammar import GrammarError, domain_key, parse_mailbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailgate.dns.settle import Resolver
    from mailgate.envelope import Address

MAX_DESTINATIONS = 5
_SIZE = re.compile(r"!([0-9]{1,15})([kmgtKMGT]?)\Z")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DMARC_VERSION = re.compile(rb"v[ \t]*+=[ \t]*+DMARC1[ \t]*+(?:;|\Z)", re.IGNORECASE)
# RFC 8460 section 3: "tlsrpt-record = tlsrpt-version 1*(field-delim tlsrpt-field) [field-delim]"
_TLSRPT = re.compile(rb"v=TLSRPTv1[ \t]*+;(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Destination:
    """An address that wants reports."""

    address: Address
    max_octets: int | None = None  # of what is attached; None: no bound


def mail_destinations(uris: Iterable[str]) -> tuple[Destination, ...]:
    """The addresses among these URIs, none twice, at most MAX_DESTINATIONS. Other schemes are passed over."""
    found: dict[str, Destination] = {}
    for uri in uris:
        scheme, _, rest = uri.strip().partition(":")
        if scheme.lower() != "mailto":
            continue
        max_octets = None
        size = _SIZE.search(rest)
        if size is not None:
            rest = rest[: size.start()]
            max_octets = int(size[1]) * _UNITS[size[2].lower()]
        try:
            address = parse_mailbox(unquote(rest.partition("?")[0], errors="strict"))
            domain_key(address.domain)
        except (GrammarError, UnicodeDecodeError):
            continue
        found.setdefault(str(address), Destination(address, max_octets))
    return tuple(found.values())[:MAX_DESTINATIONS]


class Undecided(Exception):
    """The DNS did not answer: whether a destination wants reports is to be asked again later."""


async def agreed(
    policy_domain: str, destinations: Iterable[Destination], resolver: Resolver
) -> tuple[Destination, ...]:
    """Those of the destinations that are of the domain's own organization, or have agreed to its reports.

    @raises Undecided: the DNS does not say.
    """
    willing = []
    for destination in destinations:
        host = domain_key(destination.address.domain)
        if host.startswith("["):
            continue

        def evaluation(answers: Answers, host: str = host) -> bool | None:
            return _is_agreed(policy_domain, host, answers)

        settled = settle(evaluation, resolver)
        is_agreed = await settled if isinstance(settled, Deferred) else settled
        if is_agreed is None:
            raise Undecided
        if is_agreed:
            willing.append(destination)
    return tuple(willing)


def _is_agreed(policy_domain: str, host: str, answers: Answers) -> bool | None:
    """Whether that host takes reports about the domain; None where the DNS does not say."""
    if host == policy_domain or _organization(host, answers) == _organization(policy_domain, answers):
        return True
    answer = answers.get(f"{policy_domain}._report._dmarc.{host}", RecordType.TXT)
    if answer.outcome is Outcome.FAILURE:
        return None
    return any(isinstance(each, bytes) and _DMARC_VERSION.match(each) for each in answer.records)


def _organization(domain: str, answers: Answers) -> str:
    return organizational_domain(walk(domain, answers))


async def tls_destinations(domain: str, resolver: Resolver) -> tuple[Destination, ...]:
    """The addresses that the domain's TLSRPT record names; () where it has none, or more than one.

    @raises Undecided: the DNS does not say.
    """
    looked_up = resolver.lookup(f"_smtp._tls.{domain}", RecordType.TXT)
    answer = await looked_up if isinstance(looked_up, Deferred) else looked_up
    if answer.outcome is Outcome.FAILURE:
        raise Undecided
    records = [match for each in answer.records if isinstance(each, bytes) and (match := _TLSRPT.match(each))]
    if len(records) != 1:
        return ()
    fields = records[0][1].decode("utf-8", "replace").split(";")
    uris = [value for field in fields for name, _, value in [field.partition("=")] if name.strip() == "rua"]
    return mail_destinations(uri for value in uris for uri in value.split(","))
