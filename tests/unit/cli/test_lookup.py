"""`mailgate lookup`: what it says of each kind of thing in the DNS."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import click
import pytest

from mailgate.cli.database import Failure
from mailgate.cli.lookup import Inquiry, Report, _asked_for
from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from mailgate.outbound.route import Router, RouterSettings
from mailgate.outbound.transport import DomainTable, read_transport

_KEY = "p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8463 appendix A.2

TEXT = f"""
example.test                MX      20 mx2.example.test
example.test                MX      10 mx1.example.test
example.test                MX      10 mx3.example.test
example.test                TXT     "v=SPF1 mx -all"
example.test                TXT     "v=spf10 is another"
mx1.example.test            A       192.0.2.1
mx1.example.test            A       192.0.2.2
mx1.example.test            AAAA    2001:db8::1
mx3.example.test            A       192.0.2.3
implicit.test               A       192.0.2.9
null.test                   MX      0 .
text.test                   TXT     "only text"
nohosts.test                MX      10 nowhere.test
two.test                    TXT     "v=spf1 -all"
two.test                    TXT     "v=spf1"
1.2.0.192.in-addr.arpa      PTR     mx1.example.test
1.2.0.192.in-addr.arpa      PTR     mx3.example.test
s._domainkey.example.test   TXT     "v=DKIM1; k=ed25519; {_KEY}"
t._domainkey.example.test   TXT     "v=DKIM1; k=ed25519; t=y; {_KEY}"
bad._domainkey.example.test TXT     "v=DKIM1; k=rsa; p=abcd"
_dmarc.example.test         TXT     "v=DMARC1; p=reject; sp=quarantine"
_dmarc.example.test         TXT     "something else"
"""


def find(kind: str, name: str, change: Callable[[Zone], None] | None = None) -> Report:
    zone = Zone(TEXT)
    if change is not None:
        change(zone)
    coroutine = Inquiry(zone).of(kind, name)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        report: Report = stop.value
        return report
    raise AssertionError("it waits for what is known")


def test_mail_exchangers_are_shown_as_a_sender_walks_them() -> None:
    """By preference, those of one preference in any order (RFC 5321 section 5.1); addresses as they are tried."""
    report = find("mx", "example.test")
    assert report.rows == (
        ("1-2", "10", "mx1.example.test", "2001:db8::1 192.0.2.1 192.0.2.2"),
        ("1-2", "10", "mx3.example.test", "192.0.2.3"),
        ("3", "20", "mx2.example.test", "(mx2.example.test does not exist)"),
    )
    assert [record["addresses"] for record in report.records] == [
        ("2001:db8::1", "192.0.2.1", "192.0.2.2"),
        ("192.0.2.3",),
        (),
    ]
    assert report.problem == ""


def test_a_host_whose_addresses_nobody_tells_says_so() -> None:
    """The sender would come back later."""
    report = find("mx", "example.test", lambda zone: zone.fail("mx3.example.test", detail="silence"))
    assert "silence" in report.rows[1][3]


def test_without_mx_mail_goes_to_the_domains_own_address() -> None:
    """RFC 5321 section 5.1: the implicit MX."""
    report = find("mx", "implicit.test")
    assert report.rows == (("1", "0", "implicit.test", "192.0.2.9"),)
    assert "no MX record" in report.notes[0]
    assert report.records[0]["implicit"] is True


def test_a_domain_that_takes_no_mail_says_so() -> None:
    """RFC 7505: it was answered, so the command has not failed."""
    report = find("mx", "null.test")
    assert report.rows == (("", "0", ".", "takes no mail (RFC 7505)"),)
    assert report.problem == ""


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("mx", "nowhere.test", "nowhere.test does not exist"),
        ("mx", "text.test", "text.test has neither an MX record nor an address"),
        ("a", "text.test", "text.test has no A record"),
        ("aaaa", "implicit.test", "implicit.test has no AAAA record"),
        ("txt", "nowhere.test", "nowhere.test does not exist"),
        ("ptr", "2001:db8::1", "8.b.d.0.1.0.0.2.ip6.arpa does not exist"),
        ("spf", "text.test", "text.test has no SPF record"),
        ("spf", "nowhere.test", "nowhere.test does not exist"),
        ("dkim", "x._domainkey.example.test", "x._domainkey.example.test does not exist"),
    ],
)
def test_what_is_not_there_is_a_failure(kind: str, name: str, problem: str) -> None:
    """Exit status 1, and a line."""
    with pytest.raises(Failure) as failure:
        find(kind, name)
    assert problem in failure.value.message


@pytest.mark.parametrize("kind", ["mx", "a", "txt", "spf"])
def test_silence_is_a_failure_with_its_reason(kind: str) -> None:
    """It isn't that there is nothing: nobody knows."""
    with pytest.raises(Failure) as failure:
        find(kind, "example.test", lambda zone: zone.fail("example.test", detail="no answer from 192.0.2.53"))
    assert "can't be had: no answer from 192.0.2.53" in failure.value.message


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("mx", "nohosts.test", "no mail exchanger of nohosts.test has an address"),
        ("spf", "two.test", "two.test has 2 SPF records: permerror (RFC 7208 section 4.5)"),
        ("dkim", "bad._domainkey.example.test", "has no key that a signature could be verified with"),
        ("dmarc", "nowhere.test", "nowhere.test has no DMARC record"),
    ],
)
def test_what_is_there_and_useless_is_shown_and_a_failure(kind: str, name: str, problem: str) -> None:
    """One sees why."""
    report = find(kind, name)
    assert report.rows
    assert problem in report.problem


def test_only_the_spf_record_is_shown() -> None:
    """RFC 7208 section 4.5: the version ends at a space or the end, whatever its case."""
    assert find("spf", "example.test").rows == (("v=SPF1 mx -all", "300"),)


def test_the_names_of_an_address_say_whether_they_lead_back() -> None:
    """Anybody may claim any name for his address."""
    assert find("ptr", "192.0.2.1").rows == (
        ("mx1.example.test", "yes", "300"),
        ("mx3.example.test", "no", "300"),
    )
    report = find("ptr", "192.0.2.1", lambda zone: zone.fail("mx1.example.test", RecordType.A))
    assert report.rows[0][1] == "unknown"
    assert report.records[0]["leads_back"] is None


def test_a_key_says_what_it_is() -> None:
    """Its type and size, and whether it is only tried out."""
    assert find("dkim", "s._domainkey.example.test").rows[0][0] == "ed25519, 256 bits"
    assert find("dkim", "t._domainkey.example.test").rows[0][0] == "ed25519, 256 bits, testing"


def test_the_walk_to_a_dmarc_record_is_shown_step_by_step() -> None:
    """RFC 9989 section 4.10, with whatever else is at those names; and what comes of it."""
    report = find("dmarc", "a.example.test")
    assert report.rows == (
        ("_dmarc.a.example.test", "(_dmarc.a.example.test does not exist)"),
        ("_dmarc.example.test", "v=DMARC1; p=reject; sp=quarantine"),
        ("_dmarc.example.test", "something else"),
        ("_dmarc.test", "(_dmarc.test does not exist)"),
    )
    assert report.notes[:2] == (
        "the record of example.test holds for a.example.test, and its policy is quarantine",
        "the organizational domain is example.test",
    )
    assert [record["values"] for record in report.records][1:] == [
        ["v=DMARC1; p=reject; sp=quarantine", "something else"],
        [],
    ]


def test_a_step_without_an_answer_leaves_dmarc_unknown() -> None:
    """No record further up may stand in."""
    report = find("dmarc", "a.example.test", lambda zone: zone.fail("_dmarc.a.example.test"))
    assert "is not known: no answer for _dmarc.a.example.test" in report.problem


def test_octets_that_are_no_text_are_escaped() -> None:
    """A record may hold anything."""
    report = find("txt", "raw.test", lambda zone: zone.add("raw.test", RecordType.TXT, b"\xffx\x1b"))
    assert report.rows[0][0] == "\\xffx\x1b"  # the table takes the control character out


@pytest.mark.parametrize(
    ("kind", "words", "asked"),
    [
        ("mx", ("Example.test.",), "example.test"),
        ("mx", ("bücher.example",), "xn--bcher-kva.example"),
        ("ptr", ("2001:DB8:0::1",), "2001:db8::1"),
        ("dkim", ("S1", "example.test"), "s1._domainkey.example.test"),
        ("dkim", ("s1._DomainKey.example.test",), "s1._domainkey.example.test"),
    ],
)
def test_what_is_typed_becomes_a_name(kind: str, words: tuple[str, ...], asked: str) -> None:
    """In the form of the wire."""
    assert _asked_for(kind, words) == asked


@pytest.mark.parametrize(
    ("kind", "words"),
    [("mx", ("a.test", "b.test")), ("ptr", ("a.test",)), ("dkim", ("a.test",)), ("dkim", ("a", "b", "c"))],
)
def test_what_asks_for_something_else_is_a_usage_error(kind: str, words: tuple[str, ...]) -> None:
    """Exit status 2."""
    with pytest.raises(click.BadParameter):
        _asked_for(kind, words)


def test_a_name_that_can_t_exist_is_a_failure() -> None:
    """With what is wrong with it."""
    with pytest.raises(Failure, match="empty label"):
        _asked_for("mx", ("a..test",))


def find_route(domain: str, zone: Zone, settings: RouterSettings) -> Report:
    coroutine = Inquiry(zone, Router(zone, settings, random=Random(1))).of("route", domain)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    report: Report = stop.value.value
    return report


def test_a_route_says_which_tls_is_demanded_and_by_whom() -> None:
    """Each host with what a sender would ask of it."""
    zone = Zone(TEXT, is_authenticated=True)
    zone.add("_25._tcp.mx1.example.test", RecordType.TLSA, (3, 1, 1, b"\xab" * 32))
    report = find_route("example.test", zone, RouterSettings(allows_private_addresses=True))
    by_host = {row[1]: row[2:] for row in report.rows}
    assert by_host["mx1.example.test"] == (
        "2001:db8::1 192.0.2.1 192.0.2.2",
        "dane",
        "DANE: 3 1 1 abababababababab…",
    )
    assert by_host["mx3.example.test"] == ("192.0.2.3", "opportunistic", "nobody demands more")
    assert by_host["mx2.example.test"][2] == "550 5.4.4 The mail exchanger mx2.example.test has no address"


def test_a_route_by_config_says_so() -> None:
    """The operator sees his own rule."""
    transport = read_transport("smtps://mx1.example.test")
    report = find_route("example.org", Zone(TEXT), RouterSettings(transports=DomainTable([("*", transport)])))
    assert report.notes == ("by config, mail for example.org goes to smtps://mx1.example.test:465",)
    assert report.rows[0][3:] == ("verify", "config: a certificate of mx1.example.test")
    assert report.records[0]["port"] == 465


def test_nowhere_to_go_is_a_failure_with_the_reply_that_a_sender_would_get() -> None:
    """As the bounce would say it."""
    with pytest.raises(Failure, match=r"556 5\.1\.10"):
        find_route("null.test", Zone(TEXT), RouterSettings())
