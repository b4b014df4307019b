"""A message on its way through a real mailgate with a real DNS server: what it is found to be, and what becomes of it.

Standards: RFC 7208, RFC 6376, RFC 9989, RFC 8601.
"""

from __future__ import annotations

import itertools
import re
import smtplib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.support import postgres
from tests.support.command import command_for
from tests.support.gate import Gate, eventually
from tests.support.name_server import NameServer
from tests.support.signed import RSA_2048_RECORD, sign, sign_tags

ALICE = "alice@example.test"
FRIEND, STRANGER = "127.0.0.2", "127.0.0.9"  # whom SPF records allow, and whom they don't

RECORDS = """
strict.test TXT "v=spf1 ip4:127.0.0.2 -all"
_dmarc.strict.test TXT "v=DMARC1; p=reject; rua=mailto:dmarc@strict.test"
soft.test TXT "v=spf1 ip4:127.0.0.2 ~all"
_dmarc.soft.test TXT "v=DMARC1; p=quarantine"
other.test TXT "v=spf1 ip4:127.0.0.0/8 -all"
helo.other.test TXT "v=spf1 ip4:127.0.0.0/8 -all"
silent.test TXT "v=spf1 ip4:127.0.0.2 -all"
never.test TXT "v=spf1 -all"
_dmarc.bank.suffix.test TXT "v=DMARC1; p=reject"
_dmarc.suffix.test TXT "v=DMARC1; p=none; psd=y"
_dmarc.bank.quiet.test TXT "v=DMARC1; p=reject"
_dmarc.exact.test TXT "v=DMARC1; p=reject; adkim=s"
"""

KEY_OWNERS = ("strict.test", "other.test", "soft.test", "suffix.test", "quiet.test", "mail.exact.test", "test")

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Delivered:
    """A message as it lies in Alice's mailbox."""

    folder: str
    trace: str  # what mailgate put on top, unfolded
    content: bytes


class Sender:
    """Sends through a gate, and looks at what arrived."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def send(self, content: bytes, *, reverse_path: str, client: str, helo: str = "helo.other.test") -> str:
        """The reply that decided, with its code."""
        with smtplib.SMTP("127.0.0.1", self.gate.port, helo, 30, (client, 0)) as smtp:
            try:
                smtp.sendmail(reverse_path, [ALICE], content)
            except smtplib.SMTPResponseException as refusal:
                assert isinstance(refusal.smtp_error, bytes)
                return f"{refusal.smtp_code} {refusal.smtp_error.decode()}"
        return "250"

    def delivered(self, subject: str) -> Delivered | None:
        with closing(psycopg2.connect(self.gate.dsn)) as database, database.cursor() as cursor:
            cursor.execute(
                "SELECT folder, trace, content FROM mailgate.message JOIN mailgate.delivery ON message_id = message.id"
                " WHERE subject = %s",
                (subject,),
            )
            row = cursor.fetchone()
        if row is None:
            return None
        folder, trace, content = row
        return Delivered(folder, bytes(trace).decode().replace("\r\n\t", " "), bytes(content))


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    zone = Zone(RECORDS)
    for domain in KEY_OWNERS:
        zone.add(f"rsa._domainkey.{domain}", RecordType.TXT, RSA_2048_RECORD)
    zone.fail("_dmarc.silent.test", rcode="")
    dsn = postgres.fresh_database()
    with NameServer(zone) as server:
        gate = Gate(
            log=tmp_path_factory.mktemp("gate") / "log",
            mailboxes=(ALICE,),
            dsn=dsn,
            settings=f"""
            [dns]
            servers = ["127.0.0.1:{server.port}"]
            timeout_seconds = 0.5
            deadline_seconds = 1.0
            spare_loopback = false
            """,
        )
        try:
            gate.start()
            yield Sender(gate)
            assert gate.tracebacks() == []
        finally:
            gate.close()
            postgres.drop_database(dsn)


def message(author: str, *more: str) -> tuple[str, bytes]:
    """A new subject, and a message with it from that author."""
    subject = f"number {next(_numbers)}"
    fields = [*more, f"From: {author}", f"To: {ALICE}", f"Subject: {subject}", "Date: Mon, 23 Nov 2026 14:00:00 +0000"]
    return subject, ("\r\n".join(fields) + "\r\n\r\nHello.\r\n").encode()


# ---------------------------------------------------------------- what passes


def test_a_client_that_the_domain_knows_passes(sender: Sender) -> None:
    subject, content = message("bob@strict.test")
    assert sender.send(content, reverse_path="bob@strict.test", client=FRIEND) == "250"
    found = sender.delivered(subject)
    assert found is not None
    assert found.folder == "INBOX"
    assert found.content == content
    assert "Authentication-Results: mail.example.test;" in found.trace
    assert "spf=pass (client 127.0.0.2) smtp.mailfrom=bob@strict.test" in found.trace
    assert "spf=pass (client 127.0.0.2) smtp.helo=helo.other.test" in found.trace
    assert "dmarc=pass header.from=strict.test policy.dmarc=reject" in found.trace
    assert "Received-SPF: pass identity=mailfrom; client-ip=127.0.0.2;" in found.trace


def test_a_signature_of_the_authors_domain_passes_whoever_brings_it(sender: Sender) -> None:
    """As mail that was forwarded does."""
    subject, content = message("Bob <bob@strict.test>")
    signed = sign(content, domain="strict.test")
    assert sender.send(signed, reverse_path="forwarder@other.test", client=STRANGER) == "250"
    found = sender.delivered(subject)
    assert found is not None
    assert found.folder == "INBOX"
    assert "dkim=pass (2048 bits) header.d=strict.test header.i=@strict.test" in found.trace
    assert "dmarc=pass" in found.trace


def test_without_a_record_nothing_is_asked_of_a_message(sender: Sender) -> None:
    subject, content = message("bob@nowhere.test")
    assert sender.send(content, reverse_path="bob@nowhere.test", client=STRANGER) == "250"
    found = sender.delivered(subject)
    assert found is not None
    assert "spf=none" in found.trace
    assert "dkim=none" in found.trace
    assert "dmarc=none header.from=nowhere.test" in found.trace


# ---------------------------------------------------------------- what does not


def refused(sender: Sender, content: bytes, subject: str, *, reverse_path: str, client: str = STRANGER) -> str:
    reply = sender.send(content, reverse_path=reverse_path, client=client)
    assert sender.delivered(subject) is None
    return reply


def test_what_the_domain_wants_refused_is_refused_and_says_why(sender: Sender) -> None:
    """RFC 7372 and RFC 8601: 550 5.7.26, with what a postmaster can act on."""
    subject, content = message("bob@strict.test")
    reply = refused(sender, content, subject, reverse_path="bob@strict.test")
    assert reply.startswith("550 ")
    for part in (
        "5.7.26 This message is not authenticated as from strict.test, whose DMARC policy is reject.",
        "SPF: fail for strict.test; DKIM: no signature.",
        "needs a DKIM signature of that domain, or SPF to pass for it",
    ):
        assert part in reply.replace("\n5.7.26 ", " ")


FORGERIES = {
    "another domain's SPF": (b"From: bob@strict.test", "eve@other.test", ""),
    "another domain's signature": (b"From: bob@strict.test", "eve@other.test", "other.test"),
    "a HELO that passes, and no sender": (b"From: bob@strict.test", "", ""),
    "a subdomain that is not there": (b"From: bob@pay.strict.test", "eve@other.test", "other.test"),
    "two From fields": (b"From: eve@other.test\r\nFrom: bob@strict.test", "eve@other.test", "other.test"),
    "a second From with a blank": (b"From: eve@other.test\r\nFrom : bob@strict.test", "eve@other.test", "other.test"),
    "a second From with a fold": (b"From: eve@other.test\r\nFrom\r\n : bob@strict.test", "eve@other.test", ""),
    "a folded From": (b"From:\r\n bob\r\n\t@strict.test", "eve@other.test", ""),
    "an encoded From": (b"From: =?utf-8?q?bob=40strict.test?=", "eve@other.test", ""),
    "comments in the address": (b"From: bob(eve@other.test)@(x)strict.test(y)", "eve@other.test", ""),
    "quotes in the address": (b'From: "eve@other.test"@strict.test', "eve@other.test", ""),
    "a wide letter": ("From: bob@\uff53trict.test".encode(), "eve@other.test", ""),
    "no From": (b"Sender: bob@strict.test", "eve@other.test", ""),
    "what parseaddr cuts short": (b"From: eve@other.test)bob@strict.test", "eve@other.test", "other.test"),
    "a group": (b"From: Friends: bob@strict.test;", "eve@other.test", "other.test"),
    "two authors": (b"From: eve@other.test, bob@strict.test", "eve@other.test", "other.test"),
    "results that were brought along": (
        b"Authentication-Results: mail.example.test; dmarc=pass\r\nFrom: bob@strict.test",
        "eve@other.test",
        "",
    ),
}


@pytest.mark.parametrize(("fields", "reverse_path", "signer"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_is_refused(sender: Sender, fields: bytes, reverse_path: str, signer: str) -> None:
    """Known from the literature; none of them is stored."""
    subject, content = message("x@x.test")
    content = content.replace(b"From: x@x.test", fields)
    if signer:
        content = sign(content, domain=signer, fields=["Subject", "Date"] if b"From:" not in fields else None)
    assert refused(sender, content, subject, reverse_path=reverse_path).startswith("550 ")


RELAXED = "v=1; a=rsa-sha256; c=relaxed/relaxed; bh={bh}; s=rsa; d=strict.test"
SIGNED_FORGERIES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "text behind l=": ("strict.test", lambda m: sign(m, domain="strict.test", has_length=True) + b"Pay here.\r\n"),
    "a second Subject": ("strict.test", lambda m: b"Subject: Pay\r\n" + sign(m, domain="strict.test")),
    "another body": ("strict.test", lambda m: sign(m, domain="strict.test").replace(b"Hello.", b"Pay.")),
    "another author": ("strict.test", lambda m: sign(m, domain="strict.test").replace(b"bob@", b"ceo@")),
    "an expired one": ("strict.test", lambda m: sign_tags(RELAXED + "; t=1; x=2; h=From:To:Subject:Date", m)),
    "From not signed": ("strict.test", lambda m: sign_tags(RELAXED + "; h=To", m, signed=[b"To"])),
    "a NUL in the selector": ("strict.test", lambda m: sign(m, domain="strict.test").replace(b"s=rsa", b"s=rsa\0x")),
    "the top of the DNS": ("strict.test", lambda m: sign(m, domain="test")),
    "a public suffix": ("bank.suffix.test", lambda m: sign(m, domain="suffix.test")),
    "a suffix without a record": ("bank.quiet.test", lambda m: sign(m, domain="quiet.test")),
    "a subdomain, where alignment is strict": ("exact.test", lambda m: sign(m, domain="mail.exact.test")),
}


@pytest.mark.parametrize(("domain", "forge"), SIGNED_FORGERIES.values(), ids=SIGNED_FORGERIES.keys())
def test_a_signature_that_proves_something_else_is_refused(
    sender: Sender, tmp_path: Path, domain: str, forge: Callable[[bytes], bytes]
) -> None:
    """In some of these it verifies; none is a pass for the author's domain, in the reply or in the record."""
    subject, content = message(f"bob@{domain}")
    reply = refused(sender, forge(content), subject, reverse_path="eve@other.test")
    assert reply.startswith("55")
    results = explained(sender, tmp_path, reply)["results"]
    assert [each["result"] for each in results if each["kind"] == "dmarc"] in (["fail"], [])
    assert not [
        each for each in results if each["kind"] == "dkim" and (each["result"], each.get("domain")) == ("pass", domain)
    ]


def test_what_the_domain_wants_kept_apart_lands_in_junk(sender: Sender) -> None:
    subject, content = message("bob@soft.test")
    assert sender.send(content, reverse_path="bob@soft.test", client=STRANGER) == "250"
    found = sender.delivered(subject)
    assert found is not None
    assert found.folder == "Junk"
    assert "spf=softfail" in found.trace
    assert "dmarc=fail header.from=soft.test policy.dmarc=quarantine" in found.trace


def test_a_domain_that_sends_no_mail_is_refused_at_once(sender: Sender) -> None:
    """RFC 7208 section 10.1.2: nothing but -all."""
    subject, content = message("bob@never.test")
    assert "550 5.7.23 never.test sends no mail" in refused(sender, content, subject, reverse_path="bob@never.test")


def test_where_the_dns_is_silent_the_client_shall_come_again(sender: Sender) -> None:
    """RFC 9989 section 4.10.1: neither passed nor failed."""
    subject, content = message("bob@silent.test")
    reply = refused(sender, content, subject, reverse_path="bob@silent.test", client=FRIEND)
    assert reply.startswith("451 4.7.26 The DMARC policy of silent.test can't be looked up now")


# ---------------------------------------------------------------- what was brought along


def test_results_that_claim_to_be_ours_are_taken_out_and_the_others_left(sender: Sender) -> None:
    """RFC 8601 section 5. All else is kept byte for byte."""
    others = "Authentication-Results: mx.example.org;\r\n\tdmarc=pass  (odd  blanks)"
    subject, content = message(
        "bob@soft.test", "X-First: 1", "Authentication-Results: (a) MAIL.example.test.; x=y", others
    )
    claims = b"Authentication-Results: (a) MAIL.example.test.; x=y\r\n"
    assert sender.send(content, reverse_path="bob@soft.test", client=FRIEND) == "250"
    found = sender.delivered(subject)
    assert found is not None
    assert found.content == content.replace(claims, b"")
    assert found.trace.count("Authentication-Results:") == 1


def test_taking_results_out_breaks_no_signature_that_is_checked(sender: Sender) -> None:
    """The signature is verified over what came; what is stored is what people may rely on."""
    claim = "Authentication-Results: mail.example.test; spf=pass"
    subject, content = message("bob@strict.test", claim)
    signed = sign(content, domain="strict.test")
    assert sender.send(signed, reverse_path="x@other.test", client=STRANGER) == "250"
    found = sender.delivered(subject)
    assert found is not None
    assert "dkim=pass" in found.trace
    assert claim.encode() not in found.content


# ---------------------------------------------------------------- what the record says


def explained(sender: Sender, folder: Path, reply: str) -> Any:  # Any: what JSON is
    """What `mailgate explain` says of the last id in a reply, once that and its session are recorded."""
    identifier = re.findall(r"\[([0-9a-z]{13})\]", reply)[-1]
    command = command_for(sender.gate.dsn, folder)

    def is_recorded() -> bool:
        if command.run("explain", identifier).exit_code != 0:
            return False
        found = command.json("explain", identifier)
        return bool(found["dialogue"] if "dialogue" in found else found["session"])

    eventually(is_recorded, f"a record of {identifier} and its session")
    return command.json("explain", identifier)


def test_a_refusal_is_explained_by_the_id_in_its_reply(sender: Sender, tmp_path: Path) -> None:
    """Each check, the answers that it rests on, and the policy that decided, with its options as they were."""
    subject, content = message("bob@strict.test")
    found = explained(sender, tmp_path, refused(sender, content, subject, reverse_path="bob@strict.test"))
    assert (found["transaction"]["disposition"], found["transaction"]["policy"]) == ("refused", "dmarc")
    results = {(result["kind"], result.get("identity", "")): result for result in found["results"]}
    assert results["spf", "mailfrom"]["result"] == "fail"
    (record,) = [each for each in results["spf", "mailfrom"]["answers"] if each["name"] == "strict.test"]
    assert (record["type"], record["records"]) == ("TXT", ["v=spf1 ip4:127.0.0.2 -all"])
    dmarc = results["dmarc", ""]
    assert (dmarc["result"], dmarc["policy"]) == ("fail", "reject")
    assert "_dmarc.strict.test" in [each["name"] for each in dmarc["answers"]]
    (verdict,) = found["verdicts"]
    assert (verdict["stage"], verdict["policy"], verdict["verdict"]) == ("end_of_data", "dmarc", "reject")
    assert verdict["configuration"]["policy"] == "dmarc"
    assert verdict["configuration"]["options"]
    assert any(line.lower().startswith("c: mail from:<bob@strict.test>") for line in found["dialogue"])


def test_a_refusal_at_mail_is_explained_too(sender: Sender, tmp_path: Path) -> None:
    subject, content = message("bob@never.test")
    found = explained(sender, tmp_path, refused(sender, content, subject, reverse_path="bob@never.test"))
    assert (found["transaction"]["stage"], found["transaction"]["policy"]) == ("mail", "spf")
    assert found["results"][-1]["answers"][0]["records"] == ["v=spf1 -all"]


def test_a_refused_greeting_is_explained_by_the_sessions_id(sender: Sender, tmp_path: Path) -> None:
    """There is no transaction, and no other id in the reply."""
    with smtplib.SMTP("127.0.0.1", sender.gate.port, source_address=(STRANGER, 0)) as smtp:
        code, said = smtp.docmd("EHLO", "never.test")
        assert code == 550
    found = explained(sender, tmp_path, said.decode())
    assert found["transactions"] == []
    assert [(result["kind"], result["identity"], result["result"]) for result in found["results"]] == [
        ("spf", "helo", "fail")
    ]
    assert [(verdict["stage"], verdict["policy"]) for verdict in found["verdicts"]] == [("helo", "spf")]
    rows = postgres.query(sender.gate.dsn, "SELECT stage, left(reply, 3), policy FROM mailgate.recent_refusals")
    assert ("helo", "550", "spf") in rows


def test_answers_from_the_cache_are_kept_once(sender: Sender) -> None:
    for _ in range(2):
        _, content = message("bob@strict.test")
        assert sender.send(content, reverse_path="bob@strict.test", client=FRIEND) == "250"
    rows = postgres.query(sender.gate.dsn, "SELECT count(*) FROM mailgate.dns_answer WHERE name = '_dmarc.strict.test'")
    assert rows == [(1,)]
    rows = postgres.query(
        sender.gate.dsn,
        "SELECT messages >= 2 FROM mailgate.authentication_by_domain"
        " WHERE (domain, method, result) = ('strict.test', 'dmarc', 'pass')",
    )
    assert rows == [(True,)]
