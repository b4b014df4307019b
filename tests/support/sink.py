"""A mail server that takes what it is given, writes down what it took, and breaks its connections where it is told to.

It runs in threads of the test, so that it outlives every process under test. For each message it knows whether its
client can know: `Taking.is_doubtful` where the connection was broken behind the final dot before 250 had surely got
through. Everybody else must not send that message again.

Standards: RFC 5321 section 4.2.5 (250 behind the final dot), section 4.1.1.4 (transparency), RFC 1047 (duplicates).
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import BinaryIO

# Where a connection can break: before the greeting, the reply to a command, inside of the content, between the final
# dot and its reply, and behind that reply.
Phase = Literal["greeting", "EHLO", "MAIL", "RCPT", "DATA", "content", "dot", "reply"]
PHASES: tuple[Phase, ...] = get_args(Phase)
_SILENCE_SECONDS = 120.0
_LETTER = re.compile(rb"^X-Letter: ", re.MULTILINE)


class Fault(Enum):
    """How it breaks."""

    CUT = "the connection is closed"
    RESET = "the connection is reset, with whatever is on its way"
    STALL = "nothing is said any more"
    BUSY = "421, and the connection is closed"


@dataclass(frozen=True, slots=True)
class Conduct:
    """How the server behaves. Probabilities, each time that the phase is reached."""

    faults: tuple[tuple[Phase, Fault, float], ...] = ()
    greylists: float = 0.0  # of recipients it has not seen
    pause_seconds: float = 0.0  # before a reply, at most
    cuts_each_elsewhere: bool = False  # connection N is closed behind N octets of replies


@dataclass(slots=True)
class Connection:
    """A connection, as the server saw it."""

    client: str  # its IP address
    opened_at: float  # by time.monotonic()
    ending: str = ""  # empty while it is there


@dataclass(slots=True)
class Taking:
    """A message that was taken for one recipient."""

    recipient: str
    reverse_path: str
    sha256: str  # of the content from its X-Letter field on
    connection: Connection
    taken_at: float  # when the final dot was there, by time.monotonic()
    is_doubtful: bool = False


class _Broken(Exception):
    """The connection ends here; the text says how."""


class Sink:
    """Listens on an address of the loopback while in its `with`."""

    def __init__(self, host: str, port: int = 0, *, conduct: Conduct | None = None, seed: int = 1) -> None:
        """Recipients whose local part starts with `gone` are refused with 550. The conduct may be changed any time."""
        self.conduct = conduct or Conduct()
        self.takings: list[Taking] = []
        self.connections: list[Connection] = []
        self.host = host
        self._seed = seed
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listening = socket.create_server((host, port), backlog=100)
        self.port: int = self._listening.getsockname()[1]
        self._defects: list[Exception] = []

    def __enter__(self) -> Sink:
        threading.Thread(target=self._accept, name="sink", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # close alone would not wake the thread
        self._listening.close()
        with self._lock:
            sockets = tuple(self._sockets)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        assert not self._defects, self._defects

    def _accept(self) -> None:
        while True:
            try:
                client, (address, _) = self._listening.accept()
            except OSError:
                return
            connection = Connection(address, time.monotonic())
            with self._lock:
                number = len(self.connections)
                self.connections.append(connection)
                self._sockets.add(client)
            source = random.Random(f"{self._seed}-{self.host}-{number}")
            octets_left = number if self.conduct.cuts_each_elsewhere else None
            session = _Session(self, client, connection, source, octets_left)
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session: _Session) -> None:
        client, connection = session.client, session.connection
        try:
            with client, client.makefile("rb") as lines:
                client.settimeout(_SILENCE_SECONDS)
                session.run(lines)
        except _Broken as broken:
            connection.ending = str(broken)
        except OSError as error:
            connection.ending = f"the client was gone ({error})"
        except Exception as error:  # a thread has nobody else to tell
            self._defects.append(error)
        finally:
            with self._lock:
                self._sockets.discard(client)

    def is_new(self, recipient: str) -> bool:
        """Whether this recipient was never asked for."""
        with self._lock:
            is_new = recipient not in self._seen
            self._seen.add(recipient)
            return is_new

    def take(self, takings: list[Taking]) -> None:
        """Write down what there is now."""
        with self._lock:
            self.takings += takings


@dataclass(slots=True)
class _Session:
    """One connection, in a thread of its own."""

    sink: Sink
    client: socket.socket
    connection: Connection
    random: random.Random
    octets_left: int | None  # of replies, until the connection is closed; None: it is not
    reverse_path: str = ""
    recipients: list[str] = field(default_factory=list)

    def run(self, lines: BinaryIO) -> None:
        self._perhaps("greeting")
        self._say("220 sink.test ESMTP")
        while True:
            line = lines.readline()
            if not line.endswith(b"\r\n"):
                raise _Broken("the client hung up")
            verb, _, argument = line.decode("ascii").rstrip().partition(" ")
            match verb.upper():
                case "EHLO":
                    self._perhaps("EHLO")
                    self._say("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES")
                case "MAIL":
                    self._perhaps("MAIL")
                    self.reverse_path, self.recipients = _path(argument), []
                    self._say("250 2.1.0 Ok")
                case "RCPT":
                    self._perhaps("RCPT")
                    self._recipient(_path(argument))
                case "DATA":
                    self._perhaps("DATA")
                    if not self.recipients:
                        self._say("554 5.5.1 For nobody")
                        continue
                    self._say("354 Go ahead")
                    self._content(_content_from(lines, self._perhaps))
                case "RSET":
                    self._say("250 2.0.0 Ok")
                case "QUIT":
                    self._say("221 2.0.0 Bye")
                    raise _Broken("the client said QUIT")
                case _:
                    self._say("502 5.5.1 What?")

    def _recipient(self, recipient: str) -> None:
        if recipient.startswith("gone"):
            self._say("550 5.1.1 No such user")
        elif self.sink.is_new(recipient) and self.random.random() < self.sink.conduct.greylists:
            self._say("451 4.7.1 Greylisted")
        else:
            self.recipients.append(recipient)
            self._say("250 2.1.5 Ok")

    def _content(self, content: bytes) -> None:
        now = time.monotonic()
        letter = _LETTER.search(content)
        sha256 = hashlib.sha256(content[letter.start() :] if letter else content).hexdigest()
        takings = [Taking(each, self.reverse_path, sha256, self.connection, now) for each in self.recipients]
        fault = self._fault("dot")
        if fault is Fault.BUSY:
            self._break("dot", fault)
        after = self._fault("reply") if fault is None else None
        reply = "250 2.0.0 Taken"
        for taking in takings:
            taking.is_doubtful = fault is not None or after is Fault.RESET or self._is_too_long(reply)
        self.sink.take(takings)
        if fault is not None:
            self._break("dot", fault)
        self._say(reply)
        if after is Fault.CUT:
            # In order: what is unread when a socket is closed would make a reset of it, which overtakes the 250.
            self.client.shutdown(socket.SHUT_WR)
            self._wait_for_the_end()
            raise _Broken(f"reply: {after.value}")
        if after is not None:
            self._break("reply", after)

    def _say(self, reply: str) -> None:
        pause = self.sink.conduct.pause_seconds
        if pause:
            time.sleep(self.random.uniform(0, pause))
        octets = reply.encode() + b"\r\n"
        if self._is_too_long(reply):
            self.client.sendall(octets[: self.octets_left])
            raise _Broken(f"behind some octets: {Fault.CUT.value}")
        if self.octets_left is not None:
            self.octets_left -= len(octets)
        self.client.sendall(octets)

    def _is_too_long(self, reply: str) -> bool:
        return self.octets_left is not None and len(reply) + 2 > self.octets_left

    def _perhaps(self, phase: Phase) -> None:
        fault = self._fault(phase)
        if fault is not None:
            self._break(phase, fault)

    def _fault(self, phase: Phase) -> Fault | None:
        for where, fault, probability in self.sink.conduct.faults:
            if where == phase and self.random.random() < probability:
                return fault
        return None

    def _break(self, phase: Phase, fault: Fault) -> None:
        match fault:
            case Fault.BUSY:
                self.client.sendall(b"421 4.3.2 Busy, come back later\r\n")
            case Fault.RESET:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case Fault.STALL:
                self._wait_for_the_end()
            case Fault.CUT:
                pass
        raise _Broken(f"{phase}: {fault.value}")

    def _wait_for_the_end(self) -> None:
        with suppress(OSError):
            while self.client.recv(65536):
                pass


def _path(argument: str) -> str:
    return argument.partition("<")[2].partition(">")[0]


def _content_from(lines: BinaryIO, perhaps: Callable[[Phase], None]) -> bytes:
    content = []
    while (line := lines.readline()) != b".\r\n":
        if not line.endswith(b"\r\n"):
            raise _Broken("the client hung up inside of the content")
        content.append(line[1:] if line.startswith(b".") else line)
        if len(content) == 1:
            perhaps("content")
    return b"".join(content)
