"""DMARC: the record that applies, the policy in it, and the result."""

from __future__ import annotations

import pytest

from mailgate.auth.dmarc import evaluate
from mailgate.auth.results import DkimResult, DmarcResult, Result, SpfResult
from mailgate.dns.answer import RecordType
from mailgate.dns.settle import settle
from mailgate.dns.zone import Zone

REJECT = "v=DMARC1; p=reject"


def spf(domain: str, result: Result = Result.PASS) -> SpfResult:
    return SpfResult("mailfrom", domain, f"bounce@{domain}", result)


def dkim(domain: str, result: Result = Result.PASS) -> DkimResult:
    return DkimResult(0, result, domain)


def dmarc(
    author: str, records: dict[str, str], *results: SpfResult | DkimResult, zone: Zone | None = None
) -> DmarcResult:
    zone = zone or Zone()
    for domain, text in records.items():
        zone.add(f"_dmarc.{domain}", RecordType.TXT, text.encode())
    spf_result = next((each for each in results if isinstance(each, SpfResult)), None)
    signatures = [each for each in results if isinstance(each, DkimResult)]
    result = settle(lambda answers: evaluate(author, spf_result, signatures, answers), zone)
    assert isinstance(result, DmarcResult)
    return result


# ---------------------------------------------------------------- pass and fail


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "fail"),
        ([spf("example.com")], "pass"),
        ([dkim("example.com")], "pass"),
        ([spf("bounces.example.com")], "pass"),
        ([dkim("mail.example.com")], "pass"),
        ([spf("other.test")], "fail"),
        ([dkim("other.test")], "fail"),
        ([spf("other.test"), dkim("example.com")], "pass"),
        ([spf("example.com", Result.FAIL), dkim("example.com", Result.FAIL)], "fail"),
        ([spf("example.com", Result.SOFTFAIL)], "fail"),
        ([spf("example.com", Result.NEUTRAL)], "fail"),
        ([spf("example.com", Result.PERMERROR)], "fail"),
        ([dkim("example.com", Result.POLICY)], "fail"),
        ([dkim("example.com", Result.PERMERROR), dkim("other.test"), dkim("example.com")], "pass"),
        ([dkim("com")], "fail"),
        ([dkim("")], "fail"),
        # what might have passed
        ([spf("example.com", Result.TEMPERROR)], "temperror"),
        ([dkim("mail.example.com", Result.TEMPERROR)], "temperror"),
        ([spf("example.com", Result.TEMPERROR), dkim("example.com")], "pass"),
        ([spf("other.test", Result.TEMPERROR), dkim("other.test", Result.TEMPERROR)], "fail"),
    ],
)
def test_one_aligned_identifier_is_enough(results: list[SpfResult | DkimResult], expected: str) -> None:
    """RFC 9989 section 5.3.5."""
    assert dmarc("example.com", {"example.com": REJECT}, *results).result.value == expected


@pytest.mark.parametrize(
    ("tags", "results", "expected"),
    [
        ("", [spf("m.example.com")], "pass"),
        ("; aspf=r", [spf("m.example.com")], "pass"),
        ("; aspf=s", [spf("m.example.com")], "fail"),
        ("; aspf=s", [spf("example.com")], "pass"),
        ("; aspf=s", [dkim("m.example.com")], "pass"),
        ("; adkim=s", [dkim("m.example.com")], "fail"),
        ("; adkim=s", [dkim("example.com")], "pass"),
        ("; adkim=s", [spf("m.example.com")], "pass"),
        ("; adkim=S; aspf=S", [spf("m.example.com"), dkim("m.example.com")], "fail"),
        ("; adkim=x; aspf=x", [spf("m.example.com")], "pass"),
    ],
)
def test_alignment_is_as_strict_as_the_record_says(
    tags: str, results: list[SpfResult | DkimResult], expected: str
) -> None:
    """RFC 9989 section 4.7: adkim and aspf."""
    assert dmarc("example.com", {"example.com": REJECT + tags}, *results).result.value == expected


def test_what_aligned_is_told() -> None:
    result = dmarc("example.com", {"example.com": REJECT}, spf("example.com"), dkim("other.test"))
    assert (result.aligned_spf, result.aligned_dkim) == (True, False)


# ---------------------------------------------------------------- which policy


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("p=none", "none none"),
        ("p=quarantine", "quarantine quarantine"),
        ("p=reject", "reject reject"),
        ("p=reject; sp=none; np=none", "reject reject"),
        ("p=reject; t=y", "reject quarantine"),
        ("p=quarantine; t=y", "quarantine none"),
        ("p=none; t=y", "none none"),
        ("p=reject; t=n", "reject reject"),
        ("p=reject; t=yes", "reject reject"),
        ("p=reject; pct=0", "reject reject"),
        ("p=reject; psd=y", "reject reject"),
        ("p=reject; psd=n", "reject reject"),
        ("sp=reject; rua=mailto:a@example.com", "none none"),
        ("p=reject; sp=x; rua=mailto:a@example.com", "none none"),
    ],
)
def test_the_policy_of_the_authors_own_record(record: str, expected: str) -> None:
    """RFC 9989 sections 4.7 and 4.10.1: p, and one level below for who is testing."""
    result = dmarc("example.com", {"example.com": f"v=DMARC1; {record}"})
    assert f"{result.published_policy} {result.policy}" == expected
    assert (result.result, result.policy_domain, result.is_subdomain) == (Result.FAIL, "example.com", False)


@pytest.mark.parametrize(
    ("record", "exists", "expected"),
    [
        ("p=reject", True, "reject"),
        ("p=reject", False, "reject"),
        ("p=reject; sp=quarantine", True, "quarantine"),
        ("p=reject; sp=quarantine", False, "quarantine"),
        ("p=reject; sp=quarantine; np=none", True, "quarantine"),
        ("p=reject; sp=quarantine; np=none", False, "none"),
        ("p=none; np=reject", True, "none"),
        ("p=none; np=reject", False, "reject"),
        ("p=none; sp=none; np=reject; t=y", False, "quarantine"),
    ],
)
def test_the_policy_for_subdomains(record: str, exists: bool, expected: str) -> None:
    """RFC 9989 section 4.10.1: sp where the author's domain exists, np where it does not, else p."""
    zone = Zone("mail.example.com A 192.0.2.1" if exists else "other.example.com A 192.0.2.1")
    result = dmarc("mail.example.com", {"example.com": f"v=DMARC1; {record}"}, zone=zone)
    assert result.policy == expected
    assert (result.policy_domain, result.organizational_domain, result.is_subdomain) == (
        "example.com",
        "example.com",
        True,
    )


@pytest.mark.parametrize(
    ("records", "exists"),
    [
        ("sub.example.com A 192.0.2.1", True),
        ("sub.example.com AAAA 2001:db8::1", True),
        ("sub.example.com MX 10 mx.example.net", True),
        ("sub.example.com TXT x", True),
        ("below.sub.example.com A 192.0.2.1", True),
        ("sub.example.com CNAME host.example.net\nhost.example.net A 192.0.2.1", True),
        ("sub.example.com CNAME host.example.net", True),
        ("other.example.com A 192.0.2.1", False),
        ("", False),
    ],
)
def test_a_domain_exists_unless_the_dns_says_that_it_does_not(records: str, exists: bool) -> None:
    """RFC 9989 section 3.2 ("Non-existent Domains"): NXDOMAIN, as in RFC 8020, and not that of an alias's target."""
    record = {"example.com": "v=DMARC1; p=none; np=reject"}
    assert dmarc("sub.example.com", record, zone=Zone(records)).policy == ("none" if exists else "reject")


def test_a_domain_that_can_not_be_looked_up_exists() -> None:
    """Doubt is not held against the author."""
    zone = Zone()
    zone.fail("sub.example.com")
    assert dmarc("sub.example.com", {"example.com": "v=DMARC1; p=none; np=reject"}, zone=zone).policy == "none"


@pytest.mark.parametrize(
    ("author", "records", "found_at"),
    [
        ("a.b.example.com", {"a.b.example.com": REJECT, "b.example.com": REJECT, "example.com": REJECT}, "self"),
        # what lies between the author's and the organizational domain is passed over
        ("a.b.example.com", {"b.example.com": REJECT, "example.com": REJECT}, "example.com"),
        ("a.b.example.com", {"b.example.com": f"{REJECT}; psd=n", "example.com": REJECT}, "b.example.com"),
        # a public suffix speaks for those who do not speak for themselves
        ("shop.co.example", {"co.example": f"{REJECT}; psd=y"}, "co.example"),
        ("a.shop.co.example", {"co.example": f"{REJECT}; psd=y"}, "co.example"),
        ("a.shop.co.example", {"co.example": f"{REJECT}; psd=y", "shop.co.example": REJECT}, "shop.co.example"),
        # but only for those
        ("a.b.shop.co.example", {"co.example": f"{REJECT}; psd=y", "b.shop.co.example": REJECT}, "co.example"),
        ("co.example", {"co.example": f"{REJECT}; psd=y"}, "self"),
        ("a.b.c.d.e.f.g.h.i", {"b.c.d.e.f.g.h.i": REJECT, "h.i": REJECT}, "h.i"),
    ],
)
def test_policy_discovery(author: str, records: dict[str, str], found_at: str) -> None:
    """RFC 9989 section 4.10.1: the author's domain, the organizational domain, the public suffix."""
    result = dmarc(author, records)
    assert result.policy_domain == (author if found_at == "self" else found_at)
    assert result.result is Result.FAIL


@pytest.mark.parametrize(
    "records",
    [{}, {"example.com": "v=spf1 -all"}, {"example.com": "v=DMARC1 p=reject"}, {"org": REJECT}],
)
def test_without_a_record_there_is_no_dmarc(records: dict[str, str]) -> None:
    """RFC 9989 section 4.10.1: "MUST NOT apply the DMARC mechanism"."""
    result = dmarc("example.com", records, spf("example.com"))
    assert (result.result, result.policy, result.problem) == (Result.NONE, "", "")


def test_several_records_are_none() -> None:
    """RFC 9989 section 4.10: "they are all discarded", and the organizational domain's counts."""
    zone = Zone(f'_dmarc.a.example.com TXT "{REJECT}"\n_dmarc.a.example.com TXT "v=DMARC1; p=none"')
    assert dmarc("a.example.com", {}, zone=zone).result is Result.NONE
    assert dmarc("a.example.com", {"example.com": REJECT}, zone=zone).policy_domain == "example.com"


@pytest.mark.parametrize("record", ["v=DMARC1", "v=DMARC1; p=x", "v=DMARC1; p=reject; sp=x; rua=nonsense"])
def test_a_record_without_a_policy_or_a_wish_for_reports_is_broken(record: str) -> None:
    """RFC 9989 section 4.10.1: no DMARC for this message; the parent's record does not stand in."""
    result = dmarc("a.example.com", {"a.example.com": record, "example.com": REJECT}, spf("a.example.com"))
    assert (result.result, result.policy, result.policy_domain) == (Result.PERMERROR, "", "a.example.com")
    assert result.record == record
    assert result.problem


# ---------------------------------------------------------------- the DNS that does not answer


@pytest.mark.parametrize(
    ("failing", "records", "expected"),
    [
        # Without the author's own record, any other may be the organization's.
        ("a.b.example.com", {"example.com": REJECT}, "temperror"),
        ("b.example.com", {"example.com": REJECT}, "temperror"),
        ("com", {"example.com": REJECT}, "temperror"),
        ("example.com", {}, "temperror"),
        # It is there, and aligned is the same domain only.
        ("com", {"a.b.example.com": REJECT}, "fail"),
        # The walk ends before that.
        ("com", {"b.example.com": f"{REJECT}; psd=n"}, "fail"),
    ],
)
def test_no_other_record_stands_in_for_one_that_may_be_there(
    failing: str, records: dict[str, str], expected: str
) -> None:
    """RFC 9989 section 5.3.6: with DNS errors a message neither passes nor fails."""
    zone = Zone()
    zone.fail(f"_dmarc.{failing}", RecordType.TXT)
    result = dmarc("a.b.example.com", records, zone=zone)
    assert result.result.value == expected
    if expected == "temperror":
        assert (result.policy, result.problem) == ("", f"no answer for _dmarc.{failing}")


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([spf("example.com")], "pass"),
        ([spf("m.example.com")], "temperror"),
        ([dkim("m.example.com")], "temperror"),
        ([dkim("m.example.com"), spf("example.com")], "pass"),
        ([dkim("other.test")], "fail"),
        ([dkim("m.example.com", Result.FAIL)], "fail"),
    ],
)
def test_an_alignment_that_can_not_be_looked_up_is_open(results: list[SpfResult | DkimResult], expected: str) -> None:
    zone = Zone()
    zone.fail("_dmarc.com", RecordType.TXT)
    zone.fail("_dmarc.m.example.com", RecordType.TXT)
    assert dmarc("example.com", {"example.com": REJECT}, *results, zone=zone).result.value == expected


def test_the_evidence_is_what_was_asked_for() -> None:
    """Each answer that the result rests on, once."""
    zone = Zone("mail.example.com A 192.0.2.1")
    result = dmarc("mail.example.com", {"example.com": "v=DMARC1; p=none; np=reject"}, dkim("example.com"), zone=zone)
    assert [(answer.question.name, answer.question.type.value) for answer in result.evidence] == [
        ("_dmarc.mail.example.com", "TXT"),
        ("_dmarc.example.com", "TXT"),
        ("_dmarc.com", "TXT"),
        ("mail.example.com", "A"),
    ]


def test_people_are_told_what_was_odd() -> None:
    result = dmarc("example.com", {"example.com": "v=DMARC1; p=reject; pct=50; t=y; x"})
    assert result.notes == ("ignored in the record: pct, x", "t=y: the policy is applied one level below")
