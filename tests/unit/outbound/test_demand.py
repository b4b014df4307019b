"""Demands on TLS: who asks, who comes first, and what it amounts to for each host of a route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from twisted.internet.defer import Deferred

from mailgate.dns.answer import Answer, RecordType
from mailgate.dns.zone import Zone
from mailgate.outbound.mta_sts import NOT_KNOWN, NotKnown, Policy, read_policy
from mailgate.outbound.plan import Host, NoRoute, Route, TlsLevel
from mailgate.outbound.route import Router, RouterSettings
from mailgate.outbound.tls_report import TlsCounts, TlsResult
from mailgate.outbound.transport import DomainTable, TlsRule

DIGEST = "ab" * 32
TEXT = f"""
example.test                MX    10 mx1.example.test
example.test                MX    20 mx2.elsewhere.test
mx1.example.test            A     8.8.8.1
mx2.elsewhere.test          A     8.8.8.2
_25._tcp.mx1.example.test   TLSA  3 1 1 {DIGEST}
_25._tcp.mx1.example.test   TLSA  0 1 1 {DIGEST}
alias.test                  MX    10 mx.alias.test
mx.alias.test               CNAME mx1.example.test
unusable.test               MX    10 mx.unusable.test
mx.unusable.test            A     8.8.8.3
_25._tcp.mx.unusable.test   TLSA  1 1 1 {DIGEST}
"""
SETTINGS = RouterSettings()


def policy(mode: str, *mx: str) -> Policy:
    patterns = "".join(f"mx: {pattern}\n" for pattern in mx)
    return read_policy(f"version: STSv1\nmode: {mode}\n{patterns}max_age: 86400\n".encode())


class Table:
    """Policies by domain."""

    def __init__(self, policies: dict[str, Policy | NotKnown]) -> None:
        self._policies = policies

    def policy(self, domain: str) -> Policy | NotKnown | None:
        return self._policies.get(domain)


class Partly:
    """A zone that is authenticated but for some questions."""

    def __init__(self, zone: Zone, plain: tuple[tuple[str, RecordType], ...]) -> None:
        self._zone = zone
        self._plain = plain

    def lookup(self, name: str, record_type: RecordType) -> Answer:
        answer = self._zone.lookup(name, record_type)
        assert isinstance(answer, Answer)
        return replace(answer, is_authenticated=(name, record_type) not in self._plain)


def routed(
    domain: str = "example.test",
    *,
    settings: RouterSettings = SETTINGS,
    is_authenticated: bool = False,
    sts: Policy | NotKnown | None = None,
    change: Callable[[Zone], None] | None = None,
    requires_tls: bool = False,
    tls_is_optional: bool = False,
    counts: TlsCounts | None = None,
    plain: tuple[tuple[str, RecordType], ...] = (),
) -> Route | NoRoute:
    zone = Zone(TEXT, is_authenticated=is_authenticated)
    if change is not None:
        change(zone)
    policies = Table({} if sts is None else {domain: sts})
    router = Router(
        Partly(zone, plain) if plain else zone, settings, policies=policies, random=Random(1), counts=counts
    )
    coroutine = router.route(domain, requires_tls=requires_tls, tls_is_optional=tls_is_optional)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    found: Route | NoRoute = stop.value.value
    return found


def hosts(found: Route | NoRoute) -> tuple[Host, ...]:
    assert isinstance(found, Route), found
    return found.hosts


def demands(found: Route | NoRoute) -> list[tuple[str, str]]:
    return [(host.tls.level.value, host.tls.source) for host in hosts(found)]


def by_rule(level: TlsLevel, *names: str) -> RouterSettings:
    return replace(SETTINGS, tls_rules=DomainTable([(("example.test",), TlsRule(level, names))]))


def test_tls_is_used_where_it_works_when_nobody_asks() -> None:
    """RFC 7435."""
    assert demands(routed()) == [("opportunistic", "default")] * 2
    published = hosts(routed())[0].tls.published
    assert published is not None
    assert (published.domain, published.type) == ("example.test", "no-policy-found")


def test_dane_counts_where_all_answers_are_authenticated() -> None:
    """RFC 7672 section 2.2; the second host has no TLSA record."""
    first, second = hosts(routed(is_authenticated=True))
    assert first.tls.level is TlsLevel.DANE
    assert first.tls.tlsa == ((3, 1, 1, bytes.fromhex(DIGEST)),)
    assert first.tls.names == ("mx1.example.test", "example.test")
    assert first.tls.published is not None
    assert (first.tls.published.type, first.tls.published.domain) == ("tlsa", "mx1.example.test")
    assert first.tls.published.text == (f"3 1 1 {DIGEST}", f"0 1 1 {DIGEST}")
    assert second.tls.level is TlsLevel.OPPORTUNISTIC


def test_tlsa_records_are_not_even_asked_for_without_dnssec() -> None:
    """RFC 7672 section 2.2.2: many servers fail for types that they don't know."""

    def change(zone: Zone) -> None:
        zone.fail("_25._tcp.mx1.example.test")

    assert demands(routed(change=change)) == [("opportunistic", "default")] * 2


@pytest.mark.parametrize(
    ("name", "record_type"),
    [
        ("example.test", RecordType.MX),
        ("mx1.example.test", RecordType.A),
        ("mx1.example.test", RecordType.AAAA),
        ("_25._tcp.mx1.example.test", RecordType.TLSA),
    ],
)
def test_one_plain_answer_of_the_chain_leaves_no_dane(name: str, record_type: RecordType) -> None:
    """RFC 7672 section 2.2.1 to 2.2.3: the absence of an IPv6 address too."""
    assert demands(routed(plain=((name, record_type),)))[0] == ("opportunistic", "default")
    assert demands(routed(plain=(("mx2.elsewhere.test", RecordType.A),)))[0] == ("dane", "dane")


def test_an_alias_that_is_plain_is_not_followed_to_records() -> None:
    """RFC 7672 section 2.2.3: then its own name is what counts, and that has none."""
    found = routed("alias.test", plain=(("mx.alias.test", RecordType.CNAME),))
    assert demands(found) == [("opportunistic", "default")]


def test_many_hosts_that_are_long_chains_of_aliases_are_found_all_the_same() -> None:
    """A stranger may publish them, and sign them; each answer takes its time."""
    zone = Zone(is_authenticated=True)
    for number in range(16):
        zone.add("many.test", RecordType.MX, (number, f"mx{number}.many.test"))
        names = [f"mx{number}.many.test", *(f"a{place}.mx{number}.many.test" for place in range(5))]
        for name, leads_to in pairwise(names):
            zone.add(name, RecordType.CNAME, leads_to)
        zone.add(names[-1], RecordType.A, f"8.8.8.{number + 1}")
        zone.add(f"_25._tcp.mx{number}.many.test", RecordType.TLSA, (3, 1, 1, bytes(32)))
    asked: list[tuple[Deferred[Answer], Answer]] = []

    class Slow:
        def lookup(self, name: str, record_type: RecordType) -> Deferred[Answer]:
            answer, waiting = zone.lookup(name, record_type), Deferred[Answer]()
            assert isinstance(answer, Answer)
            asked.append((waiting, answer))
            return waiting

    found: list[Route | NoRoute] = []
    Deferred.fromCoroutine(Router(Slow(), SETTINGS, random=Random(1)).route("many.test")).addCallback(found.append)
    while asked:
        waiting, answer = asked.pop(0)
        waiting.callback(answer)
    assert demands(found[0]) == [("dane", "dane")] * 16


def test_an_alias_that_can_not_be_had_does_not_switch_dane_off() -> None:
    """RFC 7672 section 2.1.2: whether there is one decides whose TLSA records count."""
    found = routed(
        "alias.test", is_authenticated=True, change=lambda zone: zone.fail("mx.alias.test", RecordType.CNAME)
    )
    assert isinstance(found, NoRoute)
    assert (found.reply.code, found.reply.enhanced) == (451, "4.7.5")


def test_a_family_that_can_not_be_had_does_not_switch_dane_off() -> None:
    """RFC 7672 section 2.1.2: an attacker can make it fail; what is left is authenticated."""

    def change(zone: Zone) -> None:
        zone.fail("mx1.example.test", RecordType.AAAA)

    assert demands(routed(is_authenticated=True, change=change))[0] == ("dane", "dane")


def test_dane_can_be_switched_off() -> None:
    """By the operator."""
    found = routed(settings=replace(SETTINGS, uses_dane=False), is_authenticated=True)
    assert demands(found) == [("opportunistic", "default")] * 2


def test_records_of_which_none_is_usable_still_demand_tls() -> None:
    """RFC 7672 section 2.2: without authentication then."""
    assert demands(routed("unusable.test", is_authenticated=True)) == [("encrypt", "dane")]


def test_an_authenticated_alias_is_followed_to_its_records() -> None:
    """RFC 7672 section 2.2.3: the name at its end comes first."""
    (host,) = hosts(routed("alias.test", is_authenticated=True))
    assert host.tls.level is TlsLevel.DANE
    assert host.tls.names == ("mx1.example.test", "mx.alias.test", "alias.test")


def test_a_host_whose_tlsa_records_can_not_be_had_is_left_alone_for_now() -> None:
    """RFC 7672 section 2.1.2: else who suppresses them switches DANE off."""
    found = routed(is_authenticated=True, change=lambda zone: zone.fail("_25._tcp.mx1.example.test", detail="silence"))
    first, second = hosts(found)
    assert first.trouble is not None
    assert (first.trouble.code, first.trouble.enhanced) == (451, "4.7.5")
    assert "silence" in first.trouble.lines[0]
    assert second.trouble is None


def test_mta_sts_counts_where_dane_does_not() -> None:
    """RFC 8461 section 2: DANE comes first, host by host."""
    found = routed(is_authenticated=True, sts=policy("enforce", "mx1.example.test", "*.elsewhere.test"))
    assert demands(found) == [("dane", "dane"), ("verify", "mta-sts")]
    assert hosts(found)[1].tls.names == ("mx2.elsewhere.test",)
    published = hosts(found)[1].tls.published
    assert published is not None
    assert (published.type, published.domain) == ("sts", "example.test")
    assert "mode: enforce" in published.text


def test_a_host_that_the_policy_does_not_name_is_not_used() -> None:
    """RFC 8461 section 5: it may be an attacker's."""
    first, second = hosts(routed(sts=policy("enforce", "mx1.example.test")))
    assert first.trouble is None
    assert second.trouble is not None
    assert second.trouble.enhanced == "4.7.5"
    nobody = routed(sts=policy("enforce", "mx.other.test"))
    assert isinstance(nobody, NoRoute)
    assert nobody.reply.code == 451


def test_a_policy_in_testing_changes_nothing_but_the_count() -> None:
    """RFC 8461 section 5."""
    found = routed(sts=policy("testing", "mx1.example.test"))
    assert demands(found) == [("opportunistic", "mta-sts")] * 2
    assert all(host.tls.is_testing and host.trouble is None for host in hosts(found))


def test_the_mode_none_is_no_policy() -> None:
    """RFC 8461 section 5."""
    assert demands(routed(sts=policy("none"))) == [("opportunistic", "default")] * 2


def test_the_operators_rule_stands_above_what_is_published() -> None:
    """It names the domain."""
    strict = policy("enforce", "mx.other.test")
    for level in (TlsLevel.NONE, TlsLevel.OPPORTUNISTIC, TlsLevel.ENCRYPT):
        found = routed(settings=by_rule(level), is_authenticated=True, sts=strict)
        assert demands(found) == [(level.value, "config")] * 2


def test_a_name_found_by_plain_dns_proves_nothing() -> None:
    """Who forges the MX answer has a good certificate for his own name."""
    found = hosts(routed(settings=by_rule(TlsLevel.VERIFY)))
    assert [host.tls.names for host in found] == [("mx1.example.test",), ("example.test",)]
    found = hosts(routed(settings=by_rule(TlsLevel.VERIFY), is_authenticated=True))
    assert [host.tls.names for host in found] == [("mx1.example.test",), ("mx2.elsewhere.test",)]
    found = hosts(routed(settings=by_rule(TlsLevel.VERIFY, "mx.hosting.test")))
    assert [host.tls.names for host in found] == [("mx.hosting.test",)] * 2


def test_dane_that_an_operator_demands_is_needed() -> None:
    """A host without it is left alone."""
    first, second = hosts(routed(settings=by_rule(TlsLevel.DANE), is_authenticated=True))
    assert (first.tls.level, first.trouble) == (TlsLevel.DANE, None)
    assert second.trouble is not None
    nobody = routed(settings=by_rule(TlsLevel.DANE))
    assert isinstance(nobody, NoRoute)
    assert nobody.reply.enhanced == "4.7.5"


@pytest.mark.parametrize(
    ("least", "is_authenticated", "expected"),
    [
        (TlsLevel.NONE, False, [("none", "config")] * 2),
        (TlsLevel.NONE, True, [("dane", "dane"), ("none", "config")]),
        (TlsLevel.ENCRYPT, True, [("dane", "dane"), ("encrypt", "config")]),
        (TlsLevel.VERIFY, True, [("dane", "dane"), ("verify", "config")]),
    ],
)
def test_the_least_for_all_is_raised_by_what_is_published(
    least: TlsLevel, is_authenticated: bool, expected: list[tuple[str, str]]
) -> None:
    """`outbound.tls` is for domains of which neither the operator nor they themselves say anything."""
    found = routed(settings=replace(SETTINGS, least_tls=least), is_authenticated=is_authenticated)
    assert demands(found) == expected


def test_a_policy_in_testing_does_not_lower_the_least() -> None:
    """It is tested on top."""
    found = routed(settings=replace(SETTINGS, least_tls=TlsLevel.ENCRYPT), sts=policy("testing", "mx1.example.test"))
    assert demands(found) == [("encrypt", "config")] * 2


def test_tls_required_no_sets_aside_what_domains_publish() -> None:
    """RFC 8689 section 4.2.2; the operator's rules hold."""
    strict = policy("enforce", "mx.other.test")
    found = routed(is_authenticated=True, sts=strict, tls_is_optional=True)
    assert demands(found) == [("opportunistic", "tls-required-no")] * 2
    found = routed(settings=by_rule(TlsLevel.ENCRYPT), sts=strict, tls_is_optional=True)
    assert demands(found) == [("encrypt", "config")] * 2


def test_requiretls_needs_a_proved_host() -> None:
    """RFC 8689 section 4.2.1: by DNSSEC or MTA-STS, and a certificate that is verified."""
    found = routed(requires_tls=True)
    assert isinstance(found, NoRoute)
    assert (found.reply.code, found.reply.enhanced) == (550, "5.7.10")
    found = routed(requires_tls=True, is_authenticated=True)
    assert demands(found) == [("dane", "dane"), ("verify", "requiretls")]
    assert isinstance(found, Route)
    assert found.needs_requiretls
    for mode in ("enforce", "testing"):
        found = routed(requires_tls=True, sts=policy(mode, "mx1.example.test"))
        first, second = hosts(found)
        assert (first.tls.level, first.tls.source, first.tls.is_testing) == (TlsLevel.VERIFY, "requiretls", False)
        assert second.trouble is not None


def test_a_policy_that_can_not_be_had_now_bounces_nothing() -> None:
    """It may be the proof; other mail goes meanwhile."""
    found = routed(requires_tls=True, sts=NOT_KNOWN)
    assert isinstance(found, NoRoute)
    assert (found.reply.code, found.reply.enhanced) == (451, "4.7.10")
    assert demands(routed(sts=NOT_KNOWN)) == [("opportunistic", "default")] * 2


def test_requiretls_needs_no_proof_of_a_domain_that_is_its_own_host() -> None:
    """RFC 8689 section 4.2.1 is about MX records."""

    def change(zone: Zone) -> None:
        zone.add("self.test", RecordType.A, "8.8.8.9")

    assert demands(routed("self.test", requires_tls=True, change=change)) == [("verify", "requiretls")]


def test_hosts_that_a_policy_rules_out_are_counted() -> None:
    """RFC 8460 section 4.3: sessions that did not come about."""
    counts = TlsCounts(lambda: 86_400.0 * 20_000 + 5)
    routed(sts=policy("enforce", "mx1.example.test"), counts=counts)
    routed(is_authenticated=True, change=lambda zone: zone.fail("_25._tcp.mx1.example.test"), counts=counts)
    taken = counts.take()
    assert [(kind.day, kind.policy.type, kind.mx_host, kind.result, n) for kind, n in taken.items()] == [
        (20_000, "sts", "mx2.elsewhere.test", "validation-failure", 1),
        (20_000, "tlsa", "mx1.example.test", "dnssec-invalid", 1),
    ]
    assert counts.take() == {}
    counts.give_back(taken)
    assert counts.take() == taken


def test_successes_of_a_day_are_one_row() -> None:
    """And failures tell who met whom."""
    counts = TlsCounts(lambda: 0.0)
    (host, _) = hosts(routed())
    assert host.tls.published is not None
    for address in ("8.8.8.1", "8.8.8.2"):
        counts.count(host.tls.published, host.name, receiving_address=address)
        counts.count(host.tls.published, host.name, "certificate-expired", receiving_address=address, reason="x" * 999)
    taken = counts.take()
    assert taken[TlsResult(0, host.tls.published, host.name)] == 2
    assert len(taken) == 3
    assert all(len(kind.reason) <= 200 for kind in taken)
