"""Submission through a real mailgate, over its Unix socket: who may send as whom, and what is asked of delivery.

The message is looked for in PostgreSQL, where delivery would find it.
"""

from __future__ import annotations

import os
import smtplib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.test_unix_listener import UnixSmtp
from tests.support import postgres
from tests.support.gate import Gate, free_port

ALICE, BOB, CRON = "alice@example.test", "bob@example.test", "cron@example.test"


class Server:
    """The process, its port, and its socket."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.socket_path = folder / "submission.sock"
        self.dsn = postgres.fresh_database()
        self.gate = Gate(
            log=log,
            mailboxes=(ALICE, BOB, CRON),
            dsn=self.dsn,
            settings=f"""
            [listener.local]
            role = "submission"
            tls = "none"
            endpoints = ["unix:{self.socket_path}:mode=666"]
            [submission]
            messages_per_day = 50
            local_users = {{ {os.getuid()} = "{CRON}" }}
            [outbound]
            port = {free_port()}
            """,
        )

    def query(self, sql: str) -> list[tuple[object, ...]]:
        return postgres.query(self.dsn, f"SET search_path = mailgate; {sql}")

    def connect(self) -> smtplib.SMTP:
        return UnixSmtp(str(self.socket_path), 25, "host.example.test", 20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="mg-") as folder:  # pytest's are too long for a socket's name
        Path(folder).chmod(0o755)
        server = Server(Path(folder), tmp_path_factory.mktemp("submission") / "log")
        try:
            server.gate.start()
            yield server
            assert server.gate.tracebacks() == []
        finally:
            server.gate.close()
            postgres.drop_database(server.dsn)


def test_a_program_of_this_machine_is_the_account_of_its_user(server: Server) -> None:
    """unix(7): the kernel says who it is. Date and Message-ID are added, and Bcc goes (RFC 6409 section 8)."""
    with server.connect() as client:
        message = f"From: {CRON}\r\nTo: {ALICE}\r\nBcc: {BOB}\r\nSubject: nightly\r\n\r\nDone.\r\n"
        assert client.sendmail(CRON, [ALICE, BOB], message) == {}
    (((content, account),)) = server.query(
        "SELECT convert_from(m.content, 'UTF8'), t.authenticated FROM message m JOIN transaction t USING (id)"
        " WHERE m.subject = 'nightly'"
    )
    assert account == CRON
    assert isinstance(content, str)
    date, message_id, rest = content.split("\r\n", 2)
    assert date.startswith("Date: ")
    assert message_id.startswith("Message-ID: <")
    assert message_id.endswith("@mail.example.test>")
    assert rest == f"From: {CRON}\r\nTo: {ALICE}\r\nSubject: nightly\r\n\r\nDone.\r\n"


@contextmanager
def refusal(code: int, start: bytes) -> Iterator[None]:
    with pytest.raises(smtplib.SMTPResponseException) as caught:
        yield
    assert caught.value.smtp_code == code
    assert isinstance(caught.value.smtp_error, bytes)
    assert caught.value.smtp_error.startswith(start), caught.value.smtp_error


def test_a_program_sends_as_nobody_else(server: Server) -> None:
    """RFC 6409 section 6.1; in MAIL FROM and in From."""
    with server.connect() as client:
        with refusal(550, b"5.7.1 MAIL FROM names alice@example.test, which is not yours"):
            client.sendmail(ALICE, [BOB], f"From: {CRON}\r\n\r\nx\r\n")
        with refusal(550, b"5.7.1 From names alice@example.test, which is not yours"):
            client.sendmail(CRON, [BOB], f"From: {ALICE}\r\n\r\nx\r\n")


def test_mail_for_elsewhere_is_queued_with_what_was_asked(server: Server) -> None:
    """RFC 4865 and RFC 2852; REQUIRETLS is not offered in plain text (RFC 8689 section 2)."""
    with server.connect() as client:
        client.ehlo()
        assert client.esmtp_features["futurerelease"].startswith("604800 20")
        assert client.esmtp_features["deliverby"] == "60"
        assert not client.has_extn("requiretls")
        options = ["HOLDFOR=3600", "BY=7200;R"]
        assert (
            client.sendmail(CRON, ["x@elsewhere.example"], f"From: {CRON}\r\nSubject: held\r\n\r\nx\r\n", options) == {}
        )
    ((recipient, sender, held, due, mode),) = server.query(
        "SELECT recipient, sender, round(extract(epoch FROM due_at - q.created_at)),"
        " round(extract(epoch FROM deliver_by - q.created_at)), deliver_by_mode"
        " FROM queue q JOIN message m ON m.id = q.message_id WHERE m.subject = 'held'"
    )
    assert (recipient, sender, int(held), int(due), mode) == ("x@elsewhere.example", CRON, 3600, 7200, "R")  # type: ignore[call-overload]  # numbers


def test_a_user_without_an_account_has_to_authenticate(server: Server) -> None:
    """RFC 6409 section 4.3: 530 5.7.0."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setuid(65534)
            with UnixSmtp(str(server.socket_path), 25, "host.example.test", 20) as client:
                client.ehlo()
                answer = client.mail(CRON)
                code = 0 if answer[0] == 530 and answer[1].startswith(b"5.7.0") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
