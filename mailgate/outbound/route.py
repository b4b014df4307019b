"""Where mail for a domain goes now: the operator's transport for it, an address literal, or its MX hosts.

The router asks; what follows from the answers is decided by pure code: `mx` (which hosts, which addresses), `demand`
(which TLS), `transport` (the operator's rules). It remembers nothing itself: the resolver and the MTA-STS policies have
their own memories. A route holds for an attempt, not longer.

A failure of the DNS never bounces mail: it makes a NoRoute of 4xx, or a host with trouble that passes.

Standards: RFC 5321 section 5.1, RFC 7505 (null MX), RFC 7672 (DANE), RFC 8461 (MTA-STS), RFC 8689 (REQUIRETLS).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from mailgate.dns.answer import Answer, Answers, RecordType
from mailgate.dns.settle import Resolver, settle
from mailgate.dns.wire import ImpossibleName, normal_name
from mailgate.outbound.demand import UNMET_POLICY, Asked, host_of
from mailgate.outbound.mta_sts import NotKnown, Policy
from mailgate.outbound.mx import AddressOrder, Exchanges, Found, Survey, exchanges, is_public, loop
from mailgate.outbound.plan import Host, NoRoute, Route, TlsDemand, TlsLevel
from mailgate.outbound.tls_report import TlsCounts
from mailgate.outbound.transport import SMTP_PORT, DomainTable, TlsRule, Transport
from mailgate.smtp.reply import Reply, reply

_T = TypeVar("_T")

_log = Logger()

_LOOPBACK = ("127.0.0.1", "::1")  # RFC 6761 section 6.3: what localhost is, without asking


class Policies(Protocol):
    """Where MTA-STS policies come from: `mailgate.outbound.mta_sts_fetch`, or a table."""

    def policy(self, domain: str) -> Policy | NotKnown | Deferred[Policy | NotKnown | None] | None:
        """The policy that holds for the domain now; None where there is none. It raises nothing."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What an operator has to say of routes."""

    transports: DomainTable[Transport] = field(default_factory=DomainTable)
    tls_rules: DomainTable[TlsRule] = field(default_factory=DomainTable)
    own_names: frozenset[str] = frozenset()  # A-form: the gate's host name and other names of it
    own_addresses: frozenset[str] = frozenset()  # where it listens
    address_order: AddressOrder = "ipv6"
    allows_private_addresses: bool = False
    least_tls: TlsLevel = TlsLevel.OPPORTUNISTIC  # for domains without a rule; what these publish may raise it
    uses_dane: bool = True  # it still takes authenticated answers, see dns.trusts_ad
    mx_port: int = SMTP_PORT


class Router:
    """Finds the routes of domains."""

    def __init__(
        self,
        resolver: Resolver,
        settings: RouterSettings = RouterSettings(),
        *,
        policies: Policies | None = None,
        counts: TlsCounts | None = None,
        random: Random | None = None,
    ) -> None:
        """`policies` None: MTA-STS is not used. `counts` hears of hosts that a policy rules out. `random` shuffles."""
        self._resolver = resolver
        self._settings = settings
        self._policies = policies
        self._counts = counts
        self._random = random if random is not None else SystemRandom()

    def use(self, settings: RouterSettings) -> None:
        """Find routes by these settings from now on."""
        self._settings = settings

    async def route(self, domain: str, *, requires_tls: bool = False, tls_is_optional: bool = False) -> Route | NoRoute:
        """Where mail of that domain, in any form, goes.

        It takes as long as the DNS and a policy host do, and raises nothing.

        `requires_tls` is the REQUIRETLS parameter of MAIL, `tls_is_optional` the field "TLS-Required: No".
        """
        try:
            return await self._found(domain, requires_tls=requires_tls, tls_is_optional=tls_is_optional)
        except CancelledError:
            raise
        except Exception:  # a defect of ours, which a stranger's records may bring out: mail must not hang on it
            _log.failure("finding the route of {domain} failed", domain=domain)
            return NoRoute(domain, reply(451, "4.3.0", "The route could not be found; it will be tried again"))

    async def _found(self, domain: str, *, requires_tls: bool, tls_is_optional: bool) -> Route | NoRoute:
        if domain.startswith("["):
            return self._literal(domain, requires_tls=requires_tls)
        try:
            name = normal_name(domain)
        except ImpossibleName as error:
            return NoRoute(domain, reply(550, "5.1.2", f"No domain can be called {domain}: {error}"))
        if not name:
            return NoRoute(domain, reply(550, "5.1.2", "The address has no domain"))
        transport = self._settings.transports.find(name)
        if transport is not None and not transport.is_by_mx:
            return await self._by_transport(transport, requires_tls=requires_tls)
        return await self._by_mx(name, requires_tls=requires_tls, tls_is_optional=tls_is_optional)

    # ------------------------------------------------------------------ MX

    async def _by_mx(self, domain: str, *, requires_tls: bool, tls_is_optional: bool) -> Route | NoRoute:
        settings = self._settings
        rule = settings.tls_rules.find(domain)
        asks_policies = rule is None and not tls_is_optional
        asked_policy = self._policies.policy(domain) if self._policies is not None and asks_policies else None
        try:
            hosts = await self._hosts(domain, looks_for_tlsa=settings.uses_dane and not tls_is_optional, rule=rule)
            if isinstance(hosts, Reply):
                return NoRoute(domain, hosts)
            policy = await asked_policy if isinstance(asked_policy, Deferred) else asked_policy
        finally:
            if isinstance(asked_policy, Deferred):
                asked_policy.addErrback(lambda _: None)
                asked_policy.cancel()
        found, is_authenticated = hosts
        asked = Asked(domain, is_authenticated, rule, settings.least_tls, policy, requires_tls, tls_is_optional)
        planned = [host_of(host, asked, port=settings.mx_port) for host in found]
        self._count(planned)
        return _route(domain, planned, requires_tls=requires_tls)

    async def _hosts(
        self, domain: str, *, looks_for_tlsa: bool, rule: TlsRule | None
    ) -> tuple[tuple[Found, ...], bool] | Reply:
        """What is known of each host, and whether the way to their names is authenticated; or why there is none."""
        settings = self._settings
        answer = self._resolver.lookup(domain, RecordType.MX)
        if not isinstance(answer, Answer):
            answer = await answer
        found = exchanges(domain, answer, settings.own_names, self._random.shuffle)
        if isinstance(found, Reply):
            return found
        by_rule = rule is None or rule.level is TlsLevel.DANE
        survey = Survey(
            order=settings.address_order,
            allows_private_addresses=settings.allows_private_addresses,
            looks_for_tlsa=looks_for_tlsa and by_rule and found.is_authenticated,
            own_names=settings.own_names,
            own_addresses=settings.own_addresses,
        )
        hosts, is_cut = await self._settled(lambda answers: survey.of(found, answers))
        if not hosts:
            return loop(domain) if is_cut else _no_host(domain, found)
        return hosts, found.is_authenticated

    def _count(self, hosts: Iterable[Host]) -> None:
        """Count the sessions that a published policy forbids before there is one (RFC 8460 section 4.3.2)."""
        for host in hosts:
            trouble, published = host.trouble, host.tls.published
            if self._counts is None or trouble is None or published is None or trouble.enhanced != UNMET_POLICY:
                continue
            result = "dnssec-invalid" if published.type == "tlsa" else "validation-failure"
            self._counts.count(published, host.name, result, reason=trouble.lines[0])

    async def _settled(self, evaluate: Callable[[Answers], _T]) -> _T:
        settled = settle(evaluate, self._resolver)
        return await settled if isinstance(settled, Deferred) else settled

    # ------------------------------------------------------------------ others

    def _literal(self, domain: str, *, requires_tls: bool) -> Route | NoRoute:
        """RFC 5321 section 4.1.3: the host at that address, without any look-up."""
        key = domain.lower()
        address = _address_in(key)
        if address is None:
            return NoRoute(key, reply(550, "5.1.2", f"{domain} is no address literal that mail can go to"))
        if address in self._settings.own_addresses:
            return NoRoute(key, loop(key))
        if not self._settings.allows_private_addresses and not is_public(address):
            return NoRoute(key, reply(550, "5.4.4", f"{domain} is not an address of the public Internet"))
        settings = self._settings
        asked = Asked(key, True, settings.tls_rules.find(key), settings.least_tls, requires_tls=requires_tls)
        host = host_of(Found(address, addresses=(address,)), asked, port=self._settings.mx_port)
        return _route(key, [host], requires_tls=requires_tls)

    async def _by_transport(self, transport: Transport, *, requires_tls: bool) -> Route | NoRoute:
        """The operator's own host: its addresses may be private, and no policy of the recipient's domain counts."""
        key = transport.key
        if transport.unix_path:
            # On this machine nothing goes over a network (RFC 8689 section 4.2.1 is about relaying).
            local = Host(transport.unix_path, unix_path=transport.unix_path, tls=TlsDemand(TlsLevel.NONE, "config"))
            return Route(key, (local,), transport.protocol)
        demand = _demand_of(transport, requires_tls=requires_tls)
        if _is_address(transport.host):
            found = Found(transport.host, addresses=(transport.host,))
        elif transport.host == "localhost":
            found = Found(transport.host, addresses=_LOOPBACK)
        else:
            survey = Survey(order=self._settings.address_order, allows_private_addresses=True)
            found = await self._settled(lambda answers: survey.host(transport.host, answers))
        host = Host(found.name, found.addresses, transport.port, demand, trouble=_passing(found.problem))
        return _route(key, [host], transport=transport, requires_tls=requires_tls and transport.protocol == "smtp")


def _route(
    key: str, hosts: list[Host], *, transport: Transport | None = None, requires_tls: bool = False
) -> Route | NoRoute:
    """The route; none where no host can be used. What may pass outweighs what is final."""
    troubles = [host.trouble for host in hosts if host.trouble is not None]
    if len(troubles) == len(hosts):
        return NoRoute(key, next((trouble for trouble in troubles if trouble.is_transient), troubles[0]))
    return Route(
        key,
        tuple(hosts),
        protocol="smtp" if transport is None else transport.protocol,
        credentials=None if transport is None else transport.credentials,
        needs_requiretls=requires_tls,
    )


def _demand_of(transport: Transport, *, requires_tls: bool) -> TlsDemand:
    """What is demanded of a smarthost: proof of its name before a password is sent, unless config says otherwise."""
    level = transport.tls
    if level is None:
        proves = transport.credentials is not None or transport.is_implicit_tls
        level = TlsLevel.VERIFY if proves else TlsLevel.OPPORTUNISTIC
    source = "config"
    if requires_tls and transport.protocol == "smtp":
        level, source = TlsLevel.VERIFY, "requiretls"
    return TlsDemand(level, source, (transport.host,), is_implicit=transport.is_implicit_tls)


def _passing(problem: Reply | None) -> Reply | None:
    """What is wrong with a smarthost is the operator's to mend, and bounces no mail."""
    if problem is None or problem.is_transient:
        return problem
    return reply(451, "4.4.4", *problem.lines)


def _no_host(domain: str, found: Exchanges) -> Reply:
    names = " ".join(host.name for host in found.hosts[:3])
    return reply(550, "5.4.4", f"The domain {domain} has no mail exchanger that can be reached: {names}")


def _address_in(literal: str) -> str | None:
    """The address of "[192.0.2.1]" or "[ipv6:2001:db8::1]", in lower case; None where it is another literal."""
    if not literal.endswith("]"):
        return None
    text = literal[1:-1]
    try:
        if text.startswith("ipv6:"):
            return str(ipaddress.IPv6Address(text.removeprefix("ipv6:")))
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
