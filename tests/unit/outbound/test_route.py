"""Routes: which hosts, in which order, at which addresses; and where there is none, why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.dns.zone import Zone
from mailgate.outbound.mx import MAX_HOSTS, MAX_ROUTE_ADDRESSES, Exchanges, exchanges, is_public
from mailgate.outbound.plan import Credentials, NoRoute, Route, TlsLevel
from mailgate.outbound.route import Router, RouterSettings
from mailgate.outbound.transport import DomainTable, TlsRule, read_transport
from mailgate.smtp.reply import Reply

TEXT = """
example.test            MX    20 mx2.example.test
example.test            MX    10 mx1.example.test
mx1.example.test        A     8.8.8.1
mx1.example.test        A     8.8.8.2
mx1.example.test        AAAA  2600::1
mx2.example.test        A     8.8.8.3
implicit.test           A     8.8.8.9
null.test               MX    0 .
odd-null.test           MX    0 .
odd-null.test           MX    10 mx2.example.test
text.test               TXT   "neither MX nor address"
nohosts.test            MX    10 nowhere.test
nohosts.test            MX    20 text.test
alias.test              MX    10 alias-host.test
alias-host.test         CNAME mx2.example.test
aliased.test            CNAME example.test
address-as-name.test    MX    10 192.0.2.1
localhost.test          MX    10 localhost
private.test            MX    10 private-host.test
private-host.test       A     10.0.0.1
private-host.test       A     127.0.0.1
private-host.test       AAAA  fd00::1
mixed.test              MX    10 mixed-host.test
mixed-host.test         A     10.0.0.1
mixed-host.test         A     8.8.8.4
ours.test               MX    10 mx1.example.test
ours.test               MX    20 mx.ours.example
ours.test               MX    20 mx2.example.test
ours.test               MX    30 mx3.example.test
ours-first.test         MX    10 mx.ours.example
ours-first.test         MX    20 mx2.example.test
ours-by-address.test    MX    10 mx1.example.test
ours-by-address.test    MX    20 hidden.test
ours-by-address.test    MX    20 mx2.example.test
hidden.test             A     8.8.8.77
by-our-name.test        MX    10 also-ours.test
also-ours.test          A     8.8.8.78
mx.ours.example         A     8.8.8.78
relay.test              A     10.0.0.25
"""
OURS = RouterSettings(own_names=frozenset({"mx.ours.example"}), own_addresses=frozenset({"8.8.8.77"}))
_T = TypeVar("_T")


def route(
    domain: str,
    settings: RouterSettings = OURS,
    change: Callable[[Zone], None] | None = None,
    random: Random | None = None,
    *,
    requires_tls: bool = False,
) -> Route | NoRoute:
    zone = Zone(TEXT)
    if change is not None:
        change(zone)
    coroutine = Router(zone, settings, random=random or Random(1)).route(domain, requires_tls=requires_tls)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        found: Route | NoRoute = stop.value
        return found
    raise AssertionError("it waits for what is known")


def hosts(found: Route | NoRoute) -> list[tuple[str, tuple[str, ...]]]:
    assert isinstance(found, Route), found
    return [(host.name, host.addresses) for host in found.hosts]


def refusal(found: Route | NoRoute) -> tuple[int, str]:
    assert isinstance(found, NoRoute), found
    return found.reply.code, found.reply.enhanced


def test_hosts_come_by_preference_each_with_its_addresses() -> None:
    """RFC 5321 section 5.1; the families in turn."""
    assert hosts(route("example.test")) == [
        ("mx1.example.test", ("2600::1", "8.8.8.1", "8.8.8.2")),
        ("mx2.example.test", ("8.8.8.3",)),
    ]


@pytest.mark.parametrize("domain", ["Example.TEST", "example.test."])
def test_a_domain_has_one_route_however_it_is_written(domain: str) -> None:
    """RFC 5321 section 2.4: the key is the same, so connections are shared."""
    found = route(domain)
    assert found.key == "example.test"
    assert len(hosts(found)) == 2


def test_a_domain_in_u_form_is_looked_up_in_a_form() -> None:
    """RFC 6531 section 3.7.1."""
    found = route("bücher.test", change=lambda zone: zone.add("xn--bcher-kva.test", RecordType.A, "8.8.8.5"))
    assert (found.key, hosts(found)) == ("xn--bcher-kva.test", [("xn--bcher-kva.test", ("8.8.8.5",))])


@pytest.mark.parametrize(
    ("order", "addresses"),
    [
        ("ipv6", ("2600::1", "8.8.8.1", "8.8.8.2")),
        ("ipv4", ("8.8.8.1", "2600::1", "8.8.8.2")),
        ("ipv6-only", ("2600::1",)),
        ("ipv4-only", ("8.8.8.1", "8.8.8.2")),
    ],
)
def test_the_order_of_families_is_the_operators(order: str, addresses: tuple[str, ...]) -> None:
    """One of each in turn, that a family which leads nowhere costs one attempt."""
    settings = replace(OURS, address_order=order)  # type: ignore[arg-type]  # a str of the table
    assert hosts(route("example.test", settings))[0][1] == addresses


def test_hosts_of_one_preference_come_in_any_order() -> None:
    """RFC 5321 section 5.1: "the sender-SMTP MUST randomize them"."""

    def change(zone: Zone) -> None:
        zone.add("example.test", RecordType.MX, (10, "mx3.example.test"))
        zone.add("mx3.example.test", RecordType.A, "8.8.8.6")

    orders = {
        tuple(name for name, _ in hosts(route("example.test", change=change, random=Random(seed))))
        for seed in range(20)
    }
    assert orders == {
        ("mx1.example.test", "mx3.example.test", "mx2.example.test"),
        ("mx3.example.test", "mx1.example.test", "mx2.example.test"),
    }


def test_without_mx_the_domain_is_its_own_host() -> None:
    """RFC 5321 section 5.1: the implicit MX."""
    assert hosts(route("implicit.test")) == [("implicit.test", ("8.8.8.9",))]


def test_aliases_are_followed() -> None:
    """RFC 5321 section 5.1 for the domain; RFC 2181 section 10.3 forbids them for hosts, and they occur."""
    assert hosts(route("aliased.test"))[0][0] == "mx1.example.test"
    assert hosts(route("alias.test")) == [("alias-host.test", ("8.8.8.3",))]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("null.test", (556, "5.1.10")),
        ("nowhere.test", (550, "5.1.2")),
        ("text.test", (550, "5.4.4")),
        ("nohosts.test", (550, "5.4.4")),
        ("address-as-name.test", (550, "5.4.4")),
        ("localhost.test", (550, "5.4.4")),
        ("private.test", (550, "5.4.4")),
        ("ours-first.test", (554, "5.4.6")),
        ("by-our-name.test", (554, "5.4.6")),
        ("mx.ours.example", (554, "5.4.6")),
        ("hidden.test", (554, "5.4.6")),
        ("a..test", (550, "5.1.2")),
        ("", (550, "5.1.2")),
        ("[8.8.8.77]", (554, "5.4.6")),
        ("[10.0.0.1]", (550, "5.4.4")),
        ("[127.0.0.1]", (550, "5.4.4")),
        ("[x400:stuff]", (550, "5.1.2")),
        ("[8.8.8.8", (550, "5.1.2")),
    ],
)
def test_nowhere_to_go_is_final_where_the_dns_says_so(domain: str, expected: tuple[int, str]) -> None:
    """RFC 7505 section 3 for the null MX, RFC 3463 for the codes."""
    assert refusal(route(domain)) == expected


@pytest.mark.parametrize(
    ("domain", "failing", "record_type"),
    [
        ("example.test", "example.test", RecordType.MX),
        ("implicit.test", "implicit.test", RecordType.A),
        ("nohosts.test", "nowhere.test", RecordType.AAAA),
        ("alias.test", "mx2.example.test", None),
    ],
)
def test_a_failure_of_the_dns_never_bounces(domain: str, failing: str, record_type: RecordType | None) -> None:
    """Nothing is known: RFC 5321 section 5.1, "a temporary error"."""
    assert refusal(route(domain, change=lambda zone: zone.fail(failing, record_type))) == (451, "4.4.3")


def test_whatever_breaks_the_search_for_a_route_is_ours_and_passes() -> None:
    """Else the mail would be held for good, and nobody told."""
    with mock.patch("mailgate.outbound.route.exchanges", side_effect=KeyError("odd")):
        assert refusal(route("example.test")) == (451, "4.3.0")


def test_a_host_without_an_answer_stays_in_its_place_with_its_trouble() -> None:
    """The next one takes the mail meanwhile."""
    found = route("example.test", change=lambda zone: zone.fail("mx1.example.test"))
    assert isinstance(found, Route)
    troubles = [host.trouble.code if host.trouble else None for host in found.hosts]
    assert troubles == [451, None]


def test_one_family_without_an_answer_leaves_the_other() -> None:
    """Broken servers answer for A only."""
    found = route("example.test", change=lambda zone: zone.fail("mx1.example.test", RecordType.AAAA))
    assert hosts(found)[0] == ("mx1.example.test", ("8.8.8.1", "8.8.8.2"))


def test_a_null_mx_among_others_is_passed_over() -> None:
    """RFC 7505 section 3 forbids it; mail goes where it can."""
    assert hosts(route("odd-null.test")) == [("mx2.example.test", ("8.8.8.3",))]


@pytest.mark.parametrize("domain", ["ours.test", "ours-by-address.test"])
def test_no_host_comes_behind_ourselves(domain: str) -> None:
    """RFC 5321 section 5.1: by name or address, our preference and all above it go."""
    assert [name for name, _ in hosts(route(domain))] == ["mx1.example.test"]


def test_private_addresses_are_for_those_who_allow_them() -> None:
    """A stranger's records don't choose which of our machines we talk to."""
    assert hosts(route("mixed.test"))[0][1] == ("8.8.8.4",)
    allowed = replace(OURS, allows_private_addresses=True)
    assert hosts(route("private.test", allowed))[0][1] == ("fd00::1", "10.0.0.1", "127.0.0.1")
    assert hosts(route("[127.0.0.1]", allowed)) == [("127.0.0.1", ("127.0.0.1",))]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2600::1", True),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.2", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:a00:1::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("::7f00:1", False),  # IPv4-compatible
        ("::ffff:0:7f00:1", False),  # SIIT
        ("64:ff9b:1::a00:1", False),  # RFC 8215: translated within a network
    ],
)
def test_an_address_is_public_by_what_it_leads_to(address: str, expected: bool) -> None:
    """RFC 6890; an IPv4 address within an IPv6 one counts."""
    assert is_public(address) is expected


@pytest.mark.parametrize(
    ("literal", "address"), [("[8.8.4.4]", "8.8.4.4"), ("[IPv6:2600::5]", "2600::5"), ("[ipv6:2600:0:0::5]", "2600::5")]
)
def test_an_address_literal_is_its_own_host(literal: str, address: str) -> None:
    """RFC 5321 section 4.1.3; nothing is looked up."""
    assert hosts(route(literal)) == [(address, (address,))]


def test_a_thousand_hosts_cost_the_look_ups_of_a_few() -> None:
    """The best of them."""
    zone = Zone()
    for number in range(1000):
        zone.add("many.test", RecordType.MX, (1000 - number, f"mx{number}.test"))
        zone.add(f"mx{number}.test", RecordType.A, "8.8.8.8")
    coroutine = Router(zone, random=Random(1)).route("many.test")
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert [name for name, _ in hosts(stop.value.value)] == [f"mx{number}.test" for number in range(999, 983, -1)]
    assert len(zone.asked) <= 1 + 2 * MAX_HOSTS


def test_the_addresses_of_a_route_are_bounded_and_not_all_of_one_host() -> None:
    """Each of them may take minutes to say nothing, and holds one of the node's connections meanwhile."""
    zone = Zone()
    for number in range(16):
        zone.add("many.test", RecordType.MX, (number, f"mx{number}.test"))
        for last in range(1, 31):
            zone.add(f"mx{number}.test", RecordType.A, f"8.8.{number}.{last}")
    coroutine = Router(zone, random=Random(1)).route("many.test")
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    found = hosts(stop.value.value)
    assert [name for name, _ in found] == ["mx0.test", "mx1.test"]
    assert sum(len(addresses) for _, addresses in found) == MAX_ROUTE_ADDRESSES == 16


NAMES = st.sampled_from(["a.test", "b.test", "c.test", "d.test", "mx.ours.example", ""])


@given(st.lists(st.tuples(st.integers(0, 4), NAMES), min_size=1, max_size=12), st.integers())
def test_any_mx_records_give_each_host_once_by_preference_and_none_behind_us(
    records: list[tuple[int, str]], seed: int
) -> None:
    """RFC 5321 section 5.1, whatever the records."""
    answer = Answer(Question("x.test", RecordType.MX), Outcome.ANSWER, tuple(records))
    found = exchanges("x.test", answer, OURS.own_names, Random(seed).shuffle)
    least: dict[str, int] = {}
    for preference, name in records:
        least[name] = min(preference, least.get(name, preference))
    ours = least.get("mx.ours.example", 99)
    expected = {name: preference for name, preference in least.items() if name and preference < ours}
    if not expected:
        assert isinstance(found, Reply)
        assert found.enhanced == ("5.4.6" if ours < 99 else "5.1.10")
    else:
        assert isinstance(found, Exchanges)
        assert {host.name: host.preference for host in found.hosts} == expected
        preferences = [host.preference for host in found.hosts]
        assert preferences == sorted(preferences)


# ---------------------------------------------------------------- transports

RELAY = Credentials("gate", "secret")


def by_rule(
    *rules: tuple[str, str], tls: TlsLevel | None = None, credentials: Credentials | None = None
) -> RouterSettings:
    table = [((pattern,), read_transport(to, tls=tls, credentials=credentials)) for pattern, to in rules]
    return replace(OURS, transports=DomainTable(table))


def test_a_transport_stands_above_mx_and_may_be_private() -> None:
    """The operator's own host."""
    found = route("example.test", by_rule(("*", "smtp://relay.test:587")))
    assert isinstance(found, Route)
    (host,) = found.hosts
    assert (found.key, host.name, host.addresses, host.port) == (
        "smtp://relay.test:587",
        "relay.test",
        ("10.0.0.25",),
        587,
    )
    assert (host.tls.level, host.tls.source, found.credentials) == (TlsLevel.OPPORTUNISTIC, "config", None)


def test_the_most_specific_pattern_holds() -> None:
    """Wherever it stands."""
    settings = by_rule(("*", "smtp://[10.0.0.1]"), (".test", "smtp://[10.0.0.2]"), ("example.test", "mx"))
    assert hosts(route("example.org", settings))[0][0] == "10.0.0.1"
    assert hosts(route("sub.example.test", settings))[0][0] == "10.0.0.2"
    assert hosts(route("example.test", settings))[0][0] == "mx1.example.test"
    assert hosts(route("test", settings))[0][0] == "10.0.0.1"


def test_a_password_is_sent_to_a_proved_host_only() -> None:
    """Unless the operator says otherwise."""
    for settings, level in (
        (by_rule(("*", "smtp://relay.test"), credentials=RELAY), TlsLevel.VERIFY),
        (by_rule(("*", "smtps://relay.test")), TlsLevel.VERIFY),
        (by_rule(("*", "smtp://relay.test"), credentials=RELAY, tls=TlsLevel.ENCRYPT), TlsLevel.ENCRYPT),
    ):
        found = route("example.test", settings)
        assert isinstance(found, Route)
        assert found.hosts[0].tls.level is level
        assert found.hosts[0].tls.names == ("relay.test",)
        assert found.hosts[0].tls.is_implicit is (found.hosts[0].port == 465)
    assert "secret" not in repr(RELAY)


def test_ways_to_one_host_that_differ_are_different_destinations() -> None:
    """Else mail would go over a connection that another route has made: as another user, or with less TLS."""
    transports = (
        read_transport("smtp://relay.test:587"),
        read_transport("smtp://relay.test:587", credentials=RELAY),
        read_transport("smtp://relay.test:587", credentials=Credentials("other", "secret")),
        read_transport("smtp://relay.test:587", tls=TlsLevel.NONE),
        read_transport("smtp://relay.test:587", credentials=RELAY, tls=TlsLevel.ENCRYPT),
        read_transport("smtps://relay.test:587"),
    )
    assert [transport.key for transport in transports] == [
        "smtp://relay.test:587",
        "smtp://gate@relay.test:587",
        "smtp://other@relay.test:587",
        "smtp://relay.test:587?tls=none",
        "smtp://gate@relay.test:587?tls=encrypt",
        "smtps://relay.test:587",
    ]


def test_lmtp_over_a_socket_needs_no_tls() -> None:
    """It stays on the machine."""
    found = route("example.test", by_rule(("example.test", "lmtp:/run/dovecot/lmtp")), requires_tls=True)
    assert isinstance(found, Route)
    assert (found.protocol, found.hosts[0].unix_path, found.hosts[0].tls.level) == (
        "lmtp",
        "/run/dovecot/lmtp",
        TlsLevel.NONE,
    )


def test_lmtp_goes_over_tcp_too() -> None:
    """RFC 2033; two slashes begin a host, one a path."""
    found = route("example.test", by_rule(("*", "lmtp://relay.test:2424")))
    assert isinstance(found, Route)
    (host,) = found.hosts
    assert (found.protocol, found.key, host.name, host.addresses, host.port, host.unix_path) == (
        "lmtp",
        "lmtp://relay.test:2424",
        "relay.test",
        ("10.0.0.25",),
        2424,
        "",
    )


def test_localhost_is_this_machine_where_the_operator_says_so() -> None:
    """RFC 6761 section 6.3: no DNS is asked for that."""
    assert hosts(route("example.test", by_rule(("*", "lmtp://localhost:2424")))) == [
        ("localhost", ("127.0.0.1", "::1"))
    ]


def test_a_smarthost_that_has_no_address_is_the_operators_to_mend() -> None:
    """Mail waits, and does not bounce."""
    assert refusal(route("example.test", by_rule(("*", "smtp://nowhere.test")))) == (451, "4.4.4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relay.test",
        "http://relay.test",
        "smtp://",
        "smtp://a.test:0",
        "smtp://a.test:65536",
        "smtp://[::g]",
        "lmtp:relative",
        "smtp://a@b.test",
        "smtp://a..b",
    ],
)
def test_what_is_no_transport_is_refused(text: str) -> None:
    """With what would be one."""
    with pytest.raises(ValueError):
        read_transport(text)


def test_a_literal_has_a_rule_of_its_own() -> None:
    """And no pattern of names covers it but *."""
    table = DomainTable([(("[8.8.8.8]",), TlsRule(TlsLevel.NONE)), ((".8]",), TlsRule(TlsLevel.VERIFY))])
    assert table.find("[8.8.8.8]") == TlsRule(TlsLevel.NONE)
    assert table.find("[8.8.4.8]") is None
