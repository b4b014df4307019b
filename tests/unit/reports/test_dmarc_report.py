"""DMARC aggregate reports: written as the schema says, read as they are sent, and harmless whoever wrote them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from mailgate.reports import dmarc_report
from mailgate.reports.dmarc_report import (
    NAMESPACE,
    DkimAuthResult,
    DmarcReport,
    PublishedPolicy,
    ReportRow,
    SpfAuthResult,
    UnreadableReport,
    read,
    write,
)

ROW = ReportRow(
    "192.0.2.7",
    3,
    "reject",
    "fail",
    "fail",
    "example.org",
    "bounce.example.org",
    reasons=(("local_policy", "overrides has example.org"),),
    dkim_results=(DkimAuthResult("example.org", "s1", "fail", "the body hash differs"),),
    spf_results=(SpfAuthResult("bounce.example.org", "softfail"),),
)
REPORT = DmarcReport(
    "Example & Sons",
    "postmaster@example.net",
    "20261122.dmarc.example.org",
    1_795_305_600,
    1_795_391_999,
    PublishedPolicy("example.org", "reject", "quarantine", "none", "r", "s", "0", "n", "treewalk"),
    (ROW, ReportRow("2001:db8::7", 1, "pass", "pass", "fail", "example.org")),
    generator="mailgate",
)

# RFC 9990, appendix A: the elements of each type, whether they must be there, and whether they may be repeated.
SCHEMA: dict[str, dict[str, tuple[bool, bool]]] = {
    "feedback": {
        "version": (False, False),
        "report_metadata": (True, False),
        "policy_published": (True, False),
        "extension": (False, False),
        "record": (True, True),
    },
    "report_metadata": {
        "org_name": (True, False),
        "email": (True, False),
        "extra_contact_info": (False, False),
        "report_id": (True, False),
        "date_range": (True, False),
        "error": (False, True),
        "generator": (False, False),
    },
    "date_range": {"begin": (True, False), "end": (True, False)},
    "policy_published": {
        "domain": (True, False),
        "discovery_method": (False, False),
        "p": (True, False),
        "sp": (False, False),
        "np": (False, False),
        "fo": (False, False),
        "adkim": (False, False),
        "aspf": (False, False),
        "testing": (False, False),
    },
    "record": {"row": (True, False), "identifiers": (True, False), "auth_results": (True, False)},
    "row": {"source_ip": (True, False), "count": (True, False), "policy_evaluated": (True, False)},
    "policy_evaluated": {
        "disposition": (True, False),
        "dkim": (True, False),
        "spf": (True, False),
        "reason": (False, True),
    },
    "reason": {"type": (True, False), "comment": (False, False)},
    "identifiers": {"envelope_to": (False, False), "envelope_from": (False, False), "header_from": (True, False)},
    "auth_results": {"dkim": (False, True), "spf": (False, False)},
    "auth_results/dkim": {
        "domain": (True, False),
        "selector": (True, False),
        "result": (True, False),
        "human_result": (False, False),
    },
    "auth_results/spf": {
        "domain": (True, False),
        "scope": (False, False),
        "result": (True, False),
        "human_result": (False, False),
    },
}
VALUES = {
    "policy_evaluated/disposition": {"none", "pass", "quarantine", "reject"},
    "policy_evaluated/dkim": {"pass", "fail"},
    "policy_evaluated/spf": {"pass", "fail"},
    "reason/type": {"local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder"},
    "policy_published/testing": {"y", "n"},
    "policy_published/discovery_method": {"psl", "treewalk"},
    "auth_results/spf/scope": {"mfrom"},
    "feedback/version": {"1.0"},
}


def check(element: object, path: str = "feedback") -> None:
    """The element has what the schema gives its type, in that order, and nothing else."""
    name = path if path.startswith("auth_results/") else path.rpartition("/")[2]
    children = list(element)  # type: ignore[call-overload]  # defusedxml has no types
    allowed = SCHEMA[name]
    places = []
    for child in children:
        namespace, _, tag = child.tag.partition("}")
        assert namespace == "{" + NAMESPACE
        assert tag in allowed
        places.append(list(allowed).index(tag))
        below = f"auth_results/{tag}" if name == "auth_results" else tag
        if below in SCHEMA:
            check(child, below)
        else:
            assert child.text.strip()
            assert child.text in VALUES.get(f"{name}/{tag}", {child.text})
    for tag, (is_needed, is_repeated) in allowed.items():
        count = sum(child.tag.endswith("}" + tag) for child in children)
        assert count >= is_needed
        assert is_repeated or count <= 1
    if name in ("feedback", "report_metadata"):
        assert places == sorted(places)


def test_what_is_written_is_what_the_schema_allows() -> None:
    """RFC 9990, appendix A."""
    check(fromstring(write(REPORT)))


def test_what_is_written_is_read_again() -> None:
    """Every field that we write comes back."""
    assert read([write(REPORT)]) == REPORT


def test_it_is_read_in_whatever_pieces_it_comes() -> None:
    """A parser that is fed has no end of a piece in mind."""
    xml = write(REPORT)
    assert read(bytes([octet]) for octet in xml) == REPORT
    for position in range(0, len(xml), 7):
        assert read([xml[:position], xml[position:]]) == REPORT


texts = st.text(max_size=60)


@given(organization=texts, contact=texts, identifier=texts, comment=texts, human=texts)
def test_no_text_breaks_the_xml(organization: str, contact: str, identifier: str, comment: str, human: str) -> None:
    """What strangers write (a DKIM problem, a comment) stays text."""
    row = replace(ROW, reasons=(("other", comment),), dkim_results=(DkimAuthResult("d", "s", "fail", human),))
    report = replace(REPORT, organization="o" + organization, contact=contact, report_id="i" + identifier, rows=(row,))
    again = read([write(report)])
    assert again.rows[0].messages == row.messages
    assert len(again.rows) == 1
    assert again.policy == report.policy


OLD = """<?xml version="1.0" encoding="UTF-8" ?>
<feedback>
  <report_metadata>
    <org_name>google.com</org_name><email>noreply@google.com</email>
    <extra_contact_info>https://support.google.com</extra_contact_info>
    <report_id>571710</report_id>
    <date_range><begin>1706832000</begin><end>1706918399</end></date_range>
  </report_metadata>
  <policy_published><domain>Example.org</domain><adkim>r</adkim><aspf>r</aspf><p>none</p><sp>none</sp><pct>100</pct>
  </policy_published>
  <record>
    <row><source_ip>192.0.2.9</source_ip><count>2</count>
      <policy_evaluated><disposition>none</disposition><dkim>pass</dkim><spf>fail</spf>
        <reason><type>forwarded</type><comment/></reason></policy_evaluated></row>
    <identifiers><header_from>example.org</header_from></identifiers>
    <auth_results>
      <dkim><domain>example.org</domain><result>pass</result><selector>s1</selector></dkim>
      <dkim><domain>relay.example</domain><result>pass</result></dkim>
      <spf><domain>relay.example</domain><result>pass</result></spf>
    </auth_results>
  </record>
</feedback>
"""


@pytest.mark.parametrize(
    "xml",
    [
        OLD,
        OLD.replace("<feedback>", '<feedback xmlns="http://dmarc.org/dmarc-xml/0.1">'),
        OLD.replace("<feedback>", f'<feedback xmlns="{NAMESPACE}"><version>1.0</version><new><x/></new>'),
    ],
)
def test_reports_of_the_older_schema_are_read(xml: str) -> None:
    """RFC 7489, appendix C: what is sent to this day."""
    report = read([xml.encode()])
    assert (report.organization, report.report_id, report.policy.domain) == ("google.com", "571710", "example.org")
    (row,) = report.rows
    assert (row.source, row.messages, row.dkim, row.spf) == ("192.0.2.9", 2, "pass", "fail")
    assert row.reasons == (("forwarded", ""),)
    assert [each.domain for each in row.dkim_results] == ["example.org", "relay.example"]


LAUGHS = """<?xml version="1.0"?><!DOCTYPE feedback [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
]><feedback><report_metadata><org_name>&b;</org_name></report_metadata></feedback>"""
FILE = """<?xml version="1.0"?><!DOCTYPE feedback [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<feedback><report_metadata><org_name>&x;</org_name></report_metadata></feedback>"""


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("", "not well-formed"),
        ("x", "not well-formed"),
        (OLD[:-20], "not well-formed"),
        (LAUGHS, "document type"),
        (FILE, "document type"),
        ('<?xml version="1.0" encoding="martian"?><feedback/>', "not well-formed"),
        ("<html/>", "the root is 'html'"),
        ("<feedback/>", "domain is missing"),
        (OLD.replace("192.0.2.9", "nowhere"), "not an IP address"),
        (OLD.replace("<count>2<", "<count>-2<"), "not a number"),
        (OLD.replace("<count>2<", f"<count>{'9' * 30}<"), "not a number"),
        (OLD.replace("1706832000", "99999999999999"), "beyond all calendars"),
        (OLD.replace("<org_name>google.com</org_name>", ""), "org_name is missing"),
        ("<feedback>" + "<a>" * 50, "nested too deep"),
    ],
)
def test_what_is_no_report_is_unreadable(xml: str, problem: str) -> None:
    """Nothing is guessed, and no entity is looked at."""
    with pytest.raises(UnreadableReport, match=problem):
        read([xml.encode()])


def test_the_rows_of_a_report_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's report does not fill the database."""
    monkeypatch.setattr(dmarc_report, "MAX_ROWS", 2)
    record = OLD[OLD.index("  <record>") : OLD.index("</feedback>")]
    assert len(read([OLD.replace(record, record * 2).encode()]).rows) == 2
    with pytest.raises(UnreadableReport, match="more than 2 records"):
        read([OLD.replace(record, record * 3).encode()])


def test_each_text_is_bounded() -> None:
    """So is the number of results of a row."""
    dkim = "<dkim><domain>d.example</domain><result>pass</result></dkim>"
    xml = OLD.replace("google.com", "g" * 100_000).replace("<auth_results>", "<auth_results>" + dkim * 1000)
    report = read([xml.encode()])
    assert len(report.organization) == 1000
    assert len(report.rows[0].dkim_results) == 32


def test_file_name_and_subject_are_those_of_the_rfc() -> None:
    """RFC 9990 section 3.5."""
    assert dmarc_report.file_name("mx.example.net", REPORT) == (
        "mx.example.net!example.org!1795305600!1795391999!20261122.dmarc.example.org.xml.gz"
    )
    assert dmarc_report.subject("mx.example.net", "example.org", "id1") == (
        "Report Domain: example.org Submitter: mx.example.net Report-ID: <id1>"
    )
