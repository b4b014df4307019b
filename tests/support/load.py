"""Clients that keep a mailgate busy the way good mail servers do: what was not answered with 250 is sent again.

Each is a thread with one connection at a time. What it sends and how it behaves follow from a seed.

Standards: RFC 5321 section 4.5.4.1 (sending again), RFC 2920 (pipelining), RFC 3030 (BDAT).
"""

from __future__ import annotations

import random
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.gate import eventually
from tests.support.ledger import SENDER, Letter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.support.ledger import Ledger

_SILENCE_SECONDS = 30.0  # nothing of ours takes that long to answer


class ConnectionEnded(Exception):
    """There is no connection, or no longer one."""


class Client:
    """One SMTP connection that has said EHLO. Replies are their last line, as text."""

    def __init__(
        self, place: int | Path, *, says_hello: bool = True, silence_seconds: float = _SILENCE_SECONDS
    ) -> None:
        """To a port of 127.0.0.1, or a Unix socket. @raises ConnectionEnded: nobody listens, or the server hung up."""
        try:
            self.socket = _connection(place, silence_seconds)
        except OSError as error:
            raise ConnectionEnded(str(error)) from error
        self._lines = self.socket.makefile("rb")
        try:
            self.greeting = self.reply()
            if says_hello and self.greeting.startswith("220"):
                self.say("EHLO client.example.org")
                self.reply()
        except ConnectionEnded:
            self.drop()
            raise

    def say(self, command: str) -> None:
        """Send a command."""
        self.send(command.encode() + b"\r\n")

    def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        try:
            self.socket.sendall(octets)
        except OSError as error:
            raise ConnectionEnded(str(error)) from error

    def reply(self) -> str:
        """The next reply."""
        while True:
            try:
                line = self._lines.readline()
            except OSError as error:
                raise ConnectionEnded(str(error)) from error
            if not line.endswith(b"\r\n"):
                raise ConnectionEnded("the server has hung up")
            if line[3:4] != b"-":
                return line.decode().rstrip()

    def ask(self, command: str) -> str:
        """Send a command and give its reply."""
        self.say(command)
        return self.reply()

    def begin(self, letter: Letter, *, opening: str = "DATA", pipelined: bool = False) -> str:
        """Everything up to the content. The first reply that is not what it should be, or that of `opening`."""
        commands = [f"MAIL FROM:<{SENDER}>", *(f"RCPT TO:<{recipient}>" for recipient in letter.recipients)]
        commands += [opening] if opening else []
        if not pipelined:
            for command in commands:
                answer = self.ask(command)
                if not answer.startswith(("250", "354")):
                    return answer
            return answer
        self.say("\r\n".join(commands))
        answers = [self.reply() for _ in commands]
        if answers[-1].startswith("354") and not all(answer.startswith("250") for answer in answers[:-1]):
            self.drop()  # some recipients would get it, some not: rather none
            raise ConnectionEnded("not for all recipients")
        return next((answer for answer in answers if not answer.startswith(("250", "354"))), answers[-1])

    def drop(self) -> None:
        """Close the connection without a word."""
        self._lines.close()
        self.socket.close()


def _connection(place: int | Path, silence_seconds: float) -> socket.socket:
    if isinstance(place, int):
        return socket.create_connection(("127.0.0.1", place), timeout=silence_seconds)
    local = socket.socket(socket.AF_UNIX)
    local.settimeout(silence_seconds)
    try:
        local.connect(str(place))
    except OSError:
        local.close()
        raise
    return local


def transparent(octets: bytes) -> bytes:
    """The content as DATA carries it, with its end (RFC 5321 section 4.5.2)."""
    stuffed = octets.replace(b"\r\n.", b"\r\n..")
    return (b"." + stuffed if stuffed.startswith(b".") else stuffed) + b".\r\n"


@dataclass(frozen=True, slots=True)
class Habits:
    """How the clients of a load behave: probabilities."""

    drops_before_reply: float = 0.05  # close the connection behind the final dot, and don't wait for the answer
    drops_after_reply: float = 0.1
    quits: float = 0.2
    pipelines: float = 0.5
    chunks: float = 0.2  # BDAT
    large: float = 0.02  # more than is written with others in one batch
    large_octets: int = 1_200_000


class Load:
    """Several clients that send until they are told to stop."""

    def __init__(
        self,
        port: int,
        ledger: Ledger,
        *,
        mailboxes: Sequence[str],
        seed: int,
        clients: int = 8,
        habits: Habits | None = None,
    ) -> None:
        """Nothing is sent before `start`."""
        self._port = port
        self._ledger = ledger
        self._mailboxes = mailboxes
        self._habits = habits or Habits()
        self._is_enough = threading.Event()
        self._is_over = threading.Event()
        self._defects: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._run, args=(f"{seed}-{which}",), daemon=True) for which in range(clients)
        ]

    def start(self) -> Load:
        """Begin to send."""
        for thread in self._threads:
            thread.start()
        return self

    def wait_for(self, letters: int, patience_seconds: float = 60.0) -> None:
        """Return when that many letters more have got 250."""
        wanted = self._ledger.accepted() + letters
        eventually(lambda: self._ledger.accepted() >= wanted, f"{letters} letters more accepted", patience_seconds)

    def finish(self, patience_seconds: float = 60.0) -> None:
        """Write no more letters, and return when all that were written have got 250."""
        self._is_enough.set()
        self._join(patience_seconds)

    def abandon(self) -> None:
        """Stop as if the clients had died: what got no 250 is not sent again."""
        self._is_enough.set()
        self._is_over.set()
        self._join(_SILENCE_SECONDS + 5)

    def _join(self, patience_seconds: float) -> None:
        eventually(
            lambda: self._defects or not any(thread.is_alive() for thread in self._threads),
            "every letter is accepted",
            patience_seconds,
        )
        assert not self._defects, self._defects

    def _run(self, name: str) -> None:
        try:
            _Sender(name, self._port, self._ledger, self._mailboxes, self._habits, self._is_over).send_letters(
                self._is_enough.is_set
            )
        except Exception as error:  # a thread has nobody else to tell
            self._defects.append(error)


class _Sender:
    """One client, with a random source of its own."""

    def __init__(
        self,
        name: str,
        port: int,
        ledger: Ledger,
        mailboxes: Sequence[str],
        habits: Habits,
        is_over: threading.Event,
    ) -> None:
        self._name = name
        self._port = port
        self._ledger = ledger
        self._mailboxes = mailboxes
        self._habits = habits
        self._is_over = is_over
        self._random = random.Random(name)
        self._written = 0
        self._client: Client | None = None

    def send_letters(self, is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            letter = self._letter()
            self._ledger.add(letter)
            while letter.accepted_as is None and not self._is_over.is_set():
                try:
                    is_heard = self._attempt(letter)
                except ConnectionEnded:
                    self._hang_up()
                    is_heard = False
                if not is_heard:
                    self._is_over.wait(self._random.uniform(0.02, 0.2))
        self._hang_up()

    def _attempt(self, letter: Letter) -> bool:
        """Send a letter once; whether it was accepted."""
        habits, chance = self._habits, self._random.random
        client = self._client
        if client is None:
            client = self._client = Client(self._port)
            if not client.greeting.startswith("220"):
                self._ledger.heard(client.greeting)
                self._hang_up()
                return False
        is_chunked = chance() < habits.chunks
        answer = client.begin(letter, opening="" if is_chunked else "DATA", pipelined=chance() < habits.pipelines)
        if not answer.startswith("250" if is_chunked else "354"):
            self._ledger.note(letter, "refused before its content", answer)
            if answer.startswith("421") or not client.ask("RSET").startswith("250"):
                self._hang_up()
            return False
        is_impatient = chance() < habits.drops_before_reply
        try:
            self._send_content(client, letter.octets, is_chunked=is_chunked)
            if is_impatient:
                self._ledger.note(letter, "in doubt")
                self._hang_up()
                return False
            answer = client.reply()
        except ConnectionEnded:
            self._ledger.note(letter, "in doubt")
            raise
        self._ledger.note(letter, "accepted" if answer.startswith("250") else "refused", answer)
        if answer.startswith("421"):
            self._hang_up()
        if not answer.startswith("250"):
            return False
        self._part(client)
        return True

    def _send_content(self, client: Client, octets: bytes, *, is_chunked: bool) -> None:
        if not is_chunked:
            client.send(transparent(octets))
            return
        middle = self._random.randrange(len(octets))
        client.send(b"BDAT %d\r\n%b" % (middle, octets[:middle]))
        answer = client.reply()
        if not answer.startswith("250"):
            self._ledger.heard(answer)
            raise ConnectionEnded("a chunk was refused")
        client.send(b"BDAT %d LAST\r\n%b" % (len(octets) - middle, octets[middle:]))

    def _part(self, client: Client) -> None:
        """What the client does after its 250."""
        mood = self._random.random()
        if mood < self._habits.quits:
            try:
                client.ask("QUIT")
            finally:
                self._hang_up()
        elif mood < self._habits.quits + self._habits.drops_after_reply:
            self._hang_up()

    def _letter(self) -> Letter:
        self._written += 1
        name = f"{self._name}-{self._written}"
        habits, source = self._habits, self._random
        size = habits.large_octets if source.random() < habits.large else int(source.lognormvariate(8, 1))
        lines = []
        while size > 0:
            line = source.choice((b"", b".", b"..", b"From here")) + source.randbytes(30).hex().encode()
            lines.append(line)
            size -= len(line) + 2
        header = f"Message-ID: <{name}@client.example.org>\r\nFrom: <{SENDER}>\r\nSubject: Letter {name}\r\n\r\n"
        recipients = source.sample(self._mailboxes, source.randint(1, min(3, len(self._mailboxes))))
        return Letter(name, tuple(recipients), header.encode() + b"".join(line + b"\r\n" for line in lines))

    def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.drop()
