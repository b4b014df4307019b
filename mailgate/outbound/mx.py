"""Which hosts take a domain's mail, in which order, at which addresses: what follows from answers of the DNS.

Pure. `exchanges` orders what the MX answer names; `survey` adds addresses and TLSA records from further answers, and
raises `Missing` for what it still has to know (`mailgate.dns.settle`). Chance is given in.

An address that no host of the public Internet has (private, loopback, link-local, reserved) is not tried where a
domain's records name it, unless config says so: a stranger would choose which of our own machines we talk to.

Standards: RFC 5321 section 5.1 (MX, implicit MX, order, not to ourselves), RFC 7505 (null MX), RFC 2181 section 10.3
(an exchange is no alias; those that are anyway are followed), RFC 7672 sections 2.2.1 to 2.2.3 (where TLSA records
count), RFC 6890 (special addresses).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final, Literal, TypeAlias

from mailgate.dns.answer import Answer, Answers, Missing, Outcome, Question, RecordType
from mailgate.smtp.reply import Reply, reply

AddressOrder: TypeAlias = Literal["ipv6", "ipv4", "ipv6-only", "ipv4-only"]
Shuffle: TypeAlias = Callable[[list[str]], None]

MAX_HOSTS: Final = 16
MAX_ADDRESSES: Final = 8  # of one host
MAX_ROUTE_ADDRESSES: Final = 16  # of all hosts
_MAX_ALIASES: Final = 4
_MAX_TLSA: Final = 32  # of one host
_DANE_PORT: Final = 25  # RFC 7672 section 2.2.3: of the name that is asked, wherever a test's servers listen

_FAMILIES: Final[dict[AddressOrder, tuple[RecordType, ...]]] = {
    "ipv6": (RecordType.AAAA, RecordType.A),
    "ipv4": (RecordType.A, RecordType.AAAA),
    "ipv6-only": (RecordType.AAAA,),
    "ipv4-only": (RecordType.A,),
}
_TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")  # all of IPv6 that IANA gives to networks


@dataclass(frozen=True, slots=True)
class Exchange:
    """A host that MX records name, or the domain itself where there are none."""

    name: str
    preference: int


@dataclass(frozen=True, slots=True)
class Exchanges:
    """The hosts in the order to try."""

    hosts: tuple[Exchange, ...]
    is_implicit: bool = False  # there is no MX record: the domain is its own host
    is_authenticated: bool = False  # by DNSSEC, or nothing had to be found


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one host."""

    name: str
    preference: int = 0
    addresses: tuple[str, ...] = ()
    problem: Reply | None = None  # why there is no address to try
    is_authenticated: bool = False  # the answers about its addresses are
    tlsa: tuple[tuple[int, int, int, bytes], ...] = ()
    has_tlsa: bool = False  # there are authenticated TLSA records, whatever they are worth
    tlsa_problem: str = ""  # they can't be had, and whether there are any is not known
    tlsa_base: str = ""  # the name that they were found under, or looked for


def exchanges(domain: str, answer: Answer, own_names: frozenset[str], shuffle: Shuffle) -> Exchanges | Reply:
    """The hosts of a domain by its MX answer; a Reply where there is none to try.

    Behind a host that has one of our names, no other comes, nor does any of its preference: mail must not circle.
    """
    if answer.outcome is Outcome.FAILURE:
        return reply(451, "4.4.3", f"The MX records of {domain} can't be had now: {answer.detail or answer.rcode}")
    if answer.outcome is Outcome.NXDOMAIN:
        return reply(550, "5.1.2", f"The domain {domain} does not exist")
    records = [record for record in answer.records if isinstance(record, tuple) and len(record) == 2]
    if not records:
        if domain in own_names:
            return loop(domain)
        return Exchanges((Exchange(domain, 0),), is_implicit=True, is_authenticated=answer.is_authenticated)
    preferences: dict[str, int] = {}
    for preference, name in records:
        preferences[name] = min(preference, preferences.get(name, preference))
    if set(preferences) == {""}:
        return reply(556, "5.1.10", f"The domain {domain} takes no mail (RFC 7505)")
    preferences.pop("", None)
    ours = [preference for name, preference in preferences.items() if name in own_names]
    if ours:
        preferences = {name: preference for name, preference in preferences.items() if preference < min(ours)}
        if not preferences:
            return loop(domain)
    names = sorted(preferences)
    shuffle(names)
    names.sort(key=preferences.__getitem__)
    hosts = tuple(Exchange(name, preferences[name]) for name in names[:MAX_HOSTS])
    return Exchanges(hosts, is_authenticated=answer.is_authenticated)


def loop(domain: str) -> Reply:
    """The mail would come back to us."""
    return reply(
        554, "5.4.6", f"The mail exchangers of {domain} lead back here, and {domain} is not one of our domains"
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """How hosts are looked at."""

    order: AddressOrder = "ipv6"
    allows_private_addresses: bool = False
    looks_for_tlsa: bool = False
    own_names: frozenset[str] = frozenset()  # whose addresses are ours too
    own_addresses: frozenset[str] = frozenset()

    def of(self, found: Exchanges, answers: Answers) -> tuple[tuple[Found, ...], bool]:
        """What is known of each host, up to the first that has an address of ours; and whether one has.

        @raises Missing: more answers are needed.
        """
        families = _FAMILIES[self.order]
        names = [host.name for host in found.hosts if unusable_name(host.name) is None]
        answers.need(
            Question(name, record_type) for name in (*names, *sorted(self.own_names)) for record_type in families
        )
        ours = self.own_addresses | {
            str(record)
            for name in self.own_names
            for record_type in families
            for record in answers.get(name, record_type).records
        }
        hosts = [self._addresses(host.name, host.preference, answers) for host in found.hosts]
        cut = min((host.preference for host in hosts if ours & set(host.addresses)), default=None)
        if cut is not None:
            hosts = [host for host in hosts if host.preference < cut]
        hosts = _bounded(hosts)
        if self.looks_for_tlsa:
            hosts = self._with_tlsa(hosts, answers)
        return tuple(hosts), cut is not None

    def host(self, name: str, answers: Answers) -> Found:
        """What is known of a host that an operator named; its addresses may be private. @raises Missing."""
        answers.need(Question(name, record_type) for record_type in _FAMILIES[self.order])
        return self._addresses(name, 0, answers)

    def _addresses(self, name: str, preference: int, answers: Answers) -> Found:
        problem = unusable_name(name)
        if problem is not None:
            return Found(name, preference, problem=problem)
        families = [answers.get(name, record_type) for record_type in _FAMILIES[self.order]]
        addresses = _interleaved([[str(record) for record in answer.records] for answer in families])
        # A failure of one family must not switch DANE off: an attacker can bring it about (RFC 7672 section 2.1.2).
        is_authenticated = all(each.is_authenticated for each in families if each.outcome is not Outcome.FAILURE)
        failed = next((answer for answer in families if answer.outcome is Outcome.FAILURE), None)
        if addresses:
            tried = addresses if self.allows_private_addresses else tuple(filter(is_public, addresses))
            if not tried:
                text = f"{name} has only addresses that are not of the public Internet: {' '.join(addresses[:3])}"
                problem = reply(550, "5.4.4", text)
            return Found(name, preference, tried[:MAX_ADDRESSES], problem, is_authenticated)
        if failed is not None:
            text = f"The addresses of {name} can't be had now: {failed.detail or failed.rcode}"
            return Found(name, preference, problem=reply(451, "4.4.3", text))
        return Found(name, preference, problem=reply(550, "5.4.4", f"The mail exchanger {name} has no address"))

    def _with_tlsa(self, hosts: Sequence[Found], answers: Answers) -> list[Found]:
        """The hosts with their TLSA records, where their addresses are authenticated (RFC 7672 section 2.2.2)."""
        secure = [host.name for host in hosts if host.is_authenticated]
        answers.need(
            question
            for name in secure
            for question in (Question(name, RecordType.CNAME), Question(tlsa_name(name), RecordType.TLSA))
        )
        found: list[Found] = []
        missing: set[Question] = set()
        for host in hosts:  # what all of them miss is looked up at once
            try:
                found.append(_tlsa_of(host, answers) if host.is_authenticated else host)
            except Missing as error:
                missing |= error.questions
        if missing:
            raise Missing(missing)
        return found


def _bounded(hosts: Sequence[Found]) -> list[Found]:
    """The hosts to which the addresses that are tried belong, with these; those that have none stay."""
    bounded: list[Found] = []
    room = MAX_ROUTE_ADDRESSES
    for host in hosts:
        if room or not host.addresses:
            bounded.append(replace(host, addresses=host.addresses[:room]))
            room -= len(bounded[-1].addresses)
    return bounded


def tlsa_name(host: str) -> str:
    """Where the TLSA records of an MX host are (RFC 7672 section 2.2.3)."""
    return f"_{_DANE_PORT}._tcp.{host}"


def _tlsa_of(host: Found, answers: Answers) -> Found:
    """RFC 7672 section 2.2.3: of an alias first the records of what it leads to, then its own."""
    bases = [host.name]
    for _ in range(_MAX_ALIASES):
        alias = answers.get(bases[0], RecordType.CNAME)
        if alias.outcome is Outcome.FAILURE:  # then it is not known whose records count
            return _without_tlsa(host, bases[0], alias)
        if alias.outcome is not Outcome.ANSWER or not alias.is_authenticated:
            break
        bases.insert(0, str(alias.records[0]))
    for base in dict.fromkeys((bases[0], host.name)):
        answer = answers.get(tlsa_name(base), RecordType.TLSA)
        if answer.outcome is Outcome.FAILURE:
            return _without_tlsa(host, base, answer)
        if answer.outcome is Outcome.ANSWER and answer.is_authenticated:
            records = tuple(record for record in answer.records if isinstance(record, tuple) and len(record) == 4)
            return replace(host, tlsa_base=base, tlsa=records[:_MAX_TLSA], has_tlsa=True)
    return host


def _without_tlsa(host: Found, base: str, failed: Answer) -> Found:
    return replace(host, tlsa_base=base, tlsa_problem=failed.detail or failed.rcode or "no answer")


def unusable_name(name: str) -> Reply | None:
    """Why no host can have that name: it is an address (RFC 5321 section 5.1 wants names), or this machine's."""
    last = name.rpartition(".")[2]
    if last.isdigit() or ":" in name:
        return reply(550, "5.4.4", f"The mail exchanger {name} is no name of a host")
    if last == "localhost":  # RFC 6761 section 6.3
        return reply(550, "5.4.4", f"The mail exchanger {name} is the sending host itself, whichever that is")
    return None


def is_public(address: str) -> bool:
    """Whether a host of the public Internet may have the address; one that carries an IPv4 address is judged by it."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        within = parsed.ipv4_mapped or parsed.sixtofour
        if within is None and parsed in _TRANSLATED:
            within = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if within is not None:
            parsed = within
        elif parsed not in _GLOBAL_UNICAST or parsed.teredo is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


def _interleaved(families: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """One of each family in turn: where one of them leads nowhere, the other is not far."""
    return tuple(address for turn in zip_longest(*families) for address in turn if address is not None)
