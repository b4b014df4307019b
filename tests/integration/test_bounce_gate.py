"""A bounce through a real mailgate: another host refuses a recipient, and the sender is told, once, in its mailbox."""

from __future__ import annotations

import email
import smtplib
import socketserver
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from mailgate.cli.main import main
from tests.integration.test_unix_listener import UnixSmtp
from tests.support import postgres
from tests.support.gate import Gate, eventually
from tests.support.local_gate import ALICE, local_gate


class RefusingHost(socketserver.StreamRequestHandler):
    """A host that knows nobody."""

    def handle(self) -> None:
        self.wfile.write(b"220 mx.elsewhere.test ESMTP\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.wfile.write(b"250-mx.elsewhere.test\r\n250 ENHANCEDSTATUSCODES\r\n")
            elif verb == b"RCPT":
                self.wfile.write(b"550-5.1.1 There is nobody\r\n550 5.1.1 of that name here\r\n")
            elif verb == b"QUIT":
                self.wfile.write(b"221 2.0.0 Bye\r\n")
                return
            elif verb == b"DATA":
                self.wfile.write(b"554 5.5.1 No valid recipients\r\n")
            else:
                self.wfile.write(b"250 2.0.0 Ok\r\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[Gate, Path]]:
    with Server(("127.0.0.1", 0), RefusingHost) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        settings = f"""
            [outbound]
            suppress_days = 7
            tls = "none"
            [[route]]
            domains = ["elsewhere.test"]
            to = "smtp://127.0.0.1:{host.server_address[1]}"
            """
        with local_gate(tmp_path / "log", settings) as found:
            yield found
        host.shutdown()


def bounces(dsn: str) -> list[EmailMessage]:
    rows = postgres.query(
        dsn,
        "SELECT mailgate.message_octets(m.id) FROM mailgate.message m JOIN mailgate.delivery d ON d.message_id = m.id"
        " WHERE m.reverse_path = '' ORDER BY m.id",
    )
    found = []
    for (octets,) in rows:
        assert isinstance(octets, memoryview)
        message = email.message_from_bytes(octets.tobytes(), policy=SMTP)
        assert isinstance(message, EmailMessage)
        found.append(message)
    return found


def failures(dsn: str) -> object:
    rows = postgres.query(dsn, "SELECT failures FROM mailgate.suppression")
    return rows[0][0] if rows else 0


def test_a_refused_recipient_is_one_bounce_and_at_last_a_refusal(gate: tuple[Gate, Path]) -> None:
    """RFC 3464, RFC 5321 section 6.1; and an address that fails for good three times is refused at RCPT."""
    mailgate, path = gate
    dsn = mailgate.dsn

    def told(number: int) -> bool:
        return len(bounces(dsn)) == number == failures(dsn)

    for number in range(1, 4):
        with UnixSmtp(str(path), 25, "host.example.test", 20) as client:
            message = f"From: {ALICE}\r\nSubject: {number}\r\n\r\nHello.\r\n"
            client.sendmail(ALICE, ["bob@elsewhere.test"], message, mail_options=["RET=HDRS", "ENVID=e+2B1"])
        eventually(partial(told, number), "the bounce is in the mailbox, and counted")
    first = bounces(dsn)[0]
    assert first["Return-Path"] == "<>"
    assert first["Subject"] == "Not delivered: bob@elsewhere.test"
    text, status, header = first.iter_parts()
    assert isinstance(text, EmailMessage)
    assert "There is nobody of that name here" in text.get_content().replace("5.1.1 ", "").replace("\r\n        ", " ")
    about_message, about_bob = (part for part in status.walk() if part is not status)
    assert about_message["Original-Envelope-Id"] == "e+1"
    assert about_bob["Final-Recipient"] == "rfc822; bob@elsewhere.test"
    assert (about_bob["Action"], about_bob["Status"]) == ("failed", "5.1.1")
    assert "Subject: 1" in str(header.get_payload())
    assert postgres.query(dsn, "SELECT count(*) FROM mailgate.queue") == [(0,)]

    with UnixSmtp(str(path), 25, "host.example.test", 20) as client:
        client.ehlo()
        client.mail(ALICE)
        code, reply = client.rcpt("bob@ELSEWHERE.test")
        assert code == 550
        assert reply.startswith(b"5.1.1 Mail to this address has failed for good several times")
        arguments = ["--config", str(mailgate.config_path), "suppression", "remove", "bob@elsewhere.test"]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert client.rcpt("bob@elsewhere.test")[0] == 250


def test_of_mail_that_was_refused_nobody_is_told_but_who_brought_it(gate: tuple[Gate, Path]) -> None:
    """RFC 5321 section 6.1: notices are of what was accepted; any other would go to those whose name was forged."""
    mailgate, path = gate
    dsn = mailgate.dsn
    forged = "From: mallory@elsewhere.test\r\nSubject: forged\r\n\r\nHello.\r\n"
    asked = ["NOTIFY=SUCCESS,FAILURE,DELAY"]
    with UnixSmtp(str(path), 25, "host.example.test", 20) as client:
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail(ALICE, ["bob@elsewhere.test", ALICE], forged, rcpt_options=asked)
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail("carol@example.test", ["bob@elsewhere.test"], forged, rcpt_options=asked)
    with smtplib.SMTP("127.0.0.1", mailgate.port, "host.elsewhere.test", 20) as stranger:
        for recipient in ("nobody@example.test", "bob@elsewhere.test"):
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                stranger.sendmail("dora@elsewhere.test", [recipient], forged, rcpt_options=asked)
    assert postgres.query(dsn, "SELECT count(*) FROM mailgate.message") == [(0,)]
    assert postgres.query(dsn, "SELECT count(*) FROM mailgate.queue") == [(0,)]

    # Of a message that is accepted for one of its recipients, the notice names that one.
    with UnixSmtp(str(path), 25, "host.example.test", 20) as client:
        message = forged.replace("mallory@elsewhere.test", ALICE)
        refused = client.sendmail(ALICE, ["nobody@example.test", "bob@elsewhere.test"], message, rcpt_options=asked)
    assert list(refused) == ["nobody@example.test"]
    eventually(lambda: bounces(dsn), "the one bounce is in the mailbox")
    (bounce,) = bounces(dsn)
    assert bounce["Subject"] == "Not delivered: bob@elsewhere.test"
    assert "nobody@example.test" not in bounce.as_string()
    assert postgres.query(dsn, "SELECT count(*) FROM mailgate.queue") == [(0,)]
