"""Forwarding through a whole gate: what is queued with which reverse-path, sealed, and what comes back."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import dkim
import pytest

from mailgate.auth.private_key import generate_key
from mailgate.sealing import MasterKey
from mailgate.smtp.grammar import parse_mailbox
from mailgate.storage.signing_keys import purpose_of
from tests.support.gate import Gate
from tests.support.postgres import drop_database, fresh_database, query

MASTER = MasterKey(bytes(range(32)), "a test")
KEY = generate_key("example.test", "r1", "rsa")
MESSAGE = b"From: bob@example.org\r\nTo: team@example.test\r\nSubject: Hi\r\n\r\nHello.\r\n"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gate with an alias that leads elsewhere, and a key for its domain."""
    folder = tmp_path_factory.mktemp("forwarding")
    master_key = folder / "master-key"
    master_key.write_text(MASTER.octets.hex())
    master_key.chmod(0o600)
    dsn = fresh_database()
    settings = f'[signing]\nmaster_key_file = "{master_key}"\n[outbound]\nenabled = false\n'
    gate = Gate(log=folder / "log", mailboxes=("alice@example.test",), dsn=dsn, settings=settings)
    try:
        gate.start()
        query(
            dsn,
            "INSERT INTO mailgate.alias (domain_id, local_part, target)"
            " SELECT id, 'team', 'carl@elsewhere.example' FROM mailgate.domain",
        )
        query(
            dsn,
            "INSERT INTO mailgate.dkim_key (domain, selector, algorithm, state, sealed_key, master_key_id, public_key,"
            " activated_at) VALUES ('example.test', 'r1', 'rsa', 'active', %s, %s, '', now())",
            (MASTER.seal(KEY.octets, purpose_of("example.test", "r1")), MASTER.id),
        )
        yield gate
        assert gate.tracebacks() == []
    finally:
        gate.close()
        drop_database(dsn)


def send(gate: Gate, reverse_path: str, recipient: str, message: bytes = MESSAGE) -> tuple[int, bytes]:
    """The reply that decided."""
    with smtplib.SMTP("127.0.0.1", gate.port, timeout=20) as client:
        client.ehlo("client.example.org")
        client.mail(reverse_path)
        code, text = client.rcpt(recipient)
        return client.data(message) if code == 250 else (code, text)


def newest_queued(gate: Gate) -> tuple[str, str, bytes]:
    """Reverse-path, recipient, and the message as it would leave but for the Return-Path."""
    ((reverse_path, recipient, trace, content),) = query(
        gate.dsn,
        "SELECT q.reverse_path, q.recipient, encode(m.trace, 'hex'), encode(m.content, 'hex')"
        " FROM mailgate.queue q JOIN mailgate.message m ON m.id = q.message_id ORDER BY m.id DESC LIMIT 1",
    )
    return str(reverse_path), str(recipient), bytes.fromhex(str(trace)) + bytes.fromhex(str(content))


def test_a_forward_is_sealed_and_its_bounce_leads_back(gate: Gate) -> None:
    """RFC 8617 by dkimpy's judgement; the reverse-path is the alias' domain's."""
    assert send(gate, "bob@example.org", "team@example.test")[0] == 250
    reverse_path, recipient, message = newest_queued(gate)
    assert recipient == "carl@elsewhere.example"
    assert parse_mailbox(reverse_path).domain == "example.test"
    assert reverse_path.startswith("SRS0=")
    assert b"Delivered-To: team@example.test\r\n" in message
    record = KEY.record.encode()
    assert dkim.arc_verify(message, dnsfunc=lambda name, timeout=5: record)[0] == b"pass"
    assert send(gate, "", reverse_path)[0] == 250
    assert newest_queued(gate)[:2] == ("", "bob@example.org")
    assert send(gate, "mallory@example.net", reverse_path)[0] == 550
    assert send(gate, "", reverse_path.replace("=bob@", "=eve@"))[0] == 550


def test_a_long_reverse_path_leads_back_by_the_record(gate: Gate) -> None:
    """RFC 5321 section 4.5.3.1.1: what 64 octets can't hold."""
    long = "0100018c9d5e1234-12345678-1234-1234-1234-123456789abc-000000@example.org"
    assert send(gate, long, "team@example.test")[0] == 250
    reverse_path, _, _ = newest_queued(gate)
    assert len(parse_mailbox(reverse_path).local) <= 64
    assert send(gate, "", reverse_path)[0] == 250
    assert newest_queued(gate)[:2] == ("", long)


def test_a_forward_that_comes_back_is_refused(gate: Gate) -> None:
    """RFC 5321 section 6.3: what we passed on says so."""
    assert send(gate, "bob@example.org", "team@example.test")[0] == 250
    _, _, message = newest_queued(gate)
    code, text = send(gate, "bob@example.org", "team@example.test", message)
    assert (code, text[:5]) == (550, b"5.4.6")


def test_a_gate_with_another_master_key_does_not_start(gate: Gate, tmp_path: Path) -> None:
    """It says which key is missing, and which is there."""
    other = tmp_path / "other-key"
    other.write_text("00" * 32)
    other.chmod(0o600)
    wrong = Gate(log=tmp_path / "log", mailboxes=(), dsn=gate.dsn, settings=f'[signing]\nmaster_key_file = "{other}"\n')
    try:
        wrong.start(wait=False)
        assert wrong.exit_status(30) != 0
        assert f"was sealed with the master key {MASTER.id}" in wrong.log()
    finally:
        wrong.close()
