"""What is demanded of TLS with a host: of all who may demand something, who comes first, and what it amounts to.

Pure. An operator's rule for the domain stands above all. A message that says "TLS-Required: No" sets aside what the
recipient's domain publishes. Else DANE counts where the host has authenticated TLSA records, and MTA-STS where it has
none; REQUIRETLS makes an authenticated host of an authenticated name of whatever they ask. Nobody asking, TLS is used
where it works, or what config has as the least for all.

Standards: RFC 7672 section 2.2 (which TLSA records count), RFC 8461 sections 2 (DANE comes first), 4.1 and 5 (modes),
RFC 8689 sections 4.2.1 and 4.2.2 (REQUIRETLS, TLS-Required), RFC 8460 section 4.2 (how a policy is reported).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mailgate.outbound.dane import is_usable
from mailgate.outbound.mta_sts import Mode, NotKnown, Policy, allows
from mailgate.outbound.mx import Found
from mailgate.outbound.plan import Host, PublishedPolicy, TlsDemand, TlsLevel
from mailgate.outbound.transport import TlsRule
from mailgate.smtp.reply import Reply, reply

UNMET_POLICY: Final = "4.7.5"  # the status of a host that a published policy rules out for now
_PROVING: Final = (TlsLevel.VERIFY, TlsLevel.DANE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known about a domain and a message before its hosts are looked at one by one."""

    domain: str
    has_authenticated_hosts: bool = False  # the MX answer is authenticated, or none was needed
    rule: TlsRule | None = None
    least: TlsLevel = TlsLevel.OPPORTUNISTIC  # where nobody says anything
    policy: Policy | NotKnown | None = None  # MTA-STS
    requires_tls: bool = False
    tls_is_optional: bool = False


def host_of(found: Found, asked: Asked, *, port: int) -> Host:
    """The host with its demand, or with why mail for that domain may not go there now."""
    demand, trouble = _demand(found, asked)
    if asked.requires_tls and trouble is None:
        demand, trouble = _required(found, asked, demand)
    return Host(found.name, found.addresses, port, demand, trouble=found.problem or trouble)


def _demand(found: Found, asked: Asked) -> tuple[TlsDemand, Reply | None]:
    if asked.rule is not None:
        return _of_rule(asked.rule, found, asked)
    nobody = asked.least is TlsLevel.OPPORTUNISTIC
    if not asked.tls_is_optional:
        if asked.has_authenticated_hosts and (found.has_tlsa or found.tlsa_problem):
            by_dane, trouble = _of_dane(found, asked)
            if trouble is not None or by_dane.level is TlsLevel.DANE or asked.least not in _PROVING:
                return by_dane, trouble
        policy = asked.policy
        if isinstance(policy, Policy) and (policy.mode is Mode.ENFORCE or (policy.mode is Mode.TESTING and nobody)):
            return _of_mta_sts(policy, found, asked)
    if not nobody:
        return _of_rule(TlsRule(asked.least), found, asked)
    source = "tls-required-no" if asked.tls_is_optional else "default"
    return TlsDemand(source=source, published=_no_policy(asked.domain)), None


def _no_policy(domain: str) -> PublishedPolicy | None:
    """Nobody gets reports for an address literal."""
    return None if domain.startswith("[") else PublishedPolicy(domain)


def _of_rule(rule: TlsRule, found: Found, asked: Asked) -> tuple[TlsDemand, Reply | None]:
    demand = TlsDemand(rule.level, "config", published=_no_policy(asked.domain))
    match rule.level:
        case TlsLevel.VERIFY:
            return replace(demand, names=rule.names or _names_to_verify(found, asked)), None
        case TlsLevel.DANE:
            by_dane, trouble = _of_dane(found, asked)
            if trouble is None and by_dane.level is not TlsLevel.DANE:
                text = f"DANE is demanded of {found.name}, and it has no usable, authenticated TLSA record"
                trouble = reply(451, UNMET_POLICY, text)
            return replace(by_dane, level=TlsLevel.DANE, source="config"), trouble
    return demand, None


def _names_to_verify(found: Found, asked: Asked) -> tuple[str, ...]:
    """The host's name says something only if it was found by something better than plain DNS."""
    if asked.has_authenticated_hosts or found.name.endswith(f".{asked.domain}") or found.name == asked.domain:
        return (found.name,)
    return (asked.domain,)


def _of_dane(found: Found, asked: Asked) -> tuple[TlsDemand, Reply | None]:
    usable = tuple(record for record in found.tlsa if is_usable(record)) if asked.has_authenticated_hosts else ()
    texts = tuple(f"{usage} {selector} {kind} {data.hex()}" for usage, selector, kind, data in found.tlsa)
    published = PublishedPolicy(found.tlsa_base or found.name, "tlsa", texts)
    if found.tlsa_problem:
        text = f"Whether {found.name} demands DANE can't be found out now: {found.tlsa_problem}"
        return TlsDemand(TlsLevel.DANE, "dane", published=published), reply(451, UNMET_POLICY, text)
    if not usable:  # RFC 7672 section 2.2: then TLS without authentication is what remains
        return TlsDemand(TlsLevel.ENCRYPT, "dane", published=published), None
    names = tuple(dict.fromkeys((found.tlsa_base, found.name, asked.domain)))  # RFC 7672 section 3.2.2
    return TlsDemand(TlsLevel.DANE, "dane", names, usable, published=published), None


def _of_mta_sts(policy: Policy, found: Found, asked: Asked) -> tuple[TlsDemand, Reply | None]:
    published = PublishedPolicy(asked.domain, "sts", policy.lines)
    is_testing = policy.mode is Mode.TESTING
    level = TlsLevel.OPPORTUNISTIC if is_testing else TlsLevel.VERIFY
    demand = TlsDemand(level, "mta-sts", (found.name,), is_testing=is_testing, published=published)
    if is_testing or allows(policy, found.name):
        return demand, None
    text = f"The MTA-STS policy of {asked.domain} does not name the mail exchanger {found.name}"
    return demand, reply(451, UNMET_POLICY, text)


def _required(found: Found, asked: Asked, demand: TlsDemand) -> tuple[TlsDemand, Reply | None]:
    """RFC 8689 section 4.2.1: the host's name and then its certificate have to be authentic."""
    if demand.level is TlsLevel.DANE:
        return demand, None
    policy = asked.policy
    is_allowed = isinstance(policy, Policy) and policy.mode is not Mode.NONE and allows(policy, found.name)
    is_named = asked.rule is not None and asked.rule.level is TlsLevel.VERIFY
    if not (asked.has_authenticated_hosts or is_allowed or is_named or found.name == asked.domain):
        text = (
            f"The message demands TLS all the way, and nothing proves that {found.name} takes mail for {asked.domain}"
        )
        return demand, reply(451, "4.7.10", text) if isinstance(policy, NotKnown) else reply(550, "5.7.10", text)
    names = demand.names or (found.name,)
    return replace(demand, level=TlsLevel.VERIFY, source="requiretls", names=names, is_testing=False), None
