"""A load generator that speaks SMTP: many sessions in one process, plain, STARTTLS or implicit TLS, latencies kept.

Run as a program of its own (`python -m benchmarks.loader`), so that what measures does not slow what loads. It sends
one command and waits for the reply, as `smtp-source` does; it knows as little SMTP as that takes. One line of JSON on
standard output is its result.

It makes its messages itself, or sends those of a file over and over: each is a line of JSON with the reverse-path
("mail") and the size of what follows ("octets"), then the message as DATA takes it, with the line of the end.

Standards: RFC 5321 section 4.1 (the commands), RFC 3207 (STARTTLS).
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import click

_READ_OCTETS = 65_536
_IP_BIND_ADDRESS_NO_PORT = 24  # Linux: choose the port when connecting, so that ports are not used up; ip(7)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load."""

    started: float  # before the first connect, by the monotonic clock, which all processes share
    ended: float  # at the last 250
    accepted: int
    refused: int  # replies other than the expected, lost connections included
    first_refusal: str
    cpu_seconds: float  # of the loader itself
    latencies_ms: list[float]  # of each accepted message, from MAIL to the 250 at the end of data


class Mail(NamedTuple):
    """A message, and who sends it."""

    reverse_path: bytes
    content: bytes  # with the end of data


@dataclass(slots=True)
class Plan:
    """What all sessions of a load have in common, and what is left to do."""

    address: tuple[str, int]
    tls: str  # "none", "starttls" or "implicit"
    context: ssl.SSLContext
    clients: Iterator[tuple[str, bytes]]  # the address to come from ("" for any) and the name to say, of each session
    recipients: tuple[bytes, ...]
    mails: Iterator[Mail]
    messages_per_connection: int  # 0: as many as there are
    left: int
    accepted: int = 0
    refused: int = 0
    first_refusal: str = ""


class _Session:
    """One client: a connection, then the next, until the plan has no messages left."""

    __slots__ = (
        *("_ehlo", "_handler", "_input", "_mail_in_hand", "_output", "_recipient", "_sent", "_started"),
        *("plan", "run", "socket", "wants"),
    )

    def __init__(self, plan: Plan, run: _Run) -> None:
        self.plan = plan
        self.run = run
        self.connect()

    def connect(self) -> None:
        """Open the next connection."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address, name = next(self.plan.clients)
        self._ehlo = b"EHLO %s\r\n" % name
        if address:
            self.socket.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            self.socket.bind((address, 0))
        self.socket.connect_ex(self.plan.address)
        self._input = b""
        self._output = memoryview(b"")
        self._sent = 0
        self._handler: Callable[[bytes], None] = self._greeting
        self.wants = select.EPOLLIN
        self.run.add(self)
        if self.plan.tls == "implicit":
            self._handler = self._connected
            self.want(select.EPOLLOUT)

    def want(self, events: int) -> None:
        """Wait for these events from now on."""
        if self.wants != events:
            self.wants = events
            self.run.epoll.modify(self.socket.fileno(), events)

    # ------------------------------------------------------------------ input and output

    def ready(self, _events: int) -> None:
        """Go on: the socket has something, or takes something."""
        if self._handler in (self._connected, self._handshake):
            self._handler(b"")
            return
        if self._output:
            self._write()
        while True:
            try:
                data = self.socket.recv(_READ_OCTETS)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError as error:
                self._lost(str(error))
                return
            if not data:
                self._lost("connection closed")
                return
            self._input += data
            lines = self._input
            if not lines.endswith(b"\n"):
                continue
            start = lines.rfind(b"\n", 0, -1) + 1
            if lines[start + 3 : start + 4] == b"-":
                continue
            self._input = b""
            handled = self.socket
            self._handler(lines)
            # Only TLS holds more in a buffer that epoll does not see. A handler may have closed, or opened anew.
            if self.plan.tls == "none" or self.socket is not handled or handled.fileno() < 0:
                return

    def _send(self, data: bytes) -> None:
        self._output = memoryview(data)
        self._write()

    def _write(self) -> None:
        try:
            while self._output:
                self._output = self._output[self.socket.send(self._output) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            self.want(select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError as error:
            self._output = memoryview(b"")
            self._lost(str(error))
            return
        self.want(select.EPOLLIN)

    def _lost(self, reason: str) -> None:
        if self._handler != self._goodbye:
            self._refuse(f"{self._handler.__name__.strip('_')}: {reason}")
        self._close()

    def _refuse(self, reason: str) -> None:
        self.plan.refused += 1
        self.plan.first_refusal = self.plan.first_refusal or reason

    def _close(self) -> None:
        self.run.remove(self)
        self.socket.close()
        if self.plan.left > 0 and self.plan.refused < 100:
            self.connect()

    # ------------------------------------------------------------------ what to do next, by what was sent last

    def _connected(self, _reply: bytes) -> None:
        self._start_tls()

    def _start_tls(self) -> None:
        """Go on inside TLS; the registration follows the new socket object, whose descriptor is the same."""
        self.socket = self.plan.context.wrap_socket(
            self.socket, do_handshake_on_connect=False, server_hostname="mx.bench.test"
        )
        self._handler = self._handshake
        self._handshake(b"")

    def _handshake(self, _reply: bytes) -> None:
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.want(select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self.want(select.EPOLLOUT)
        except OSError as error:
            self._lost(str(error))
        else:
            self.want(select.EPOLLIN)
            if self.plan.tls == "implicit":
                self._handler = self._greeting
            else:
                self._handler = self._greeted
                self._send(self._ehlo)

    def _greeting(self, reply: bytes) -> None:
        if self._expect(reply, b"2"):
            starts_tls = self.plan.tls == "starttls"
            self._handler = self._offered if starts_tls else self._greeted
            self._send(self._ehlo)

    def _offered(self, reply: bytes) -> None:
        if self._expect(reply, b"2"):
            self._handler = self._may_start_tls
            self._send(b"STARTTLS\r\n")

    def _may_start_tls(self, reply: bytes) -> None:
        if self._expect(reply, b"2"):
            self._start_tls()

    def _greeted(self, reply: bytes) -> None:
        if self._expect(reply, b"2"):
            self._next_message()

    def _next_message(self) -> None:
        plan = self.plan
        if plan.left <= 0 or (plan.messages_per_connection and self._sent >= plan.messages_per_connection):
            self._handler = self._goodbye
            self._send(b"QUIT\r\n")
            return
        plan.left -= 1
        self._sent += 1
        self._recipient = 0
        self._started = time.monotonic()
        self._handler = self._mail
        self._mail_in_hand = next(plan.mails)
        self._send(b"MAIL FROM:<%s>\r\n" % self._mail_in_hand.reverse_path)

    def _mail(self, reply: bytes) -> None:
        if self._expect(reply, b"2"):
            recipients = self.plan.recipients
            if self._recipient < len(recipients):
                self._recipient += 1
                self._send(b"RCPT TO:<%s>\r\n" % recipients[self._recipient - 1])
            else:
                self._handler = self._data
                self._send(b"DATA\r\n")

    def _data(self, reply: bytes) -> None:
        if self._expect(reply, b"3"):
            self._handler = self._end_of_data
            self._send(self._mail_in_hand.content)

    def _end_of_data(self, reply: bytes) -> None:
        if self._expect(reply, b"2"):
            self.plan.accepted += 1
            now = time.monotonic()
            self.run.latencies_ms.append((now - self._started) * 1000)
            self.run.last_reply = now
            self._next_message()

    def _goodbye(self, _reply: bytes) -> None:
        self._close()

    def _expect(self, reply: bytes, digit: bytes) -> bool:
        if reply[:1] == digit:
            return True
        self._refuse(f"{self._handler.__name__.strip('_')}: {reply.decode('utf-8', 'replace').strip()}")
        self._close()
        return False


class _Run:
    """The sessions of one load and the loop that serves them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoll = select.epoll()
        self.sessions: dict[int, _Session] = {}
        self.latencies_ms: list[float] = []
        self.last_reply = 0.0

    def add(self, session: _Session) -> None:
        self.sessions[session.socket.fileno()] = session
        self.epoll.register(session.socket.fileno(), session.wants)

    def remove(self, session: _Session) -> None:
        self.epoll.unregister(session.socket.fileno())
        del self.sessions[session.socket.fileno()]

    def until_done(self, sessions: int, timeout_seconds: float) -> Outcome:
        started = self.last_reply = time.monotonic()
        deadline = started + timeout_seconds
        for _ in range(sessions):
            _Session(self.plan, self)
        served = self.sessions
        poll = self.epoll.poll
        while served and time.monotonic() < deadline:
            for descriptor, events in poll(1.0):
                session = served.get(descriptor)
                if session is not None:
                    session.ready(events)
        if served:
            self.plan.refused += len(served)
            self.plan.first_refusal = self.plan.first_refusal or "out of time"
        return Outcome(
            started=started,
            ended=self.last_reply,
            accepted=self.plan.accepted,
            refused=self.plan.refused,
            first_refusal=self.plan.first_refusal,
            cpu_seconds=time.process_time(),
            latencies_ms=self.latencies_ms,
        )


def made(size_octets: int, recipient: bytes) -> Iterator[Mail]:
    """Messages with a body of that size; no two are the same."""
    body = body_of(size_octets)
    for number in itertools.count(1):
        content = (
            b"From: <sender@client.test>\r\nTo: <%s>\r\nSubject: message %d\r\n"
            b"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <%d.%d.%d@client.test>\r\n\r\n%s"
            % (recipient, number, os.getpid(), time.time_ns(), number, body)
        )
        yield Mail(b"sender@client.test", content)


def kept(file: Path, skip: int) -> Iterator[Mail]:
    """The messages of a file, again and again, beginning with that one."""
    mails = []
    with file.open("rb") as stream:
        while head := stream.readline():
            said = json.loads(head)
            mails.append(Mail(said["mail"].encode(), stream.read(said["octets"])))
    return itertools.islice(itertools.cycle(mails), skip % len(mails), None)


def body_of(size_octets: int) -> bytes:
    """Lines of base64 of that size in all, which don't compress much, and the end of data."""
    text = base64.b64encode(random.Random(size_octets).randbytes(size_octets * 3 // 4 + 3))
    lines = b"".join(text[start : start + 76] + b"\r\n" for start in range(0, size_octets * 76 // 78, 76))
    return lines[: max(size_octets - 2, 0)].rstrip(b"\r\n") + b"\r\n.\r\n"


@click.command()
@click.option("--host", required=True)
@click.option("--port", type=int, required=True)
@click.option("--sessions", type=int, default=1)
@click.option("--messages", type=int, default=1)
@click.option("--size", "size_octets", type=int, default=4096)
@click.option("--per-connection", type=int, default=1, help="0: as many as there are.")
@click.option("--tls", type=click.Choice(["none", "starttls", "implicit"]), default="none")
@click.option("--recipient", "recipients", multiple=True, required=True, help="'{}' in it is replaced by a number.")
@click.option("--recipients-per-message", type=int, default=0, help="Numbers to put in place of '{}'.")
@click.option(
    "--mail", "mail_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Messages to send."
)
@click.option("--skip", type=int, default=0, help="The messages of that file not to begin with.")
@click.option("--client", "clients", multiple=True, metavar="ADDRESS=NAME", help="Come from there, by that name.")
@click.option("--timeout", "timeout_seconds", type=float, default=60.0)
def main(
    host: str,
    port: int,
    sessions: int,
    messages: int,
    size_octets: int,
    per_connection: int,
    tls: str,
    recipients: tuple[str, ...],
    recipients_per_message: int,
    mail_file: Path | None,
    skip: int,
    clients: tuple[str, ...],
    timeout_seconds: float,
) -> None:
    """Send messages, and print what came of it as JSON."""
    if recipients_per_message:
        recipients = tuple(recipients[0].format(number) for number in range(recipients_per_message))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plan = Plan(
        address=(host, port),
        tls=tls,
        context=context,
        clients=itertools.cycle(
            [(address, name.encode()) for address, _, name in (client.partition("=") for client in clients)]
            or [("", b"client.test")]
        ),
        recipients=tuple(recipient.encode() for recipient in recipients),
        mails=made(size_octets, recipients[0].encode()) if mail_file is None else kept(mail_file, skip),
        messages_per_connection=per_connection,
        left=messages,
    )
    outcome = _Run(plan).until_done(sessions, timeout_seconds)
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
