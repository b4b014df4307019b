"""`mailgate explain` on a real database, of records as the gate writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from mailgate.auth.results import DkimResult, Result
from mailgate.ids import encode_id
from mailgate.policy.fingerprint import configuration_of
from mailgate.policy.stage import RecipientView
from mailgate.policy.verdict import Discard, Fate, Opinion, Quarantine
from mailgate.smtp.reply import reply
from mailgate.storage.acceptance import accept_statement, resend_key
from mailgate.storage.evidence import KnownAnswers, evidence_of
from mailgate.storage.journal import record_statement
from mailgate.storage.records import Disposition, IncomingMessage, SessionRecord, TransactionRecord
from tests.support.command import Command, command_for
from tests.support.evidence import ARC, AUTHOR_FAULT, DKIM, DMARC, FORWARDER, OPINION, OVERRIDE, SPF, answer
from tests.support.messages import ended, incoming, recipient, refused, session
from tests.support.postgres import drop_database, fresh_database, query
from tests.support.stored_mail import add_mailbox, deliver

DIALOGUE = "S: 220 hello\nC: EHLO client.example.org\nS: 250 mx\nC: MAIL FROM:<carol@example.org>\nC: QUIT"


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


@pytest.fixture
def alice(mailgate: Command) -> int:
    return add_mailbox(mailgate.dsn, "alice")


def run(dsn: str, statement: bytes) -> None:
    with closing(psycopg2.connect(dsn)) as database, database.cursor() as cursor:
        database.autocommit = True
        cursor.execute("SET client_encoding = 'UTF8'")
        cursor.execute(statement)


def store(dsn: str, message: IncomingMessage, *notes: object) -> str:
    """The id of a message that is stored with these notes of its transaction."""
    message = replace(message, transaction=replace(message.transaction, notes=notes))
    evidence = evidence_of([(notes, message.transaction.recipients)], KnownAnswers(lambda: 0.0))
    run(dsn, accept_statement([message], [resend_key(message)], evidence, instance=1, node="mx1"))
    return encode_id(message.transaction.id)


def record(dsn: str, *records: SessionRecord | TransactionRecord) -> None:
    """Write these records as the journal does."""
    sessions = [each for each in records if isinstance(each, SessionRecord)]
    transactions = [each for each in records if isinstance(each, TransactionRecord)]
    parts: list[Any] = [(each.notes, ()) for each in sessions]  # Any: pairs of different lengths
    parts += [(each.transaction.notes, each.transaction.recipients) for each in transactions]
    evidence = evidence_of(parts, KnownAnswers(lambda: 0.0))
    run(dsn, record_statement(sessions, transactions, evidence, node="mx1"))


def refuse(dsn: str, stage: str, *notes: object, to: tuple[RecipientView, ...] = (), policy: str = "dmarc") -> str:
    """The id of a transaction that was refused at that stage, with its session."""
    view = session()
    refusal = replace(refused(*to, stage=stage, answer="550 5.7.26 No", seen_in=view), policy=policy, reason="")
    refusal = replace(refusal, transaction=replace(refusal.transaction, notes=notes))
    record(dsn, refusal, ended(seen_in=view, dialogue=DIALOGUE))
    return encode_id(refusal.transaction.id)


def test_an_accepted_message_is_explained_with_every_check_and_its_answers(mailgate: Command, alice: int) -> None:
    identifier = store(mailgate.dsn, incoming(alice), SPF, DKIM, ARC, DMARC, FORWARDER, OVERRIDE)
    page = mailgate.ok("explain", identifier)
    for line in (
        "accepted: 250 2.0.0 Ours",
        "No policy objected.",
        "Otherwise than the author's domain asks for: trusted_forwarder (sealed by list.example.net)",
        "SPF of mailfrom example.org: pass",
        'decided by "mx" in the record',
        "DKIM, signature 1, by example.org with the selector s1: pass",
        "b=dGVzdA==, rsa-sha256, a key of 2048 bits, for @example.org",
        "only the first 0 octets of the body are signed (l=)",
        "DMARC of the author's domain example.org: fail",
        "example.org publishes reject",
        "passed for the author's domain: neither SPF nor DKIM",
        "sealed by list.example.net, then by relay.example.net",
        "the results sealed as 2: relay.example.net; dmarc=fail",
        "A trusted forwarder, relay.example.net, handed the message to us",
        "because: trusted_forwarder (sealed by list.example.net)",
        "problem: neither SPF nor DKIM passed for example.org",
        "v=DMARC1; p=reject",
        "10 mx.example.org",
        "alice@example.test: folder INBOX, UID 1",
        "It is recorded when the session has ended.",
    ):
        assert line in page
    assert "DNS: _dmarc.org TXT, nxdomain (NXDOMAIN), TTL 3600 s, authenticated by DNSSEC, at " in page


def test_json_has_the_same_and_refers_to_nothing(mailgate: Command, alice: int) -> None:
    identifier = store(mailgate.dsn, incoming(alice), SPF, DMARC)
    explained = mailgate.json("explain", identifier)
    assert explained["id"] == identifier
    number = query(mailgate.dsn, "SELECT id FROM mailgate.transaction")[0][0]
    assert mailgate.json("explain", str(number)) == explained
    spf, dmarc = explained["results"]
    assert (spf["kind"], spf["domain"], spf["result"]) == ("spf", "example.org", "pass")
    assert [found["records"] for found in spf["answers"]] == [["v=spf1 mx -all"], ["10 mx.example.org"], ["192.0.2.7"]]
    assert [found["outcome"] for found in dmarc["answers"]] == ["answer", "nxdomain"]
    assert explained["deliveries"] == [{"mailbox": "alice@example.test", "folder": "INBOX", "uid": 1, "flags": []}]


@pytest.mark.parametrize("stage", ["mail", "data", "end_of_data"])
def test_a_refusal_names_the_stage_the_policy_its_reason_and_its_options(mailgate: Command, stage: str) -> None:
    configuration = configuration_of("dmarc", None)
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.policy_configuration VALUES (%s, 'dmarc', '{\"on_fail\": \"reject\"}', now())",
        (configuration.fingerprint,),
    )
    opinion = replace(OPINION, stage=stage, fingerprint=configuration.fingerprint)
    identifier = refuse(mailgate.dsn, stage, DMARC, opinion)
    page = mailgate.ok("explain", identifier)
    assert f"refused at {stage}: 550 5.7.26 No" in page
    assert "Decided by the policy dmarc." in page
    assert f"dmarc at {stage}: reject: 550 5.7.26 example.org says so" in page
    assert f"configuration {configuration.fingerprint}, of the policy dmarc, known since" in page
    assert "on_fail = reject" in page
    assert "C: EHLO client.example.org" in page
    (verdict,) = mailgate.json("explain", identifier)["verdicts"]
    assert verdict["configuration"]["options"] == {"on_fail": "reject"}


def test_a_refusal_of_all_recipients_names_the_policy_for_each(mailgate: Command) -> None:
    opinion = Opinion("rcpt", "recipients", "", "reject", "550 5.1.1 No such recipient here")
    nobody = replace(
        recipient("nobody@example.test", answer=reply(550, "5.1.1", "No such recipient here")), notes=(opinion,)
    )
    identifier = refuse(mailgate.dsn, "rcpt", to=(nobody,), policy="")
    page = mailgate.ok("explain", identifier)
    assert "nobody@example.test: 550 5.1.1 No such recipient here" in page
    assert "Decided by the policy recipients, which took none of the recipients." in page
    assert "recipients at rcpt: reject: 550 5.1.1 No such recipient here (for nobody@example.test)" in page


def test_a_refused_greeting_is_explained_by_the_sessions_id(mailgate: Command) -> None:
    """The reply has no other: there is no transaction."""
    opinion = Opinion("helo", "spf", "", "reject", "550 5.7.23 client.example.org sends no mail")
    view = session()
    record(
        mailgate.dsn, replace(ended(seen_in=view, dialogue=DIALOGUE), notes=(replace(SPF, identity="helo"), opinion))
    )
    page = mailgate.ok("explain", encode_id(view.id))
    assert "SPF of helo example.org: pass" in page
    assert "spf at helo: reject: 550 5.7.23 client.example.org sends no mail" in page
    assert "C: EHLO client.example.org" in page
    explained = mailgate.json("explain", encode_id(view.id))
    assert (explained["transactions"], explained["results"][0]["identity"]) == ([], "helo")


def test_a_session_lists_its_transactions(mailgate: Command, alice: int) -> None:
    view = session()
    refusal = refused(seen_in=view)
    accepted = store(mailgate.dsn, incoming(alice, seen_in=view))
    record(mailgate.dsn, refusal)
    other = store(mailgate.dsn, incoming(alice, octets=b"Subject: other\r\n\r\n"))
    for _ in range(2):
        explained = mailgate.json("explain", encode_id(view.id))
        assert sorted(each["id"] for each in explained["transactions"]) == sorted(
            [accepted, encode_id(refusal.transaction.id)]
        )
        assert other not in mailgate.ok("explain", encode_id(view.id))
        record(mailgate.dsn, ended(seen_in=view))  # and the same once the session has ended


def test_what_became_of_each_recipients_copy_is_said(mailgate: Command, alice: int) -> None:
    bob = add_mailbox(mailgate.dsn, "bob")
    message = incoming(
        replace(recipient("alice@example.test", alice), fate=Fate(Quarantine("looks odd"), "taste")),
        replace(recipient("bob@example.test", bob), fate=Fate(Discard("never wanted"), "taste")),
    )
    message = replace(message, disposition=Disposition.QUARANTINED, policy="taste", reason="looks odd")
    page = mailgate.ok("explain", store(mailgate.dsn, message))
    assert "alice@example.test: quarantined by taste: looks odd" in page
    assert "bob@example.test: discarded by taste: never wanted" in page
    assert "alice@example.test: folder Junk, UID 1" in page
    assert "bob@example.test: folder" not in page


def test_an_answer_that_is_gone_is_said_to_be(mailgate: Command, alice: int) -> None:
    identifier = store(mailgate.dsn, incoming(alice), DKIM)
    query(mailgate.dsn, "DELETE FROM mailgate.dns_answer")
    assert "is not kept any longer" in mailgate.ok("explain", identifier)
    assert list(mailgate.json("explain", identifier)["results"][0]["answers"][0]) == ["digest"]


def test_each_attempt_to_deliver_is_told(mailgate: Command, alice: int) -> None:
    """To which host, over which TLS, and in whose words it ended; a Unix socket is an address too."""
    identifier = store(mailgate.dsn, incoming(alice))
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.attempt (transaction_id, queue_id, recipient, attempted_at, duration_seconds, node,"
        " result, status, reply, is_remote, is_ambiguous, host, address, port, tls_version, tls_cipher,"
        " tls_is_verified, tls_source)"
        " SELECT t.id, 1, 'bob@elsewhere.test', now() + pause, 0.1, 'mx1', result, status, said, is_remote, is_unclear,"
        " 'mx.elsewhere.test', address, port, tls, 'TLS_AES_256_GCM_SHA384', true, 'dane'"
        " FROM mailgate.transaction t, (VALUES"
        " (interval '0', 'deferred', '4.4.2', 'Lost', false, true, '/run/lmtp', NULL::integer, NULL),"
        " ('1s', 'delivered', '2.0.0', '250 2.0.0 Ours now', true, false, '192.0.2.9', 25, 'TLSv1.3'))"
        " AS tried (pause, result, status, said, is_remote, is_unclear, address, port, tls)",
    )
    page = mailgate.ok("explain", identifier)
    assert "but the host may have it: the connection was lost behind the message" in page
    assert (
        "by mx.elsewhere.test (/run/lmtp)\n    in plain text\n      we say: Lost".replace("    in", "      in") in page
    )
    assert "by mx.elsewhere.test (192.0.2.9 port 25)" in page
    assert "over TLSv1.3 TLS_AES_256_GCM_SHA384, the host's name verified, asked for by dane" in page
    assert "it said: 250 2.0.0 Ours now" in page
    query(mailgate.dsn, "DELETE FROM mailgate.delivery")
    assert "It has left." in mailgate.ok("explain", identifier)
    assert [attempt["result"] for attempt in mailgate.json("explain", identifier)["attempts"]] == [
        "deferred",
        "delivered",
    ]
    assert "/run/lmtp" in mailgate.ok("queue", "show", identifier)


def test_what_strangers_wrote_does_not_reach_the_terminal(mailgate: Command, alice: int) -> None:
    """Neither their escape sequences nor a line that looks like ours."""
    hostile = "x\x1b]0;owned\x07\x9b31m\n  SPF of helo bank.example: pass\u202e"
    result = DkimResult(
        0,
        Result.FAIL,
        domain=hostile,
        problem=hostile,
        notes=(hostile,),
        evidence=(answer(hostile, answer("x").question.type, hostile.encode()),),
    )
    identifier = store(mailgate.dsn, incoming(alice), result, replace(AUTHOR_FAULT, problem=hostile))
    page = mailgate.ok("explain", identifier)
    for character in "\x1b\x07\x9b\u202e":
        assert character not in page
        assert character not in mailgate.ok("explain", identifier, "--json")
    assert not [line for line in page.splitlines() if line.strip().startswith("SPF of")]


def test_an_unknown_id_is_said_to_be_unknown(mailgate: Command) -> None:
    assert "there is no message, transaction or session" in mailgate.fails("explain", "1m9x2k7q0vb3d")
    assert mailgate.run("explain", "nonsense").exit_code == 2


def test_a_message_that_was_imported_has_no_record(mailgate: Command, alice: int) -> None:
    identifier = encode_id(deliver(mailgate.dsn, alice, b"Subject: x\r\n\r\n", with_transaction=False))
    assert "no record of how it came" in mailgate.fails("explain", identifier)
