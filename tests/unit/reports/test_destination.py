"""Whom reports go to: addresses that a domain names, and that have agreed where they are elsewhere."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from mailgate.reports.destination import MAX_DESTINATIONS, Undecided, agreed, mail_destinations, tls_destinations

_T = TypeVar("_T")


def result_of(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """What it returns or raises; a zone answers at once."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    (result,) = results
    if hasattr(result, "raiseException"):
        result.raiseException()
    value: _T = result
    return value


@pytest.mark.parametrize(
    ("uris", "found"),
    [
        (["mailto:d@example.org"], [("d@example.org", None)]),
        (["MAILTO:d@example.org!10m"], [("d@example.org", 10 << 20)]),
        (["mailto:d@example.org!500"], [("d@example.org", 500)]),
        (["mailto:d%2Bx@example.org?subject=x"], [("d+x@example.org", None)]),
        (["https://example.org/report", "mailto:d@example.org"], [("d@example.org", None)]),
        (["mailto:d@example.org", "mailto:d@example.org!1k"], [("d@example.org", None)]),
        (["mailto:", "mailto:nobody", "mailto:a@b@c", "mailto:%ff@example.org", "", "x"], []),
        (["mailto:a@example.org,b@example.org"], []),
        (["mailto:d@example.org%0d%0aBcc:x@example.net"], []),
    ],
)
def test_addresses_are_those_of_mailto(uris: list[str], found: list[tuple[str, int | None]]) -> None:
    """RFC 6068; the size of RFC 7489 section 6.3."""
    assert [(str(each.address), each.max_octets) for each in mail_destinations(uris)] == found


@given(st.lists(st.text(max_size=30).map("mailto:".__add__), max_size=5))
def test_no_uri_does_harm(uris: list[str]) -> None:
    """Whatever a domain publishes."""
    mail_destinations(uris)


def test_not_everybody_is_told_whom_a_domain_names() -> None:
    """A domain could name a thousand."""
    assert len(mail_destinations(f"mailto:d{number}@example.org" for number in range(100))) == MAX_DESTINATIONS


@pytest.mark.parametrize(
    ("zone", "domain", "uri", "is_told"),
    [
        ("", "example.org", "mailto:d@example.org", True),
        ("_dmarc.example.org. TXT v=DMARC1", "mail.example.org", "mailto:d@example.org", True),
        ("_dmarc.example.org. TXT v=DMARC1", "a.example.org", "mailto:d@b.example.org", True),
        ("", "example.org", "mailto:d@elsewhere.test", False),
        ("example.org._report._dmarc.elsewhere.test. TXT v=DMARC1", "example.org", "mailto:d@elsewhere.test", True),
        ('*._report._dmarc.elsewhere.test. TXT "v=DMARC1;"', "example.org", "mailto:d@elsewhere.test", True),
        ("example.org._report._dmarc.elsewhere.test. TXT v=spf1", "example.org", "mailto:d@elsewhere.test", False),
        ("example.org._report._dmarc.elsewhere.test. TXT v=DMARC12", "example.org", "mailto:d@elsewhere.test", False),
        ("example.com._report._dmarc.elsewhere.test. TXT v=DMARC1", "example.org", "mailto:d@elsewhere.test", False),
        ("", "example.org", "mailto:d@[192.0.2.1]", False),
    ],
)
def test_who_is_elsewhere_is_told_only_after_agreeing(zone: str, domain: str, uri: str, is_told: bool) -> None:
    """RFC 9990 section 4."""
    assert bool(result_of(agreed(domain, mail_destinations([uri]), Zone(zone)))) is is_told


def test_a_silent_name_server_has_not_refused() -> None:
    """It is asked again."""
    zone = Zone()
    zone.fail("example.org._report._dmarc.elsewhere.test", RecordType.TXT)
    with pytest.raises(Undecided):
        result_of(agreed("example.org", mail_destinations(["mailto:d@elsewhere.test"]), zone))
    zone.fail("_smtp._tls.example.org", RecordType.TXT)
    with pytest.raises(Undecided):
        result_of(tls_destinations("example.org", zone))


@pytest.mark.parametrize(
    ("records", "addresses"),
    [
        (['"v=TLSRPTv1; rua=mailto:t@example.org"'], ["t@example.org"]),
        (
            ['"v=TLSRPTv1;rua=https://example.org/t,mailto:t@example.org,mailto:u@example.net;"'],
            ["t@example.org", "u@example.net"],
        ),
        (['"v=TLSRPTv1; rua=mailto:t@example.org"', '"v=spf1 -all"'], ["t@example.org"]),
        (['"v=TLSRPTv1; rua=mailto:t@example.org"', '"v=TLSRPTv1; rua=mailto:u@example.org"'], []),
        (['"v=TLSRPTv2; rua=mailto:t@example.org"'], []),
        (['"v=TLSRPTv1; ruf=mailto:t@example.org"'], []),
        ([], []),
    ],
)
def test_tls_reports_go_where_the_record_says(records: list[str], addresses: list[str]) -> None:
    """RFC 8460 section 3: one record, or none counts."""
    zone = Zone("\n".join(f"_smtp._tls.example.org. TXT {record}" for record in records))
    assert [str(each.address) for each in result_of(tls_destinations("example.org", zone))] == addresses
