"""TLS reports: written and read as RFC 8460 has them."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.reports.dmarc_report import UnreadableReport
from mailgate.reports.tls_report import (
    MAX_JSON_OCTETS,
    TlsFailure,
    TlsPolicyReport,
    TlsReport,
    file_name,
    read,
    write,
)

REPORT = TlsReport(
    "Example",
    "postmaster@example.net",
    "20261122.tls.example.org",
    1_795_305_600.0,
    1_795_391_999.0,
    (
        TlsPolicyReport(
            "example.org",
            "sts",
            ("version: STSv1", "mode: testing", "mx: *.mail.example.org", "max_age: 86400"),
            ("*.mail.example.org",),
            5326,
            303,
            (
                TlsFailure("certificate-expired", 100, "192.0.2.3", "mx1.mail.example.org", "192.0.2.9"),
                TlsFailure("starttls-not-supported", 200, receiving_host="mx2.mail.example.org", reason="no STARTTLS"),
            ),
        ),
        TlsPolicyReport("example.org", "no-policy-found", successes=1),
    ),
)

# RFC 8460 section 4.4, the example of appendix B, shortened.
EXAMPLE = {
    "organization-name": "Company-X",
    "date-range": {"start-datetime": "2016-04-01T00:00:00Z", "end-datetime": "2016-04-01T23:59:59Z"},
    "contact-info": "sts-reporting@company-x.example",
    "report-id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
    "policies": [
        {
            "policy": {
                "policy-type": "sts",
                "policy-string": ["version: STSv1", "mode: testing", "mx: *.mail.company-y.example"],
                "policy-domain": "company-y.example",
                "mx-host": "*.mail.company-y.example",
            },
            "summary": {"total-successful-session-count": 5326, "total-failure-session-count": 303},
            "failure-details": [
                {
                    "result-type": "certificate-expired",
                    "sending-mta-ip": "2001:db8:abcd:0012::1",
                    "receiving-mx-hostname": "mx1.mail.company-y.example",
                    "failed-session-count": 100,
                }
            ],
        }
    ],
}


def changed(**changes: Any) -> bytes:  # Any: JSON
    return json.dumps(EXAMPLE | changes).encode()


def test_what_is_written_is_read_again() -> None:
    """RFC 8460 section 4.4."""
    assert read(write(REPORT)) == REPORT


def test_the_example_of_the_rfc_is_read() -> None:
    """RFC 8460 appendix B; its mx-host is a string, where the text has a list."""
    report = read(changed())
    (policy,) = report.policies
    assert (report.organization, policy.domain, policy.successes, policy.failures) == (
        *("Company-X", "company-y.example"),
        *(5326, 303),
    )
    assert policy.mx_hosts == ("*.mail.company-y.example",)
    assert policy.details[0].result_type == "certificate-expired"


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        changed(**{"report-id": 7}),
        changed(**{"date-range": {}}),
        changed(policies=[{}]),
        changed(policies=[EXAMPLE["policies"][0] | {"summary": {"total-successful-session-count": -1}}]),  # type: ignore[index]  # JSON
        b" " * (MAX_JSON_OCTETS + 1),
        changed(more=[[]] * 10_000),  # a parse of many of them holds all else up
    ],
)
def test_what_is_no_report_is_unreadable(octets: bytes) -> None:
    """Whatever it is, it ends there."""
    with pytest.raises(UnreadableReport):
        read(octets)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(EXAMPLE)), json_values)
def test_no_json_does_harm(key: str, value: object) -> None:
    """It is a report, or it is unreadable."""
    try:
        read(changed(**{key: value}))
    except UnreadableReport:
        return


def test_the_file_name_is_that_of_the_rfc() -> None:
    """RFC 8460 section 5.1."""
    assert file_name("mx.example.net", "example.org", date(2026, 11, 22), "id1") == (
        "mx.example.net!example.org!1795305600!1795391999!id1.json.gz"
    )
