"""SPF beyond its test suite: where pyspf is put right, hostile records, and what the result says."""

from __future__ import annotations

import contextlib
import ipaddress
import time

import pytest
import spf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from mailgate.auth.results import Result, SpfResult
from mailgate.auth.spf import (
    MAX_EXPLANATION_CHARACTERS,
    MAX_RECORDS_OCTETS,
    Identity,
    check,
    domain_of,
)
from mailgate.dns.answer import Answer, Answers, Missing, Question, RecordType
from mailgate.dns.settle import settle
from mailgate.dns.zone import Zone

CLIENT = "192.0.2.1"
CLIENT_6 = "2001:db8::1"


def evaluate(
    zone: Zone,
    client: str = CLIENT,
    sender: str = "user@example.test",
    helo: str = "host.example.test",
    identity: Identity = "mailfrom",
) -> SpfResult:
    result = settle(
        lambda answers: check(identity, client, sender, helo, "mx.receiver.test", answers, 1_700_000_000.9), zone
    )
    assert not isinstance(result, Deferred)
    return result


def zone_with(record: str | bytes, text: str = "") -> Zone:
    zone = Zone(text)
    zone.add("example.test", RecordType.TXT, record if isinstance(record, bytes) else record.encode())
    return zone


def word(record: str, text: str = "", client: str = CLIENT, sender: str = "user@example.test") -> str:
    return evaluate(zone_with(record, text), client, sender).result.value


# ---------------------------------------------------------------- what is checked


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("Example.TEST.", "example.test"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("_spf.example.test", "_spf.example.test"),
        ("localhost", None),
        ("[192.0.2.1]", None),
        ("192.0.2.1", None),
        ("a..test", None),
        ("a" * 64 + ".test", None),
        ("ab." * 85 + "test", None),
        ("two words.test", None),
        ("nul\0.test", None),
        ("", None),
        (".", None),
    ],
)
def test_only_a_name_with_a_dot_is_asked_about(name: str, domain: str | None) -> None:
    """RFC 7208 section 4.3; U-labels are converted first."""
    assert domain_of(name) == domain


def test_the_null_reverse_path_is_postmaster_at_helo() -> None:
    """RFC 7208 section 2.4."""
    zone = Zone(
        'host.example.test TXT "v=spf1 exists:%{l}.%{o}.%{d} -all"\n'
        "postmaster.host.example.test.host.example.test A 127.0.0.2"
    )
    result = evaluate(zone, sender="")
    assert (result.identity, result.domain, result.sender) == (
        "mailfrom",
        "host.example.test",
        "postmaster@host.example.test",
    )
    assert result.result is Result.PASS


def test_helo_is_asked_about_whatever_the_sender() -> None:
    """RFC 7208 section 2.3."""
    result = evaluate(Zone('host.example.test TXT "v=spf1 -all"'), identity="helo")
    assert (result.domain, result.sender, result.result) == (
        "host.example.test",
        "postmaster@host.example.test",
        Result.FAIL,
    )


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ('"a@elsewhere.test"@example.test', "example.test"),
        ('"@elsewhere.test"@example.test', "example.test"),
        ("user@Example.Test.", "example.test"),
        ("user@bücher.test", "xn--bcher-kva.test"),
    ],
)
def test_the_domain_is_what_stands_behind_the_last_at(sender: str, domain: str) -> None:
    """A quoted local part may hold another; pyspf takes the first."""
    assert evaluate(Zone(), sender=sender).domain == domain


def test_a_result_says_what_matched_and_rests_on_its_answers() -> None:
    """Received-SPF and the record of the transaction are made of it."""
    result = evaluate(
        zone_with(
            "v=spf1 ip4:198.51.100.0/24 include:other.test -all",
            'other.test TXT "v=spf1 a:h.test"\nh.test A 192.0.2.1\nunused.test A 192.0.2.9',
        )
    )
    assert (result.result, result.mechanism) == (Result.PASS, "include:other.test")
    assert result.record == "v=spf1 ip4:198.51.100.0/24 include:other.test -all"
    assert [(answer.question.name, answer.question.type.value) for answer in result.evidence] == [
        ("example.test", "TXT"),
        ("other.test", "TXT"),
        ("h.test", "A"),
    ]


@pytest.mark.parametrize(
    ("record", "mechanism", "outcome"),
    [
        ("v=spf1 ~ALL", "~ALL", Result.SOFTFAIL),
        ("v=spf1 ip4:198.51.100.1", "default", Result.NEUTRAL),
        ("v=spf1 redirect=other.test", "-all", Result.FAIL),
        ("v=spf1 a:..", "", Result.PERMERROR),
        ("v=spf10 -all", "", Result.NONE),
    ],
)
def test_the_mechanism_is_the_one_that_matched(record: str, mechanism: str, outcome: Result) -> None:
    """RFC 7208 section 9.1: "default" where none did."""
    result = evaluate(zone_with(record, 'other.test TXT "v=spf1 -all"'))
    assert (result.result, result.mechanism) == (outcome, mechanism)


# ---------------------------------------------------------------- the bounds of section 4.6.4


def test_ten_terms_may_look_something_up() -> None:
    """The eleventh is a permerror, even if it would match."""
    hosts = "\n".join(f"n{number}.test A 198.51.100.{number}" for number in range(10)) + "\nme.test A 192.0.2.1"
    nine = " ".join(f"a:n{number}.test" for number in range(9))
    assert word(f"v=spf1 {nine} a:me.test -all", hosts) == "pass"
    assert word(f"v=spf1 {nine} a:n9.test a:me.test -all", hosts) == "permerror"


def test_a_redirect_counts_only_where_it_is_followed() -> None:
    """pyspf counts it before the mechanisms are tried."""
    hosts = "\n".join(f"n{number}.test A 198.51.100.{number}" for number in range(9)) + "\nme.test A 192.0.2.1"
    nine = " ".join(f"a:n{number}.test" for number in range(9))
    zone = hosts + '\nother.test TXT "v=spf1 +all"'
    assert word(f"v=spf1 {nine} a:me.test redirect=other.test", zone) == "pass"
    assert word(f"v=spf1 {nine} redirect=other.test", zone) == "pass"
    assert word(f"v=spf1 {nine} a:n0.test redirect=other.test", zone) == "permerror"


def test_terms_in_included_records_count_too() -> None:
    """It is one limit for the whole evaluation, and ends circles."""
    chain = "\n".join(f'i{number}.test TXT "v=spf1 include:i{number + 1}.test"' for number in range(12))
    assert word("v=spf1 include:i0.test", chain) == "permerror"
    assert word("v=spf1 include:a.test", 'a.test TXT "v=spf1 include:b.test"\nb.test TXT "v=spf1 include:a.test"') == (
        "permerror"
    )
    assert word("v=spf1 redirect=a.test", 'a.test TXT "v=spf1 redirect=example.test"') == "permerror"


@pytest.mark.parametrize(
    ("record", "client", "expected"),
    [
        ("v=spf1 a:n1.test a:n2.test ip4:192.0.2.1", CLIENT, "pass"),
        ("v=spf1 a:n1.test a:n2.test a:n3.test ip4:192.0.2.1", CLIENT, "permerror"),
        ("v=spf1 exists:n1.test mx:n2.test a:empty.test ip4:192.0.2.1", CLIENT, "permerror"),
        # mx asks for the addresses of three hosts that do not exist: it is one term.
        ("v=spf1 mx:hosts.test a:n1.test ip4:192.0.2.1", CLIENT, "pass"),
        ("v=spf1 mx:hosts.test a:n1.test a:n2.test ip4:192.0.2.1", CLIENT, "permerror"),
        # Hosts that have IPv4 only, and an IPv6 client.
        ("v=spf1 a:four1.test a:four2.test a:four3.test mx:four.test include:six.test", CLIENT_6, "pass"),
        ("v=spf1 a:n1.test a:n2.test a:n3.test include:six.test", CLIENT_6, "permerror"),
    ],
)
def test_two_terms_may_ask_for_what_does_not_exist(record: str, client: str, expected: str) -> None:
    """Terms, not look-ups; and a host without IPv6 exists."""
    zone = """
        empty.test TXT "nothing else"
        hosts.test MX 1 h1.test
        hosts.test MX 2 h2.test
        hosts.test MX 3 h3.test
        four1.test A 198.51.100.1
        four2.test A 198.51.100.2
        four3.test A 198.51.100.3
        four.test MX 1 four1.test
        four.test MX 2 four2.test
        four.test MX 3 four3.test
        six.test TXT "v=spf1 ip6:2001:db8::/32"
    """
    text = "\n".join(line.strip() for line in zone.splitlines())
    assert word(record, text, client) == expected


def test_more_than_ten_mail_hosts_are_a_permerror_and_ten_are_not() -> None:
    for count, expected in ((10, "pass"), (11, "permerror")):
        hosts = "\n".join(
            f"example.test MX {n} h{n}.test\nh{n}.test A 192.0.2.{10 - n if n < 10 else 99}" for n in range(count)
        )
        assert word("v=spf1 mx -all", hosts) == expected


def test_names_of_the_client_beyond_ten_are_not_tried() -> None:
    """Section 5.5, and no error."""
    names = [f"h{number}.example.test" for number in range(11)]
    zone = zone_with("v=spf1 ptr -all", "h10.example.test A 192.0.2.1")
    zone.add("1.2.0.192.in-addr.arpa", RecordType.PTR, *names)
    assert evaluate(zone).result is Result.FAIL
    assert len([question for question in zone.asked if question.type is RecordType.A]) <= 10


def test_mail_hosts_behind_a_match_count_for_nothing() -> None:
    """pyspf asks for all of them, so that a dead name server refuses what has matched."""
    zone = zone_with("v=spf1 mx -all", "example.test MX 20 dead.test\nexample.test MX 10 h.test\nh.test A 192.0.2.1")
    zone.fail("dead.test")
    assert evaluate(zone).result is Result.PASS
    assert evaluate(zone, "192.0.2.2").result is Result.TEMPERROR


# ---------------------------------------------------------------- failures of the DNS


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 a:dead.test -all",
        "v=spf1 mx:dead.test -all",
        "v=spf1 exists:dead.test -all",
        "v=spf1 include:dead.test -all",
        "v=spf1 redirect=dead.test",
        "v=spf1 mx:m.test",
    ],
)
def test_a_failure_of_the_dns_is_a_temperror(record: str) -> None:
    """Section 4.4 and 5; what the domain says is not known."""
    zone = zone_with(record, "m.test MX 1 dead.test")
    zone.fail("dead.test", rcode="")
    result = evaluate(zone)
    assert result.result is Result.TEMPERROR
    assert "dead.test" in result.problem


def test_a_record_that_can_t_be_looked_up_is_a_temperror() -> None:
    zone = Zone()
    zone.fail("example.test")
    assert evaluate(zone).result is Result.TEMPERROR


@pytest.mark.parametrize("dead", ["1.2.0.192.in-addr.arpa", "h1.example.test"])
def test_a_failure_in_ptr_is_no_match(dead: str) -> None:
    """Section 5.5: for the PTR record the mechanism does not match, for an address that name is skipped."""
    zone = zone_with(
        "v=spf1 ptr -all",
        "1.2.0.192.in-addr.arpa PTR h1.example.test\n"
        "1.2.0.192.in-addr.arpa PTR h2.example.test\nh1.example.test A 192.0.2.1\nh2.example.test A 192.0.2.1",
    )
    zone.fail(dead)
    assert evaluate(zone).result is (Result.PASS if dead.startswith("h1") else Result.FAIL)


def test_a_failure_in_the_macro_p_is_unknown() -> None:
    """Section 7.3."""
    zone = zone_with("v=spf1 exists:%{p}.test -all", "unknown.test A 127.0.0.2")
    zone.fail("1.2.0.192.in-addr.arpa")
    assert evaluate(zone).result is Result.PASS


def test_a_failure_in_an_explanation_leaves_it_out() -> None:
    """Section 6.2."""
    zone = zone_with("v=spf1 -all exp=why.test")
    zone.fail("why.test")
    result = evaluate(zone)
    assert (result.result, result.explanation) == (Result.FAIL, "")


def test_every_missing_answer_is_reported() -> None:
    """pyspf catches everything round an explanation, a miss too: it must come out all the same."""
    records = {"example.test": b"v=spf1 -all exp=why.test"}
    known = {
        Question(name, RecordType.TXT): answer
        for name, record in records.items()
        if isinstance(answer := zone_with(record).lookup(name, RecordType.TXT), Answer)
    }
    with pytest.raises(Missing) as raised:
        check("mailfrom", CLIENT, "user@example.test", "h.test", "r.test", Answers(known), 0.0)
    assert raised.value.questions == {Question("why.test", RecordType.TXT)}


def test_a_miss_that_pyspf_swallows_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has bare excepts; without the answer, whatever it comes to is wrong."""
    original = spf.query.check

    def swallowing(query: object) -> tuple[str, int, str]:
        with contextlib.suppress(Missing):
            original(query)
        return "pass", 250, ""

    monkeypatch.setattr(spf.query, "check", swallowing)
    with pytest.raises(Missing) as raised:
        check("mailfrom", CLIENT, "user@example.test", "h.test", "r.test", Answers({}), 0.0)
    assert raised.value.questions == {Question("example.test", RecordType.TXT)}


def test_what_pyspf_does_not_foresee_is_a_permerror(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never ends the session."""

    def failing(query: object) -> tuple[str, int, str]:
        raise RuntimeError("pyspf is broken")

    monkeypatch.setattr(spf.query, "check", failing)
    result = evaluate(Zone())
    assert (result.result, result.problem) == (Result.PERMERROR, "it can't be evaluated: RuntimeError")


def test_all_names_in_a_record_are_looked_up_at_once() -> None:
    """A round trip for the record, and one for its terms, not one for each."""
    zone = zone_with("v=spf1 a:h1.test mx include:i.test ?a/24 -a:%{l}.x.test redirect=r.test")
    answer = zone.lookup("example.test", RecordType.TXT)
    assert isinstance(answer, Answer)
    with pytest.raises(Missing) as raised:
        check("mailfrom", CLIENT, "user@example.test", "h.test", "r.test", Answers({answer.question: answer}), 0.0)
    assert {(question.name, question.type.value) for question in raised.value.ahead} >= {
        ("example.test", "MX"),
        ("i.test", "TXT"),
        ("example.test", "A"),
        ("r.test", "TXT"),
    }


def test_pyspf_never_looks_anything_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would block, and leave no evidence."""
    monkeypatch.setattr(spf, "DNSLookup", lambda *_args: pytest.fail("pyspf asked by itself"))
    zone = zone_with(
        "v=spf1 a mx ptr exists:%{p}.x.test include:i.test -all exp=e.test",
        'i.test TXT "v=spf1 -all"\ne.test TXT "%{p}"\n1.2.0.192.in-addr.arpa PTR h.test\nexample.test A 198.51.100.1',
    )
    assert evaluate(zone).result in (Result.FAIL, Result.PERMERROR)


# ---------------------------------------------------------------- syntax, where pyspf is put right


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("v=spf1 x=1 x=2 x=%{t} default=fail op=auth -all", "fail"),  # unknown ones, however often (section 6)
        ("v=spf1 x=%{z} -all", "permerror"),
        ("v=spf1 x=% -all", "permerror"),
        ("v=spf1 Redirect=other.test", "pass"),
        ("v=spf1 redirect=other.test REDIRECT=other.test", "permerror"),
        ("v=spf1 exp=a.test EXP=b.test -all", "permerror"),
        ("v=spf1 v=spf1 -all", "fail"),  # a modifier named v
        ("v=spf1 a:%{d0}.test -all", "permerror"),  # "MUST be nonzero"
        ("v=spf1 a:%{dx}.test -all", "permerror"),
        ("v=spf1 a:%{d2r.}.test -all", "fail"),
        ("v=spf1 a:%{R}.test -all", "permerror"),  # for explanations
        ("v=spf1 a:%{d" + "9" * 5000 + "} -all", "fail"),
        ("v=spf1 a:" + "%{d}." * 200 + "test -all", "fail"),
        ("v=spf1 ip4:192.0.2.0/" + "9" * 5000, "permerror"),
        ("v=spf1 ip4:192.0.2.0/33 -all", "permerror"),
        ("v=spf1 ip4:192.0.2.1\t-all", "permerror"),
        ("v=spf1 ip4:192.0.2.1\n", "permerror"),
        ("v=spf1\n", "none"),
        ("V=SPF1 IP4:192.0.2.1 -ALL", "pass"),
        ("v=spf1 ip4:192.0.2.1  ", "pass"),
        ("v=spf1 a:" + "a" * 64 + ".test -all", "fail"),  # no such name can exist
    ],
)
def test_syntax(record: str, expected: str) -> None:
    """Sections 4.6.1, 5, 6, 7.1 and 12."""
    result = evaluate(zone_with(record, 'other.test TXT "v=spf1 +all"'))
    assert result.result.value == expected
    assert (result.problem != "") == (expected == "permerror")
    assert "can't be evaluated" not in result.problem, "it was not foreseen"


@pytest.mark.parametrize(
    ("macro", "sender", "expected"),
    [
        ("%{s}", "user@example.test", "user@example.test"),
        ("%{l}", "First.Last+x@example.test", "First.Last+x"),
        ("%{lr+}", "a.b+c@example.test", "c.a.b"),
        ("%{l1-}", "a-b-c@example.test", "c"),
        ("%{lR-}", "a-b-c@example.test", "c.b.a"),
        ("%{d3}", "u@example.test", "example.test"),
        ("%{d1}", "u@example.test", "test"),
        ("%{dr}", "u@example.test", "test.example"),
        ("%{o2r}", "u@example.test", "test.example"),
        ("%{ir}", "u@example.test", "1.2.0.192"),
        ("%{i}/%{v}", "u@example.test", "192.0.2.1/in-addr"),
        ("%{h}", "u@example.test", "host.example.test"),
        ("%{c} %{r} %{t}", "u@example.test", "192.0.2.1 mx.receiver.test 1700000000"),
        ("%{p}", "u@example.test", "unknown"),
        ("%{l}", '"two words"@example.test', "two words"),
        ("%{l}", '"quo\\"te"@example.test', 'quo"te'),
        ("%{L}", "a/b?c=d@example.test", "a%2Fb%3Fc%3Dd"),
        ("%{S}", "ü@example.test", "%C3%BC%40example.test"),
        ("%%%_%-", "u@example.test", "% %20"),
        ("%{d-}", "u@a-b.example.test", "a.b.example.test"),
    ],
)
def test_macros(macro: str, sender: str, expected: str) -> None:
    """Section 7.2 to 7.4; seen through an explanation."""
    zone = Zone()
    for domain in ("example.test", "a-b.example.test"):
        zone.add(domain, RecordType.TXT, b"v=spf1 -all exp=why.test")
    zone.add("why.test", RecordType.TXT, macro.encode())
    assert evaluate(zone, sender=sender).explanation == expected


def test_the_client_s_ipv6_address_is_written_in_nibbles() -> None:
    """Section 7.3."""
    zone = zone_with("v=spf1 exists:%{ir}.%{v}.test -all")
    zone.add("1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.test", RecordType.A, "127.0.0.2")
    assert evaluate(zone, CLIENT_6).result is Result.PASS


def test_the_zone_of_a_link_local_address_is_no_part_of_it() -> None:
    """RFC 4007: it means something on this machine only."""
    zone = zone_with("v=spf1 exists:%{ir}.test -all")
    zone.add("1" + ".0" * 28 + ".8.e.f.test", RecordType.A, "127.0.0.2")
    assert evaluate(zone, "fe80::1%eth0").result is Result.PASS


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.other.test", "b.other.test"], "a.other.test"),
        (["a.other.test", "b.example.test", "notexample.test"], "b.example.test"),
        (["b.example.test", "example.test"], "example.test"),
        (["forged.test", "a.other.test"], "a.other.test"),
        (["forged.test"], "unknown"),
    ],
)
def test_the_macro_p_is_the_name_that_fits_best(names: list[str], expected: str) -> None:
    """Section 7.3: the domain itself, else one below it, else any that leads back."""
    zone = zone_with("v=spf1 -all exp=why.test", 'why.test TXT "%{p}"')
    zone.add("1.2.0.192.in-addr.arpa", RecordType.PTR, *names)
    for name in set(names) - {"forged.test"}:
        zone.add(name, RecordType.A, CLIENT)
    assert evaluate(zone).explanation == expected


def test_an_ipv4_client_on_an_ipv6_socket_is_an_ipv4_client() -> None:
    """Section 5."""
    assert evaluate(zone_with("v=spf1 ip4:192.0.2.1 -all"), "::ffff:192.0.2.1").result is Result.PASS


@pytest.mark.parametrize(
    "term",
    [
        "exists:%{l}.x.test",
        "a:%{s}.x.test",
        "exists:%{L}.x.test",
        "exists:%{l1r-}.x.test",
        "include:%{l}.i.test",
        "ptr:%{l}.test",
        "mx:%{S}.x.test",
    ],
)
def test_a_local_part_beyond_ascii_never_matches_in_a_name(term: str) -> None:
    """RFC 8616 section 4: a term with %{s} or %{l}, in whatever form; without, nothing changes."""
    text = """
        *.x.test A 192.0.2.1
        *.x.test MX 1 h.x.test
        *.i.test TXT "v=spf1 +all"
        1.2.0.192.in-addr.arpa PTR h.u.test
        h.u.test A 192.0.2.1
    """
    zone = zone_with(f"v=spf1 {term} -all", "\n".join(line.strip() for line in text.splitlines()))
    assert evaluate(zone, sender="u-\u00fc@example.test").result is Result.FAIL
    assert evaluate(zone, sender="u@example.test").result is Result.PASS
    assert word("v=spf1 exists:%{o}.%{d}.x.test -all", "*.x.test A 127.0.0.2", sender="\u00fc@example.test") == "pass"


def test_labels_are_dropped_until_the_name_fits() -> None:
    """Section 7.3: from the left, as many as it takes; pyspf drops one."""
    zone = zone_with("v=spf1 exists:" + "%{l}." * 6 + "x.test -all")
    zone.add(".".join(["u" * 60] * 4) + ".x.test", RecordType.A, "127.0.0.2")
    assert evaluate(zone, sender=f"{'u' * 60}@example.test").result is Result.PASS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            b"See http://example.test/why?s=%{S} for it. Or don't.",
            "See http://example.test/why?s=user%40example.test for it. Or don't.",
        ),
        (b"one\r\n250 two", "one?250 two"),
        (b"nul\0 and \x1b[31m red", "nul? and ?[31m red"),
        ("für dich".encode(), ""),
        (b"%{z}", ""),
        (b"100%", ""),
        (b"", ""),
        (b"x. " * 1000, ("x. " * 1000)[:MAX_EXPLANATION_CHARACTERS]),
    ],
)
def test_an_explanation_is_one_short_line_of_printable_ascii(text: bytes, expected: str) -> None:
    """Section 6.2: what can't be expanded is left out; it goes into a reply, so it must not end one."""
    zone = zone_with("v=spf1 -all exp=why.test")
    zone.add("why.test", RecordType.TXT, text)
    assert evaluate(zone).explanation == expected


def test_an_explanation_is_that_of_the_record_that_decided() -> None:
    """Section 6.2: of a redirect's target, with its domain; never of an included record."""
    text = """
        why.test TXT "%{d}"
        other.test TXT "v=spf1 -all exp=why.test"
        inner.test TXT "v=spf1 -all exp=why.test"
    """
    zone = "\n".join(line.strip() for line in text.splitlines())
    assert evaluate(zone_with("v=spf1 redirect=other.test exp=nothing.test", zone)).explanation == "other.test"
    assert evaluate(zone_with("v=spf1 include:inner.test -all", zone)).explanation == ""
    assert evaluate(zone_with("v=spf1 include:inner.test -all exp=why.test", zone)).explanation == "example.test"


def test_an_explanation_is_looked_up_only_for_fail() -> None:
    """Nobody else hears it."""
    zone = zone_with("v=spf1 ~all exp=why.test")
    evaluate(zone)
    assert [question.name for question in zone.asked] == ["example.test"]


# ---------------------------------------------------------------- strangers

TERMS = st.one_of(
    st.sampled_from(
        [
            "-all",
            "a",
            "mx",
            "ptr",
            "exists:%{p}.test",
            "include:other.test",
            "redirect=example.test",
            "exp=other.test",
            "ip4:192.0.2.0/24",
            "ip6:::/0",
            "a:%{l1r-}.%{d}",
            "mx/0//0",
            "exists:%{ir}.%{v}.%{h}",
            "a:%{s}.%{o}.test",
        ]
    ),
    st.text(alphabet="aimxpt4e:/%{}=.-+~?0129sdrLS ", max_size=30),
    st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20),
)
RECORDS = st.one_of(
    st.binary(max_size=80),
    st.lists(TERMS, max_size=8).map(lambda terms: ("v=spf1 " + " ".join(terms)).encode("latin-1")),
)
NAMES = st.one_of(
    st.text(max_size=80), st.sampled_from(["example.test", "other.test", "[192.0.2.1]", "a@b@example.test"])
)


@given(
    records=st.lists(RECORDS, min_size=1, max_size=3),
    others=st.lists(RECORDS, max_size=2),
    names=st.lists(st.text(max_size=40), max_size=3),
    local=st.text(max_size=70),
    helo=NAMES,
    client=st.one_of(st.ip_addresses().map(str), st.just(CLIENT)),
    identity=st.sampled_from(["helo", "mailfrom"]),
    is_dead=st.booleans(),
)
@example([b"v=spf1 a:%{l}"], [], [], "\ud800", "h.test", CLIENT, "mailfrom", False)
@example([b"v=spf1 -all exp=%{L}.test"], [], [], "\ud800", "h.test", CLIENT, "mailfrom", False)
@settings(deadline=None, max_examples=300)
def test_whatever_strangers_write_comes_to_a_result(
    records: list[bytes],
    others: list[bytes],
    names: list[str],
    local: str,
    helo: str,
    client: str,
    identity: Identity,
    is_dead: bool,
) -> None:
    """A result, no exception, and none that pyspf had not foreseen; nothing in it can end a line."""
    zone = Zone()
    zone.add("example.test", RecordType.TXT, *records)
    if others:
        zone.add("other.test", RecordType.TXT, *others)
    for name in names:
        zone.add("1.2.0.192.in-addr.arpa", RecordType.PTR, name)
        zone.add("example.test", RecordType.MX, (1, name))
    if is_dead:
        zone.fail("other.test")
    for sender in (f"{local}@example.test", local):
        result = evaluate(zone, client, sender, helo, identity)
        assert "can't be evaluated" not in result.problem
        assert all(text.isascii() and text.isprintable() for text in (result.explanation, result.problem))
        assert len(result.explanation) <= MAX_EXPLANATION_CHARACTERS


@pytest.mark.parametrize(
    "terms",
    [
        "a " * 20_000,
        "a:" + "a" * 60_000,
        "a:" + "%" * 60_000,
        "a:" + "%{l}." * 12_000 + "com",
        "a=1 " * 15_000,
        "a:" + "." * 60_000,
        "a" + "/1" * 30_000,
        "a/" + "1" * 60_000,
        "a:" + "%{" * 30_000,
        "ip6:" + ":" * 60_000,
        "a:" + ".a-" * 20_000,
    ],
    ids=lambda terms: terms[:8],
)
@pytest.mark.parametrize("octets", [MAX_RECORDS_OCTETS, 60_000])
def test_a_record_of_64_kb_takes_no_time(terms: str, octets: int) -> None:
    """Linear in its length, and bounded: what a pattern costs, every other session waits for."""
    zone = zone_with(f"v=spf1 {terms}"[:octets])
    sender = f"{'x.' * 31}x@example.test"
    began = time.process_time()
    result = evaluate(zone, sender=sender)
    assert time.process_time() - began < 1.0
    if octets > MAX_RECORDS_OCTETS:
        assert result.result is Result.PERMERROR


def test_included_records_are_bounded_together() -> None:
    """Ten of them would take ten times as long."""
    big = " ".join(["ip4:198.51.100.1"] * 1000)
    zone = zone_with("v=spf1 include:i0.test include:i1.test include:i2.test -all")
    for number in range(3):
        zone.add(f"i{number}.test", RecordType.TXT, f"v=spf1 {big}".encode())
    assert evaluate(zone).result is Result.PERMERROR


# ---------------------------------------------------------------- networks are looked at before pyspf is

NETWORKS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda bits: (
            ipaddress.ip_network((int(address), bits), strict=False)
            if address.version == 4
            else ipaddress.IPv6Network((int(address), bits), strict=False)
        )
    )
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "-", "~", "?"]), NETWORKS), max_size=6),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 5),
)
def test_the_first_network_that_holds_the_client_decides(
    terms: list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]],
    client: ipaddress.IPv4Address | ipaddress.IPv6Address,
    chosen: int,
) -> None:
    """RFC 7208 section 5.6, by Python's own networks; half of the clients are in one of them."""
    if chosen < len(terms):
        client = terms[chosen][1].network_address
    if client.version == 6 and client.ipv4_mapped is not None:
        return
    record = "v=spf1 " + "".join(f"{sign}ip{net.version}:{net} " for sign, net in terms) + "-all"
    words = {"": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
    expected = next((words[sign] for sign, net in terms if net.version == client.version and client in net), "fail")
    assert word(record, client=str(client)) == expected
