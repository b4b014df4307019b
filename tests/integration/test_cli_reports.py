"""`mailgate dmarc`, `tls` and `suppression` on a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from mailgate.reports import dmarc_report
from tests.support import stored_mail
from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query

TODAY = datetime.now(UTC).date().isoformat()
RESULTS = [
    {"kind": "spf", "identity": "mailfrom", "domain": "example.org", "result": "softfail"},
    {"kind": "dkim", "domain": "example.org", "selector": "s1", "result": "pass"},
    {
        "kind": "dmarc",
        "result": "pass",
        "author_domain": "example.org",
        "policy_domain": "example.org",
        "aligned_dkim": True,
        "answers": [7],
    },
]


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    stored_mail.add_mailbox(dsn, "alice")
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


def record(mailgate: Command, dmarc: str = "v=DMARC1; p=reject; rua=mailto:d@example.org") -> None:
    """A message of today from example.org."""
    identifier = stored_mail.record_transaction(
        mailgate.dsn, disposition="accepted", stage="end_of_data", reply="250 2.0.0 Ours"
    )
    query(mailgate.dsn, "UPDATE mailgate.transaction SET results = %s WHERE id = %s", (json.dumps(RESULTS), identifier))
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.dns_answer VALUES (7, '_dmarc.example.org', 'TXT', 'answer', 'NOERROR', %s, 300, false,"
        " now(), NULL)",
        ([dmarc],),
    )


def keep_report(
    mailgate: Command, organization: str, sender: str | None, source: str, messages: int, dkim: str
) -> None:
    """A report about example.test that came."""
    ((number,),) = query(
        mailgate.dsn,
        "INSERT INTO mailgate.dmarc_report (organization, report_id, domain, contact, begins_at, ends_at, policy,"
        " received_at, authenticated_as) VALUES (%s, '1', 'example.test', 'd@x', now(), now(), '{}', now(), %s)"
        " RETURNING id",
        (organization, sender),
    )
    results = [{"kind": "dkim", "domain": "example.test", "result": dkim}]
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.dmarc_report_row VALUES (%s, 0, %s, %s, 'none', %s, 'fail', '{}', 'example.test', NULL,"
        " NULL, %s)",
        (number, source, messages, dkim, json.dumps(results)),
    )


def test_a_preview_is_the_report_that_would_be_sent(mailgate: Command) -> None:
    """RFC 9990 section 3.1; nothing is sent, and nothing is noted."""
    record(mailgate)
    xml = mailgate.ok("dmarc", "report", "--preview", "example.org", "--date", TODAY)
    fromstring(xml.encode())
    report = dmarc_report.read([xml.encode()])
    assert (report.organization, report.contact) == ("mx.example.test", "postmaster@mx.example.test")
    assert (report.policy.domain, report.policy.p, report.rows[0].dkim) == ("example.org", "reject", "pass")
    assert query(mailgate.dsn, "SELECT count(*) FROM mailgate.report_sent") == [(0,)]


def test_a_preview_without_a_domain_lists_whom_mail_was_from(mailgate: Command) -> None:
    """With whom they want told."""
    assert mailgate.json("dmarc", "report", "--preview", "--date", TODAY) == []
    record(mailgate)
    assert mailgate.json("dmarc", "report", "--preview", "--date", TODAY) == [
        {"domain": "example.org", "messages": 1, "passed": 1, "rua": ["mailto:d@example.org"]}
    ]
    assert "mailto:d@example.org" in mailgate.ok("dmarc", "report", "--preview", "--date", TODAY)


def test_a_preview_says_why_there_is_no_report(mailgate: Command) -> None:
    """No mail, or nobody asks."""
    assert "no mail of" in mailgate.fails("dmarc", "report", "--preview", "example.com", "--date", TODAY)
    record(mailgate, "v=DMARC1; p=none")
    assert "asks for no reports" in mailgate.fails("dmarc", "report", "--preview", "example.org", "--date", TODAY)
    assert mailgate.run("dmarc", "report", "--preview", "--date", "yesterday").exit_code == 2


def test_reports_that_were_sent_are_listed(mailgate: Command) -> None:
    """By kind."""
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.report_sent VALUES ('dmarc', 'example.org', %s, 'r1', '{d@example.org}'),"
        " ('tls', 'example.org', %s, 'r2', '{}')",
        (TODAY, TODAY),
    )
    (sent,) = mailgate.json("dmarc", "report")
    assert (sent["domain"], sent["day"], sent["recipients"]) == ("example.org", TODAY, ["d@example.org"])
    assert "nobody" in mailgate.ok("tls", "report", "example.org")
    assert mailgate.json("tls", "report", "--date", "2020-01-01") == []


def test_sources_of_a_domain_are_shown_by_how_much_they_send(mailgate: Command) -> None:
    """Of reports whose sender is proven, unless all are asked for."""
    keep_report(mailgate, "google.com", "google.com", "192.0.2.7", 10, "pass")
    keep_report(mailgate, "yahoo.com", "yahoo.com", "192.0.2.7", 5, "fail")
    keep_report(mailgate, "forged", None, "192.0.2.66", 99, "fail")
    (source,) = mailgate.json("dmarc", "show", "example.test")
    assert {key: source[key] for key in ("source", "messages", "passed", "failed", "reporters")} == {
        "source": "192.0.2.7",
        "messages": 15,
        "passed": 10,
        "failed": 5,
        "reporters": ["google.com", "yahoo.com"],
    }
    assert source["authenticated_domains"] == ["example.test"]
    result = mailgate.run("dmarc", "show", "example.test")
    assert "1 report left out" in result.stderr
    everything = mailgate.json("dmarc", "show", "example.test", "--all")
    assert [each["source"] for each in everything] == ["192.0.2.66", "192.0.2.7"]
    assert "is not one of our domains" in mailgate.fails("dmarc", "show", "example.org")


def test_tls_reports_show_what_failed_where(mailgate: Command) -> None:
    """RFC 8460 section 4.3."""
    policies = [
        {
            "policy_type": "sts",
            "details": [{"result_type": "certificate-expired", "receiving_host": "mx2.example.test", "sessions": 3}],
        }
    ]
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.tls_report (organization, report_id, domain, begins_at, ends_at, successes, failures,"
        " policies, received_at, authenticated_as) VALUES ('Example', '1', 'example.test', now(), now(), 100, 3, %s,"
        " now(), 'example.org')",
        (json.dumps(policies),),
    )
    shown = mailgate.ok("tls", "show", "example.test")
    assert "certificate-expired at mx2.example.test (3)" in shown
    (record_,) = mailgate.json("tls", "show", "example.test")
    assert (record_["successes"], record_["failures"]) == (100, 3)


def test_a_tls_preview_is_json(mailgate: Command) -> None:
    """RFC 8460 section 4.4."""
    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.tls_result (day, digest, policy_domain, policy_type, policy, mx_host, result_type,"
        " sending_address, receiving_address, sessions) VALUES (%s, %s, 'example.org', 'no-policy-found', '',"
        " 'mx.example.org', '', '', '', 4)",
        (yesterday, bytes(32)),
    )
    told = json.loads(mailgate.ok("tls", "report", "--preview", "example.org"))
    assert told["policies"][0]["summary"]["total-successful-session-count"] == 4
    assert "no TLS with" in mailgate.fails("tls", "report", "--preview", "example.com")
    assert mailgate.run("tls", "report", "--preview").exit_code == 2


def test_addresses_are_suppressed_listed_and_freed(mailgate: Command) -> None:
    """By the operator, as by failures."""
    assert mailgate.json("suppression", "list") == []
    assert mailgate.ok("suppression", "add", "Bob@Example.NET", "--for", "2d") == "refused Bob@example.net\n"
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.suppression VALUES ('carol@example.net', 1, NULL, '550 5.1.1 No', now())",
    )
    (entry,) = mailgate.json("suppression", "list")
    assert (entry["address"], entry["refused"], entry["last_reply"]) == (
        *("Bob@example.net", True),
        "refused by the operator",
    )
    assert [each["refused"] for each in mailgate.json("suppression", "list", "--all")] == [True, False]
    assert "550 5.1.1 No" in mailgate.ok("suppression", "list", "--all")
    assert mailgate.ok("suppression", "remove", "Bob@example.net") == "removed Bob@example.net\n"
    assert "is not suppressed" in mailgate.fails("suppression", "remove", "Bob@example.net")
