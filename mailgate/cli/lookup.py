"""`mailgate lookup`: what the gate sees in the DNS.

It asks with the gate's own resolver and as config says, but not through a running gate: its memory starts empty. What
is found is a `Report`; only the command itself prints, and only `_in_reactor` runs a reactor.

Standards: RFC 5321 section 5.1 (MX, and hosts without), RFC 7505 (null MX), RFC 7208 section 4.5 (which record is
SPF's), RFC 6376 section 3.6 (keys), RFC 9989 section 4.10 (the DMARC tree walk), RFC 7672 and RFC 8461 (TLS of hosts).
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mailgate.auth.alignment import question_for, walk
from mailgate.auth.dmarc import evaluate
from mailgate.auth.results import DmarcResult
from mailgate.auth.signing_key import KEY_TYPES, KeyFault, keys_in
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.output import Column, Table, json_option, print_json, print_note
from mailgate.config import server_address
from mailgate.dns.answer import Answer, Answers, Outcome, Question, RecordType
from mailgate.dns.settle import settle
from mailgate.outbound.plan import Route, TlsDemand, TlsLevel

if TYPE_CHECKING:
    from mailgate.config import Config
    from mailgate.dns.resolver import CachingResolver
    from mailgate.dns.settle import Resolver
    from mailgate.outbound.route import Router

_T = TypeVar("_T")

_ADDRESS_TYPES = (RecordType.AAAA, RecordType.A)  # in the order in which a sender tries them
_INFIX = "._domainkey."


@dataclass(frozen=True, slots=True)
class Report:
    """What a look-up found."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[dict[str, Any], ...]  # the same for JSON
    notes: tuple[str, ...] = ()
    problem: str = ""  # why the command has failed, though there is something to see


class Inquiry:
    """The kinds of look-ups, on any resolver."""

    def __init__(self, resolver: Resolver, router: Router | None = None) -> None:
        """Only routes need the router."""
        self._resolver = resolver
        self._router = router

    async def of(self, kind: str, name: str) -> Report:
        """What is found for a name in the form of `mailgate.dns.wire`, or for an IP address.

        @raises Failure: nothing, or nobody answered.
        """
        match kind:
            case "mx":
                return await self._mx(name)
            case "ptr":
                return await self._ptr(name)
            case "spf":
                return await self._spf(name)
            case "dkim":
                return await self._dkim(name)
            case "dmarc":
                return await self._dmarc(name)
            case "route":
                return await self._route(name)
        return await self._records(RecordType(kind.upper()), name)

    async def _ask(self, name: str, record_type: RecordType) -> Answer:
        answer = self._resolver.lookup(name, record_type)
        return answer if isinstance(answer, Answer) else await answer

    async def _found(self, name: str, record_type: RecordType) -> Answer:
        """The answer, if there are records.

        @raises Failure: there are none.
        """
        answer = await self._ask(name, record_type)
        if answer.outcome is not Outcome.ANSWER:
            raise Failure(_why_not(answer))
        return answer

    async def _records(self, record_type: RecordType, name: str) -> Report:
        answer = await self._found(name, record_type)
        texts = [text_of(record) for record in answer.records]
        return Report(
            (record_type.value, "TTL"),
            tuple((text, str(answer.ttl_seconds)) for text in texts),
            tuple({**_about(answer), "value": text} for text in texts),
            _notes(answer),
        )

    async def _addresses(self, host: str) -> tuple[tuple[str, ...], str]:
        """A host's addresses in the order in which they are tried; and why there are none."""
        addresses: list[str] = []
        problems: list[str] = []
        for record_type in _ADDRESS_TYPES:
            answer = await self._ask(host, record_type)
            addresses += [str(record) for record in answer.records]
            if answer.outcome is Outcome.FAILURE or (answer.outcome is Outcome.NXDOMAIN and not problems):
                problems.append(_why_not(answer))
        return tuple(addresses), "" if addresses else "; ".join(problems) or f"{host} has no address"

    async def _mx(self, domain: str) -> Report:
        """The hosts as a sender walks them: by preference, those of one preference in any order."""
        answer = await self._ask(domain, RecordType.MX)
        hosts = [record for record in answer.records if isinstance(record, tuple) and len(record) == 2]
        is_implicit = answer.outcome is Outcome.NODATA
        if is_implicit:
            hosts = [(0, answer.question.name)]
        elif answer.outcome is not Outcome.ANSWER:
            raise Failure(_why_not(answer))
        if hosts == [(0, "")]:
            row = ("", "0", ".", "takes no mail (RFC 7505)")
            return Report(_MX_COLUMNS, (row,), ({**_about(answer), "preference": 0, "host": "."},), _notes(answer))
        rows = []
        records = []
        has_addresses = False
        position = 1
        for preference, group in groupby(sorted(hosts, key=lambda host: host[0]), key=lambda host: host[0]):
            names = [host for _, host in group]
            order = str(position) if len(names) == 1 else f"{position}-{position + len(names) - 1}"
            position += len(names)
            for host in names:
                addresses, problem = await self._addresses(host)
                has_addresses = has_addresses or bool(addresses)
                rows.append((order, str(preference), host or ".", " ".join(addresses) or f"({problem})"))
                records.append(
                    {
                        **_about(answer),
                        "order": order,
                        "preference": preference,
                        "host": host or ".",
                        "implicit": is_implicit,
                        "addresses": addresses,
                    }
                )
        if is_implicit:
            if not has_addresses:
                raise Failure(f"{domain} has neither an MX record nor an address: {rows[0][3][1:-1]}")
            note = f"{domain} has no MX record: mail goes to its own address (RFC 5321 section 5.1)"
            return Report(_MX_COLUMNS, tuple(rows), tuple(records), (note, *_notes(answer)))
        problem = "" if has_addresses else f"no mail exchanger of {domain} has an address"
        return Report(_MX_COLUMNS, tuple(rows), tuple(records), _notes(answer), problem)

    async def _ptr(self, address: str) -> Report:
        """The names of an address, each with whether it leads back."""
        parsed = ipaddress.ip_address(address)
        answer = await self._found(parsed.reverse_pointer, RecordType.PTR)
        rows = []
        records = []
        for name in map(str, answer.records):
            back = await self._ask(name, RecordType.A if parsed.version == 4 else RecordType.AAAA)
            leads_back = str(parsed) in back.records
            unknown = back.outcome is Outcome.FAILURE
            rows.append((name, "yes" if leads_back else "unknown" if unknown else "no", str(answer.ttl_seconds)))
            records.append({**_about(answer), "value": name, "leads_back": None if unknown else leads_back})
        return Report(("PTR", "LEADS BACK", "TTL"), tuple(rows), tuple(records), _notes(answer))

    async def _spf(self, domain: str) -> Report:
        """The domain's SPF record; each of them, where there are several, which is an error of the domain's."""
        answer = await self._ask(domain, RecordType.TXT)
        if answer.outcome in (Outcome.NXDOMAIN, Outcome.FAILURE):
            raise Failure(_why_not(answer))
        texts = [text_of(record) for record in answer.records if isinstance(record, bytes) and _is_spf(record)]
        if not texts:
            raise Failure(f"{domain} has no SPF record")
        return Report(
            ("SPF", "TTL"),
            tuple((text, str(answer.ttl_seconds)) for text in texts),
            tuple({**_about(answer), "value": text} for text in texts),
            _notes(answer),
            "" if len(texts) == 1 else f"{domain} has {len(texts)} SPF records: permerror (RFC 7208 section 4.5)",
        )

    async def _dkim(self, name: str) -> Report:
        """The key records of a selector, and what each is good for."""
        answer = await self._found(name, RecordType.TXT)
        rows = []
        records = []
        has_key = False
        for record in answer.records:
            text = text_of(record)
            key, is_usable = _key_in(Answer(answer.question, Outcome.ANSWER, (record,)))
            has_key = has_key or is_usable
            rows.append((key, text, str(answer.ttl_seconds)))
            records.append({**_about(answer), "value": text, "usable": is_usable, "key": key})
        problem = "" if has_key else f"{name} has no key that a signature could be verified with"
        return Report(("KEY", "RECORD", "TTL"), tuple(rows), tuple(records), _notes(answer), problem)

    async def _dmarc(self, domain: str) -> Report:
        """The records at each step of the walk from the domain to the top, and what comes of them."""
        known: dict[Question, Answer] = {}
        settled = settle(lambda answers: evaluate(domain, None, (), answers), self._resolver, known)
        result = settled if isinstance(settled, DmarcResult) else await settled
        rows = []
        records = []
        for step in walk(domain, Answers(known)):
            answer = known[question_for(step.domain)]
            texts = [text_of(record) for record in answer.records]
            rows += [(answer.question.name, text) for text in texts or [f"({_why_not(answer)})"]]
            records.append({**_about(answer), "values": texts})
        problem = ""
        notes: tuple[str, ...] = ()
        if result.problem:
            problem = f"what holds for {domain} is not known: {result.problem}"
        elif not result.policy_domain:
            problem = f"{domain} has no DMARC record, nor has a domain above it that speaks for it"
        else:
            notes = (
                f"the record of {result.policy_domain} holds for {domain}, and its policy is {result.policy}",
                f"the organizational domain is {result.organizational_domain}",
            )
        return Report(("NAME", "RECORD"), tuple(rows), tuple(records), (*notes, *result.notes), problem)

    async def _route(self, domain: str) -> Report:
        """Where mail for the domain goes, which TLS is demanded there, and who demands it."""
        if self._router is None:
            raise Failure("no router was given")
        route = await self._router.route(domain)
        if not isinstance(route, Route):
            raise Failure(route.reply.text())
        rows = []
        records = []
        for position, host in enumerate(route.hosts, 1):
            trouble = "" if host.trouble is None else host.trouble.text()
            addresses = (host.unix_path,) if host.unix_path else host.addresses
            why = _why_tls(host.tls)
            rows.append((str(position), host.name, " ".join(addresses) or "-", host.tls.level.value, trouble or why))
            records.append(
                {
                    "key": route.key,
                    "protocol": route.protocol,
                    "order": position,
                    "host": host.name,
                    "addresses": addresses,
                    "port": host.port,
                    "tls": host.tls.level.value,
                    "tls_source": host.tls.source,
                    "tls_names": host.tls.names,
                    "tlsa": [text_of(record) for record in host.tls.tlsa],
                    "trouble": trouble,
                }
            )
        notes = () if route.key == domain else (f"by config, mail for {domain} goes to {route.key}",)
        return Report(("ORDER", "HOST", "ADDRESSES", "TLS", "WHY"), tuple(rows), tuple(records), notes)


def _why_tls(demand: TlsDemand) -> str:
    """Who demands that of TLS, and by what."""
    match demand.source:
        case "default":
            return "nobody demands more"
        case "config":
            names = " or ".join(demand.names)
            return "config" + (f": a certificate of {names}" if demand.level is TlsLevel.VERIFY else "")
        case "dane" if demand.tlsa:
            return "DANE: " + "; ".join(
                text_of((usage, selector, kind, data[:8])) + "…" for usage, selector, kind, data in demand.tlsa
            )
        case "dane":
            return "DANE: TLSA records of which none can be used"
        case "mta-sts":
            return "MTA-STS" + (", testing" if demand.is_testing else f": a certificate of {' or '.join(demand.names)}")
    return demand.source


_MX_COLUMNS = ("ORDER", "PREFERENCE", "HOST", "ADDRESSES")


def text_of(record: object) -> str:
    """A record's value for people and JSON."""
    if isinstance(record, bytes):
        return record.decode("utf-8", "backslashreplace")
    if isinstance(record, tuple):
        return " ".join(part.hex() if isinstance(part, bytes) else str(part) for part in record)
    return str(record) or "."


def _about(answer: Answer) -> dict[str, Any]:
    return {
        "name": answer.question.name,
        "type": answer.question.type.value,
        "outcome": answer.outcome.value,
        "rcode": answer.rcode,
        "ttl_seconds": answer.ttl_seconds,
        "authenticated": answer.is_authenticated,
    }


def _notes(answer: Answer) -> tuple[str, ...]:
    return ("the answer is authenticated by DNSSEC",) if answer.is_authenticated else ()


def _why_not(answer: Answer) -> str:
    """What to say of an answer without records."""
    name, record_type = answer.question.name or ".", answer.question.type.value
    match answer.outcome:
        case Outcome.NODATA:
            return f"{name} has no {record_type} record"
        case Outcome.NXDOMAIN:
            return f"{name} does not exist" + (f": {answer.detail}" if answer.detail else "")
    return f"the {record_type} records of {name} can't be had: {answer.detail or answer.rcode}"


def _is_spf(record: bytes) -> bool:
    return record[:6].lower() == b"v=spf1" and record[6:7] in (b"", b" ")


def _key_in(answer: Answer) -> tuple[str, bool]:
    """What the key in that record is, "rsa, 2048 bits", or why it is none; and whether it is one."""
    problems = []
    for algorithm, key_type in KEY_TYPES.items():
        keys = keys_in(answer, algorithm)
        if not isinstance(keys, KeyFault):
            return f"{key_type}, {keys[0].bits} bits" + (", testing" if keys[0].is_testing else ""), True
        problems.append(keys.problem)
    return f"none: {problems[0]}", False


KINDS = ("mx", "a", "aaaa", "txt", "ptr", "spf", "dkim", "dmarc", "route")


def _asked_for(kind: str, words: tuple[str, ...]) -> str:
    """The name or address to look up.

    @raises click.BadParameter: that kind asks for something else.
    @raises Failure: no such name can exist.
    """
    # Imported here: it brings dnspython, which other commands don't need.
    from mailgate.dns.wire import ImpossibleName, normal_name

    if len(words) == 2 and kind == "dkim":
        words = (_INFIX.join(words),)
    elif len(words) != 1 or (kind == "dkim" and _INFIX not in words[0].lower()):
        asked = "SELECTOR._domainkey.DOMAIN, or SELECTOR DOMAIN" if kind == "dkim" else "one name"
        raise click.BadParameter(f"{kind} takes {asked}")
    (word,) = words
    if kind == "route" and word.startswith("["):
        return word
    if kind == "ptr":
        try:
            return str(ipaddress.ip_address(word))
        except ValueError:
            raise click.BadParameter(f"ptr takes an IP address, not {word!r}") from None
    try:
        return normal_name(word)
    except ImpossibleName as error:
        raise Failure(f"{word} can't exist: {error}") from error


def _server_option(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    found = server_address(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is neither an IP address nor one with a port")
    return found


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("names", metavar="NAME", nargs=-1, required=True)
@click.option("--server", metavar="ADDRESS", callback=_server_option, help="Ask this server, and leave config aside.")
@json_option
@pass_invocation
def lookup(
    invocation: Invocation, kind: str, names: tuple[str, ...], server: tuple[str, int] | None, as_json: bool
) -> None:
    """Look NAME up in the DNS, as the gate does.

    mx shows the hosts that take a domain's mail in the order in which a sender tries them, with their addresses; hosts
    that share an order are tried in any. ptr takes an IP address; dkim takes SELECTOR._domainkey.DOMAIN, or SELECTOR
    DOMAIN; dmarc shows each step of the walk from NAME to the top. route shows where mail for a domain goes by config
    and DNS, and what is demanded of TLS there; MTA-STS policies are fetched for it.
    """
    name = _asked_for(kind, names)
    config = None if server is not None else invocation.config_if_any()
    # Imported here: other commands need no Twisted.
    from mailgate.dns.resolver import CachingResolver

    async def inquire(reactor: Any) -> Report | Failure:  # Any: as in CachingResolver
        if config is None:
            resolver = CachingResolver(reactor, () if server is None else (server,))
        else:
            resolver = _configured_resolver(reactor, config)
        try:
            return await Inquiry(resolver, _router(reactor, resolver, config) if kind == "route" else None).of(
                kind, name
            )
        except Failure as failure:
            return failure

    report = _in_reactor(inquire)
    if isinstance(report, Failure):
        raise report
    if as_json:
        print_json(report.records)
    else:
        Table(*(Column(title, is_number=title in ("ORDER", "PREFERENCE", "TTL")) for title in report.columns)).print(
            report.rows
        )
        for note in report.notes:
            print_note(note)
    if report.problem:
        raise Failure(report.problem)


def _configured_resolver(reactor: Any, config: Config) -> CachingResolver:  # Any: as in CachingResolver
    """A resolver that asks as config says."""
    from mailgate.dns.resolver import CachingResolver

    return CachingResolver(
        reactor,
        config.dns.servers,
        timeout_seconds=config.dns.timeout_seconds,
        deadline_seconds=config.dns.deadline_seconds,
        trusts_ad=config.dns.trusts_ad,
    )


def _router(reactor: Any, resolver: Resolver, config: Config | None) -> Router:  # Any: as in CachingResolver
    """A router as the gate has it, but for the policies that the gate has kept."""
    # Imported here: other look-ups need none of it.
    from mailgate.config_routes import router_settings
    from mailgate.outbound.mta_sts_fetch import MtaStsPolicies, PolicyHost
    from mailgate.outbound.mx import Survey
    from mailgate.outbound.route import Router, RouterSettings

    if config is None:
        settings, uses_mta_sts, ca_file = RouterSettings(), True, None
    else:
        own_names = (config.hostname,)
        settings = router_settings(config.outbound, config.routes, own_names=own_names, reads_passwords=False)
        uses_mta_sts, ca_file = config.outbound.mta_sts, config.outbound.ca_file
    if not uses_mta_sts:
        return Router(resolver, settings)
    survey = Survey(order=settings.address_order, allows_private_addresses=settings.allows_private_addresses)
    host = PolicyHost(reactor, resolver, ca_file=ca_file, survey=survey)
    return Router(resolver, settings, policies=MtaStsPolicies(resolver, host.fetch, _NothingKept(), time=time.time))


class _NothingKept:
    """No policies but those that are fetched now: this needs no database."""

    async def get(self, domain: str) -> None:
        """Nothing is kept."""

    async def put(self, domain: str, kept: object) -> None:
        """Nothing will be."""


def answers_to(config: Config, questions: Sequence[Question]) -> list[Answer]:
    """The answers to these questions, in their order, all asked at once. Runs a reactor."""

    async def ask(reactor: Any) -> list[Answer]:  # Any: as in CachingResolver
        resolver = _configured_resolver(reactor, config)
        asked = [resolver.lookup(question.name, question.type) for question in questions]
        return [answer if isinstance(answer, Answer) else await answer for answer in asked]

    return _in_reactor(ask)


def _in_reactor(ask: Callable[[Any], Awaitable[_T]]) -> _T:  # Any: as in CachingResolver
    """What the function comes to in a reactor of its own, of which a process can have one."""
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    found: list[_T] = []

    async def run(reactor: Any) -> None:  # Any: as above
        found.append(await ask(reactor))

    try:
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    except SystemExit:
        if not found:
            raise
    return found[0]
