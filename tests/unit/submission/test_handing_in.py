"""Handing a message in over a socket that blocks, against a server that follows a script."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mailgate.outbound.plan import Result
from mailgate.submission.client_settings import ClientSettings
from mailgate.submission.handing_in import Request, hand_in, outgoing

READY = ("220 x", "250-x\r\n250-DSN\r\n250-8BITMIME\r\n250 SMTPUTF8")
CONTENT = b"Subject: x\r\n\r\n.\r\nx\r\n"


@contextmanager
def server(*replies: str) -> Iterator[tuple[ClientSettings, list[str]]]:
    """A server that says these, one for each command or message, then closes; and what it has heard."""
    heard: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mg-") as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        path = f"{folder}/s"
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(20)

        def serve() -> None:
            with closing(listener.accept()[0]) as connection, connection.makefile("rb") as lines:
                connection.settimeout(20)
                last = ""
                for reply in replies:
                    connection.sendall(reply.encode() + b"\r\n")
                    if reply is replies[-1]:
                        return
                    last = lines.readline().decode()
                    if reply.startswith("354"):
                        while last != ".\r\n":
                            heard.append(last)
                            last = lines.readline().decode()
                    heard.append(last)

        thread = threading.Thread(target=serve)
        thread.start()
        yield ClientSettings(socket=path, domain="host.x.test"), heard
        thread.join(20)


def test_a_message_is_handed_in_with_what_was_asked() -> None:
    """RFC 5321 and RFC 3461; a dot at the beginning of a line is doubled."""
    message = outgoing(CONTENT, "", ["a@x.test"], Request(frozenset({"NEVER"}), "HDRS", "id"))
    with server(*READY, "250 ok", "250 ok", "354 go", "250 2.0.0 done", "221 bye") as (settings, heard):
        delivery = hand_in(message, settings, timeout_seconds=20)
    assert [(outcome.result, outcome.reply) for outcome in delivery.outcomes] == [(Result.DELIVERED, "250 2.0.0 done")]
    assert delivery.trouble is None
    assert heard == [
        "EHLO host.x.test\r\n",
        "MAIL FROM:<> RET=HDRS ENVID=id\r\n",
        "RCPT TO:<a@x.test> NOTIFY=NEVER\r\n",
        "DATA\r\n",
        *["Subject: x\r\n", "\r\n", "..\r\n", "x\r\n", ".\r\n"],
        "QUIT\r\n",
    ]


@pytest.mark.parametrize(
    ("replies", "status"),
    [
        (("421 4.3.2 go away",), "4.3.2"),
        (("554 5.7.1 no",), "5.7.1"),
        (("220 x",), "4.4.2"),
        ((*READY, "250 ok"), "4.4.2"),
        (("this is no SMTP",), "4.5.0"),
    ],
)
def test_what_ends_too_early_is_told(replies: tuple[str, ...], status: str) -> None:
    """Whoever hands in keeps the message."""
    with server(*replies) as (settings, _heard):
        delivery = hand_in(outgoing(CONTENT, "", ["a@x.test"]), settings, timeout_seconds=20)
    assert delivery.trouble is not None
    assert delivery.trouble.status == status
    assert not [outcome for outcome in delivery.outcomes if outcome.result is Result.DELIVERED]


def test_a_server_that_stalls_is_given_up() -> None:
    """After the time-out, not before."""
    with tempfile.TemporaryDirectory(prefix="mg-") as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"{folder}/s")
        listener.listen(1)
        settings = ClientSettings(socket=f"{folder}/s", domain="x.test")
        delivery = hand_in(outgoing(CONTENT, "", ["a@x.test"]), settings, timeout_seconds=0.05)
    assert delivery.trouble is not None
    assert delivery.trouble.reply == "Timed out while waiting for the greeting"


def test_no_server_is_told(tmp_path: Path) -> None:
    """4.4.1: nobody answers."""
    delivery = hand_in(outgoing(CONTENT, "", ["a@x.test"]), ClientSettings(socket=str(tmp_path / "s"), domain="x"))
    assert delivery.trouble is not None
    assert (delivery.trouble.status, delivery.trouble.reply.endswith("No such file or directory")) == ("4.4.1", True)


def test_the_message_says_which_extensions_it_needs() -> None:
    """RFC 6152 and RFC 6531."""
    plain = outgoing(CONTENT, "a@x.test", ["b@x.test"])
    body = outgoing(b"Subject: x\r\n\r\n\xff\r\n", "a@x.test", ["b@x.test"])
    header = outgoing("Subject: ü\r\n\r\nx\r\n".encode(), "a@x.test", ["b@x.test"])
    address = outgoing(CONTENT, "a@x.test", ["ü@x.test"])
    needs = [(message.is_eight_bit, message.is_smtputf8) for message in (plain, body, header, address)]
    assert needs == [(False, False), (True, False), (True, True), (False, True)]
