"""A listener on a Unix socket, in a real mailgate: a client of this machine, without an address of its own.

Standards: RFC 5321; unix(7).
"""

from __future__ import annotations

import smtplib
import socket
import tempfile
from contextlib import closing
from pathlib import Path

import psycopg2

from tests.support import postgres
from tests.support.gate import Gate


class UnixSmtp(smtplib.SMTP):
    """smtplib over a Unix socket, whose path is the host."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        """Connect to the path."""
        connecting = socket.socket(socket.AF_UNIX)
        connecting.settimeout(timeout)
        connecting.connect(host)
        return connecting


def test_mail_comes_in_over_a_unix_socket_and_counts_as_of_this_machine(tmp_path: Path) -> None:
    """An endpoint string of Twisted's is a listener like any other; the record has the loopback's address."""
    dsn = postgres.fresh_database()
    with tempfile.TemporaryDirectory(prefix="mg-") as folder:  # pytest's are too long for a socket's name
        path = f"{folder}/smtp.sock"
        gate = Gate(
            log=tmp_path / "log",
            mailboxes=("alice@example.test",),
            dsn=dsn,
            settings=f"""
            [listener.local]
            role = "mx"
            tls = "none"
            endpoints = ["unix:{path}"]
            """,
        )
        try:
            gate.start()
            with UnixSmtp(path, 25, "host.example.test", 20) as smtp:
                assert (
                    smtp.sendmail("bob@client.example", ["alice@example.test"], b"Subject: x\r\n\r\nHello.\r\n") == {}
                )
            with closing(psycopg2.connect(dsn)) as database, database.cursor() as cursor:
                cursor.execute("SELECT listener, host(client_address) FROM mailgate.transaction")
                assert cursor.fetchall() == [("local", "127.0.0.1")]
            assert gate.tracebacks() == []
        finally:
            gate.close()
            postgres.drop_database(dsn)
