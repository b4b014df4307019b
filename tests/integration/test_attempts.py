"""What a real mailgate keeps of an attempt: the host, the reply, and the TLS that it used, for the operator to ask."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller, UnixSocketController
from aiosmtpd.handlers import Sink
from aiosmtpd.lmtp import LMTP

from tests.integration.test_unix_listener import UnixSmtp
from tests.support import postgres
from tests.support.certificates import Authority
from tests.support.command import Command
from tests.support.gate import Gate, eventually, free_port
from tests.support.local_gate import ALICE, local_gate

VERIFIED, ENCRYPTED, PLAIN = "verified.test", "encrypted.test", "plain.test"
BY_TCP, BY_SOCKET = "by-tcp.test", "by-socket.test"


class OneFull(Sink):
    """Takes a message for all but those whose mailbox is full; LMTP lets it say so behind the message."""

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802
        """A reply for each recipient."""
        return "\r\n".join(
            "452 4.2.2 Full" if recipient.startswith("full") else "250 2.0.0 Kept" for recipient in envelope.rcpt_tos
        )


class Lmtp(Controller):
    """aiosmtpd's LMTP on a port."""

    def factory(self) -> LMTP:
        """A session."""
        return LMTP(self.handler)


class LmtpOnSocket(UnixSocketController):
    """The same on a Unix socket."""

    def factory(self) -> LMTP:
        """A session."""
        return LMTP(self.handler)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Whose path is short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="mg-") as folder:
        yield Path(folder)


@pytest.fixture
def gate(tmp_path: Path, socket_folder: Path) -> Iterator[tuple[Gate, Path]]:
    """One with a route to each of three domains, on the same host, which offers STARTTLS."""
    authority = Authority(tmp_path, datetime.now(UTC))
    certificate = authority.issue("host", names=("localhost",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate, certificate.key)
    host = Controller(Sink(), "127.0.0.1", free_port(), tls_context=context)
    routes = "".join(
        f'[[route]]\ndomains = ["{domain}"]\nto = "smtp://localhost:{host.port}"\ntls = "{tls}"\n'
        for domain, tls in ((VERIFIED, "verify"), (ENCRYPTED, "encrypt"), (PLAIN, "none"))
    )
    by_tcp = Lmtp(OneFull(), "127.0.0.1", free_port())
    by_socket = LmtpOnSocket(OneFull(), f"{socket_folder}/lmtp")
    settings = f"""
[outbound]
ca_file = "{authority.certificate_file}"
{routes}
[[route]]
domains = ["{BY_TCP}"]
to = "lmtp://localhost:{by_tcp.port}"
tls = "none"
[[route]]
domains = ["{BY_SOCKET}"]
to = "lmtp:{socket_folder}/lmtp"
"""
    hosts = (host, by_tcp, by_socket)
    for each in hosts:
        each.start()
    try:
        with local_gate(tmp_path / "log", settings) as found:
            yield found
    finally:
        for each in hosts:
            each.stop()


def test_the_tls_that_was_used_is_kept_with_the_attempt(gate: tuple[Gate, Path]) -> None:
    """Whether there was any, which, whether a name was matched, and who had asked for that."""
    mailgate, door = gate
    with UnixSmtp(str(door), 25, "host.example.test", 20) as client:
        message = f"From: {ALICE}\r\nSubject: Hello\r\n\r\nHello.\r\n"
        recipients = [f"bob@{domain}" for domain in (VERIFIED, ENCRYPTED, PLAIN)]
        client.sendmail(ALICE, recipients, message)

    def attempts() -> list[tuple[object, ...]]:
        return postgres.query(
            mailgate.dsn,
            "SELECT recipient, result, host, address, tls_version, tls_cipher IS NOT NULL, tls_is_verified, tls_source"
            " FROM mailgate.attempt ORDER BY recipient",
        )

    eventually(lambda: len(attempts()) == len(recipients), "all are delivered")
    place = ("delivered", "localhost", "127.0.0.1")
    assert attempts() == [
        (f"bob@{ENCRYPTED}", *place, "TLSv1.3", True, False, "config"),
        (f"bob@{PLAIN}", *place, None, False, None, None),
        (f"bob@{VERIFIED}", *place, "TLSv1.3", True, True, "config"),
    ]
    ((message_id,),) = postgres.query(
        mailgate.dsn, "SELECT DISTINCT mailgate.id_text(transaction_id) FROM mailgate.attempt"
    )
    shown = Command(mailgate.config_path, mailgate.dsn).ok("queue", "show", str(message_id))
    assert shown.count("TLSv1.3") == 2
    assert shown.count("TLSv1.3 verified") == 1


def test_lmtp_has_an_attempt_and_an_outcome_for_each_recipient(gate: tuple[Gate, Path]) -> None:
    """RFC 2033 section 4.2, by TCP and by a Unix socket: one of two mailboxes is full, and only that one waits."""
    mailgate, door = gate
    recipients = [f"{user}@{domain}" for domain in (BY_SOCKET, BY_TCP) for user in ("full", "to")]
    with UnixSmtp(str(door), 25, "host.example.test", 20) as client:
        client.sendmail(ALICE, recipients, f"From: {ALICE}\r\nSubject: Hello\r\n\r\nHello.\r\n")

    def attempts() -> list[tuple[object, ...]]:
        return postgres.query(mailgate.dsn, "SELECT recipient, result FROM mailgate.attempt")

    eventually(lambda: len(attempts()) == len(recipients), "all were tried")
    results = ("deferred", "delivered", "deferred", "delivered")
    assert set(attempts()) == set(zip(recipients, results, strict=True))
    waiting = postgres.query(mailgate.dsn, "SELECT recipient, last_reply FROM mailgate.queue")
    assert set(waiting) == {(recipient, "452 4.2.2 Full") for recipient in recipients[::2]}
