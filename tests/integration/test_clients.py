"""Clients that others wrote, against a real process: smtplib, and swaks where it is installed.

Each message is looked for in PostgreSQL, byte for byte.
"""

from __future__ import annotations

import re
import shutil
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mailgate.ids import decode_id
from tests.support.gate import Gate, free_port
from tests.support.postgres import query

ALICE, BOB = "alice@example.test", "bob@example.test"

NOT_VERIFIED = ssl.create_default_context()
NOT_VERIFIED.check_hostname = False
NOT_VERIFIED.verify_mode = ssl.CERT_NONE

HOSTILE_CONTENT = (
    b"Subject: Every octet but NUL, CR and LF\r\n"
    b"\r\n"
    b".\r\n..\r\n...\r\n.leading\r\ntrailing.\r\n"
    + bytes(octet for octet in range(1, 256) if octet not in b"\r\n")
    + b"\r\n"
    + b"x" * 998
    + b"\r\n\r\n\r\n.\r\n"
)


class Server:
    """The process, and where it listens."""

    def __init__(self, log: Path) -> None:
        self.tls_port, self.submission_port = free_port(), free_port()
        self.gate = Gate(
            log=log,
            mailboxes=(ALICE, BOB),
            settings=f"""
[listener.smtps]
role = "submission"
port = {self.tls_port}
addresses = ["127.0.0.1"]
tls = "implicit"
accepts_unauthenticated = true
""",
        )

    @property
    def port(self) -> int:
        return self.gate.port

    def stored(self, reply: bytes | str) -> tuple[bytes, bytes]:
        """The trace and the content of the message that was accepted with this reply."""
        text = reply.decode() if isinstance(reply, bytes) else reply
        match = re.search(r"Accepted as ([0-9a-z]{13})", text)
        assert match is not None, text
        ((trace, content),) = query(
            self.gate.dsn, "SELECT trace, content FROM mailgate.message WHERE id = %s", (decode_id(match[1]),)
        )
        assert isinstance(trace, memoryview)
        assert isinstance(content, memoryview)
        return bytes(trace), bytes(content)

    def deliveries(self, reply: bytes) -> int:
        match = re.search(rb"Accepted as ([0-9a-z]{13})", reply)
        assert match is not None
        ((count,),) = query(
            self.gate.dsn,
            "SELECT count(*) FROM mailgate.delivery WHERE message_id = %s",
            (decode_id(match[1].decode()),),
        )
        assert isinstance(count, int)
        return count


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("clients") / "log")
    try:
        server.gate.start()
        yield server
        assert server.gate.tracebacks() == []
    finally:
        server.gate.close()


def plain(server: Server) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.example", timeout=30)


def over_starttls(server: Server) -> smtplib.SMTP:
    client = plain(server)
    client.starttls(context=NOT_VERIFIED)
    return client


def over_implicit_tls(server: Server) -> smtplib.SMTP:
    return smtplib.SMTP_SSL(
        "127.0.0.1", server.tls_port, local_hostname="client.example", context=NOT_VERIFIED, timeout=30
    )


WAYS = [(plain, "ESMTP "), (over_starttls, "ESMTPS "), (over_implicit_tls, "ESMTPS ")]


def data(client: smtplib.SMTP, content: bytes) -> bytes:
    """Send a transaction by hand, because sendmail keeps the last reply to itself."""
    for code, _ in (client.ehlo(), client.mail("carol@example.org"), client.rcpt(ALICE), client.rcpt(BOB)):
        assert code == 250
    code, reply = client.data(content)
    assert code == 250, reply
    return reply


@pytest.mark.parametrize(("connect", "word"), WAYS, ids=["plain", "STARTTLS", "implicit TLS"])
def test_smtplib_delivers_byte_for_byte(server: Server, connect: Callable[[Server], smtplib.SMTP], word: str) -> None:
    """Over plain, STARTTLS and 465; one copy, a delivery for each recipient."""
    with connect(server) as client:
        reply = data(client, HOSTILE_CONTENT)
        trace, content = server.stored(reply)
        assert content == HOSTILE_CONTENT
        assert trace.startswith(b"Return-Path: <carol@example.org>\r\nReceived: from client.example ([127.0.0.1])\r\n")
        assert f" with {word}".encode() in trace.replace(b"\r\n\t", b" ")
        assert server.deliveries(reply) == 2
        assert client.has_extn("starttls") == (connect is plain)


@pytest.mark.parametrize(("connect", "word"), WAYS, ids=["plain", "STARTTLS", "implicit TLS"])
def test_smtplib_sends_a_large_message(server: Server, connect: Callable[[Server], smtplib.SMTP], word: str) -> None:
    content = b"Subject: large\r\n\r\n" + (b"." + b"x" * 75 + b"\r\n") * 12_000
    with connect(server) as client:
        _, stored = server.stored(data(client, content))
    assert stored == content


def test_smtplib_sends_many_messages_in_a_session(server: Server) -> None:
    with plain(server) as client:
        replies = {data(client, b"Subject: %d\r\n" % number) for number in range(50)}
    assert len(replies) == 50


def test_smtplib_hears_of_the_refused_recipient_only(server: Server) -> None:
    with plain(server) as client:
        refused = client.sendmail("carol@example.org", [ALICE, "nobody@example.test", "x@elsewhere.example"], "x")
    assert {address: code for address, (code, _) in refused.items()} == {
        "nobody@example.test": 550,
        "x@elsewhere.example": 550,
    }
    assert refused["nobody@example.test"][1].startswith(b"5.1.1 ")
    assert refused["x@elsewhere.example"][1].startswith(b"5.7.1 ")


def test_smtplib_with_smtputf8(server: Server) -> None:
    """RFC 6531."""
    with plain(server) as client:
        client.ehlo()
        assert client.mail("jürgen@bücher.example", ["SMTPUTF8", "BODY=8BITMIME"])[0] == 250
        assert client.rcpt(ALICE)[0] == 250
        _, reply = client.data("Subject: grün\r\n\r\nGrüße\r\n".encode())
    trace, content = server.stored(reply)
    assert content == "Subject: grün\r\n\r\nGrüße\r\n".encode()
    assert "Return-Path: <jürgen@bücher.example>\r\n".encode() in trace
    assert b" with UTF8SMTP\r\n" in trace


def test_everything_in_one_segment(server: Server) -> None:
    """RFC 2920, taken further than it allows: a client that waits for nothing, not even the greeting."""
    octets = b"EHLO client.example\r\n"
    for number in range(20):
        octets += b"MAIL FROM:<carol@example.org>\r\nRCPT TO:<alice@example.test>\r\n"
        octets += b"DATA\r\nSubject: pipelined %d\r\n.\r\n" % number
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as client:
        client.sendall(octets + b"QUIT\r\n")
        heard = b""
        while received := client.recv(65536):
            heard += received
    codes = [line[:3] for line in heard.split(b"\r\n") if line[3:4] == b" "]
    assert codes == [b"220", b"250", *[b"250", b"250", b"354", b"250"] * 20, b"221"]
    assert len(set(re.findall(rb"Accepted as (.*)\r\n", heard))) == 20


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), b"ESMTP"),
        (("--tls",), b"ESMTPS"),
        (("--tlsc",), b"ESMTPS"),
        (("--pipeline",), b"ESMTP"),
        (("--protocol", "SMTP"), b"SMTP"),
    ],
    ids=["plain", "STARTTLS", "implicit TLS", "PIPELINING", "HELO"],
)
def test_swaks_delivers(server: Server, options: tuple[str, ...], word: bytes) -> None:
    port = server.tls_port if "--tlsc" in options else server.port
    swaks = shutil.which("swaks")
    assert swaks is not None
    done = subprocess.run(
        [
            *(swaks, "--server", "127.0.0.1", "--port", str(port), "--from", "carol@example.org", "--to", ALICE),
            *("--ehlo", "client.example", "--header", "Subject: from swaks", "--body", ".dots\\n..and more"),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trace, content = server.stored(done.stdout)
    assert b"Subject: from swaks\r\n" in content
    assert b"\r\n.dots\r\n..and more\r\n" in content
    assert b" with " + word in trace.replace(b"\r\n\t", b" ")
