"""The DNS of a test: it has to answer as the real one does."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.dns.zone import Zone

TEXT = """
example.test            MX      10 mx1.example.test
example.test            MX      20 mx2.example.test.
example.test            TXT     "v=spf1 " "-all"
mx1.Example.test        600 A   192.0.2.1
mx1.example.test        AAAA    2001:db8::1
a.b.c.example.test      A       192.0.2.2
alias.example.test      CNAME   mx1.example.test
astray.example.test     CNAME   nowhere.example.test
loop.example.test       CNAME   loop.example.test
*.wild.example.test     TXT     "by wildcard"
here.wild.example.test  A       192.0.2.3
null.example.test       MX      0 .
$ORIGIN example.org.
@                       TXT     "under its origin"
mail                    30 A    192.0.2.4
"""


def ask(zone: Zone, name: str, record_type: str) -> Answer:
    answer = zone.lookup(name, RecordType(record_type))
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.parametrize(
    ("name", "record_type", "outcome", "records", "ttl"),
    [
        ("example.test", "MX", "answer", ((10, "mx1.example.test"), (20, "mx2.example.test")), 300),
        ("Example.TEST.", "TXT", "answer", (b"v=spf1 -all",), 300),
        ("mx1.example.test", "A", "answer", ("192.0.2.1",), 600),
        ("mx1.example.test", "AAAA", "answer", ("2001:db8::1",), 300),
        ("null.example.test", "MX", "answer", ((0, ""),), 300),
        ("example.org", "TXT", "answer", (b"under its origin",), 300),
        ("mail.example.org", "A", "answer", ("192.0.2.4",), 30),
        ("alias.example.test", "CNAME", "answer", ("mx1.example.test",), 300),
        ("alias.example.test", "A", "answer", ("192.0.2.1",), 300),
        ("alias.example.test", "TXT", "nodata", (), 60),
        ("astray.example.test", "A", "nxdomain", (), 60),
        ("mx1.example.test", "TXT", "nodata", (), 60),
        ("b.c.example.test", "A", "nodata", (), 60),
        ("test", "A", "nodata", (), 60),
        ("", "A", "nodata", (), 60),
        ("x.a.b.c.example.test", "A", "nxdomain", (), 60),
        ("nowhere.example.test", "A", "nxdomain", (), 60),
        ("x.y.wild.example.test", "TXT", "answer", (b"by wildcard",), 300),
        ("x.wild.example.test", "A", "nodata", (), 60),
        ("wild.example.test", "TXT", "nodata", (), 60),
        ("here.wild.example.test", "TXT", "nodata", (), 60),
        ("below.here.wild.example.test", "TXT", "nxdomain", (), 60),
    ],
)
def test_it_answers_as_a_recursive_server_does(
    name: str, record_type: str, outcome: str, records: tuple[object, ...], ttl: int
) -> None:
    """RFC 1034 section 4.3.2, RFC 4592 (wildcards), RFC 8020 (what is below a name makes it exist)."""
    answer = ask(Zone(TEXT), name, record_type)
    assert (answer.outcome.value, answer.records, answer.ttl_seconds) == (outcome, records, ttl)
    assert answer.rcode == ("NXDOMAIN" if outcome == "nxdomain" else "NOERROR")


def test_aliases_in_a_circle_are_a_failure() -> None:
    """With a reason."""
    answer = ask(Zone(TEXT), "loop.example.test", "A")
    assert (answer.outcome, answer.rcode) == (Outcome.FAILURE, "")
    assert answer.detail


def test_a_name_that_can_t_exist_does_not() -> None:
    """As the resolver has it."""
    answer = ask(Zone(TEXT), "a..test", "A")
    assert (answer.outcome, answer.rcode) == (Outcome.NXDOMAIN, "")


def test_records_can_be_added_and_removed() -> None:
    """In the form that answers have; the text of a TXT record may hold any octets."""
    zone = Zone()
    zone.add("x.y.test", RecordType.TXT, b"\0\xff", ttl_seconds=7)
    zone.add("x.y.test", RecordType.TXT, b"second")
    assert ask(zone, "x.y.test", "TXT").records == (b"\0\xff", b"second")
    assert ask(zone, "y.test", "TXT").outcome is Outcome.NODATA
    zone.remove("x.y.test", RecordType.TXT)
    assert ask(zone, "x.y.test", "TXT").outcome is Outcome.NODATA


def test_a_name_can_fail_for_all_types_or_for_one() -> None:
    """Behind an alias too, until it is healed."""
    zone = Zone(TEXT)
    zone.fail("mx1.example.test", RecordType.A, rcode="REFUSED")
    zone.fail("example.org", rcode="", detail="silence")
    assert ask(zone, "alias.example.test", "A").rcode == "REFUSED"
    assert ask(zone, "mx1.example.test", "AAAA").outcome is Outcome.ANSWER
    failure = ask(zone, "example.org", "TXT")
    assert (failure.outcome, failure.rcode, failure.detail) == (Outcome.FAILURE, "", "silence")
    zone.heal()
    assert ask(zone, "example.org", "TXT").outcome is Outcome.ANSWER


def test_a_name_can_take_time_on_the_clock() -> None:
    """And can be cancelled meanwhile."""
    clock = Clock()
    zone = Zone(TEXT, clock)
    zone.delay("example.test", 3)
    waiter = zone.lookup("example.test", RecordType.TXT)
    assert isinstance(waiter, Deferred)
    found: list[Answer] = []
    waiter.addCallback(found.append)
    clock.advance(2.9)
    assert not found
    clock.advance(0.2)
    assert found[0].records == (b"v=spf1 -all",)
    assert found[0].answered_at == clock.seconds()
    given_up = zone.lookup("example.test", RecordType.TXT)
    assert isinstance(given_up, Deferred)
    given_up.addErrback(lambda failure: None)
    given_up.cancel()
    assert clock.getDelayedCalls() == []


def test_a_delay_without_a_clock_is_refused_at_once() -> None:
    """It would never end."""
    with pytest.raises(ValueError, match="clock"):
        Zone(TEXT).delay("example.test", 1)


def test_what_was_asked_is_noted_in_order() -> None:
    """With names in our form."""
    zone = Zone(TEXT)
    ask(zone, "B.test", "A")
    ask(zone, "a.test.", "MX")
    assert zone.asked == [Question("b.test", RecordType.A), Question("a.test", RecordType.MX)]


def test_a_whole_zone_can_be_authenticated() -> None:
    """The AD bit."""
    assert ask(Zone(TEXT, is_authenticated=True), "example.test", "TXT").is_authenticated
