"""The ledger of mail on its way out: what nodes accepted, what hosts took, and whether the two agree.

The promise under test: a message that got 250 is delivered to every recipient, or its sender is told, once; it is
delivered again only where nobody could know that it had been: its connection was broken behind the final dot, or the
node died before it had written down what came of it.

Every recipient's address is used once, so that it names the message too.

Standards: RFC 5321 section 4.2.5 and 6.1 (what 250 means), RFC 1047 (duplicates), RFC 3464 section 2.3.2.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import postgres
from tests.support.gate import Gate, eventually
from tests.support.load import Client, ConnectionEnded, transparent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.name_server import NameServer
    from tests.support.sink import Sink, Taking

SENDER = "alice@example.test"
_SETTLING_SECONDS = 5.0  # within that time what came of a message is written, on a machine that is busy
_RETURNING_SECONDS = 15.0  # and within that time more where the database was away
_FINAL_RECIPIENT = re.compile(r"^Final-Recipient: rfc822; ?(\S+)\r?\nAction: failed\r?$", re.MULTILINE | re.IGNORECASE)


# ---------------------------------------------------------------- nodes


@dataclass(slots=True)
class _Life:
    """One process of a node. Times by time.monotonic()."""

    started_at: float
    killed_at: float | None = None


class Node:
    """A mailgate that shares a queue, and has an address of its own to send from."""

    def __init__(self, address: str, *, dsn: str, log: Path, hosts: Hosts, settings: str) -> None:
        """`settings` are more keys of [outbound]."""
        self.address = address
        self.lives: list[_Life] = []
        self._dsn = dsn
        # Not pytest's folder: its names are too long for a socket's.
        self._folder = tempfile.TemporaryDirectory(prefix="mg-")
        self.door = Path(self._folder.name) / "door"
        self.gate = Gate(
            log=log,
            mailboxes=(SENDER,),
            dsn=dsn,
            settings=f"""
[listener.door]
role = "submission"
tls = "none"
endpoints = ["unix:{self.door}:mode=666"]
[submission]
messages_per_day = 1000000
recipients_per_day = 1000000
local_users = {{ {os.getuid()} = "{SENDER}" }}
[signing]
dkim = false
arc = false
srs = false
[dns]
servers = ["{hosts.dns.host}:{hosts.dns.port}"]
[shutdown]
seconds = 20.0
[outbound]
port = {hosts.port}
source_addresses = ["{address}"]
allows_private_addresses = true
tls = "none"
mta_sts = false
first_retry_seconds = 1
{settings}
""",
        )

    def lead_to_database(self, dsn: str) -> None:
        """Have it go that way from its next start on."""
        config = self.gate.config_path
        config.write_text(config.read_text().replace(self._dsn, dsn))
        self._dsn = dsn

    def start(self) -> None:
        """Begin a life."""
        self.lives.append(_Life(time.monotonic()))
        self.gate.start()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.gate.kill()
        self.lives[-1].killed_at = time.monotonic()

    def close(self) -> None:
        """End everything of it."""
        self.gate.close()
        self._folder.cleanup()

    def life_of(self, moment: float) -> _Life:
        """The life that a connection belongs to that was opened then."""
        return max((life for life in self.lives if life.started_at <= moment), key=lambda life: life.started_at)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where the mail goes: a DNS, and the port at which the hosts in it listen."""

    dns: NameServer
    port: int
    sinks: tuple[Sink, ...]

    def takings(self) -> list[Taking]:
        """All of them, in order of time."""
        return sorted((taking for sink in self.sinks for taking in tuple(sink.takings)), key=lambda each: each.taken_at)


# ---------------------------------------------------------------- letters


@dataclass(slots=True)
class Sent:
    """A message that was handed in; `is_accepted` None where nobody knows."""

    recipients: tuple[str, ...]
    sha256: str
    is_accepted: bool | None = None


@dataclass(slots=True)
class Dispatch:
    """All that was handed in, and where the accounts are."""

    dsn: str
    nodes: Sequence[Node]
    hosts: Hosts
    sent: list[Sent] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)  # of the database, by time.monotonic()

    def accepted(self) -> int:
        """How many messages got 250."""
        return sum(sent.is_accepted is True for sent in tuple(self.sent))

    def taken(self) -> int:
        """How often a message was taken for a recipient."""
        return sum(len(sink.takings) for sink in self.hosts.sinks)

    def queued(self) -> int:
        """How many recipients wait."""
        ((count,),) = postgres.query(self.dsn, "SELECT count(*) FROM mailgate.queue")
        assert isinstance(count, int)
        return count

    def wait_until_drained(self, patience_seconds: float = 60.0) -> None:
        """Return when nothing is left in the queue."""
        deadline = time.monotonic() + patience_seconds
        while self.queued():
            assert time.monotonic() < deadline, postgres.query(self.dsn, _LEFT)
            time.sleep(0.05)

    def retry_all(self) -> None:
        """What an operator does who wants every destination tried now, and tells the nodes so."""
        for sql in (
            "DELETE FROM mailgate.destination",
            "UPDATE mailgate.queue SET due_at = now() WHERE leased_by IS NULL",
            "SELECT pg_notify('queue', 'destination')",
        ):
            postgres.query(self.dsn, sql)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The database is away inside."""
        began = time.monotonic()
        yield
        self.outages.append((began, time.monotonic()))

    def hand_in(self, node: Node, *recipients: str) -> None:
        """Hand in a message of its own for each of these recipients; all have to be accepted."""
        client = Client(node.door)
        for recipient in recipients:
            name = recipient.replace("@", ".")
            hand_in(self, client, (recipient,), _letter(name, random.Random(name)))
        client.drop()

    # ------------------------------------------------------------ whether they agree

    def duplicates(self) -> list[Taking]:
        """What was taken though it was sent again later."""
        last = {taking.recipient: taking for taking in self.hosts.takings()}
        return [taking for taking in self.hosts.takings() if taking is not last[taking.recipient]]

    def summary(self) -> str:
        """The numbers, for people."""
        endings = Counter(each.ending for sink in self.hosts.sinks for each in sink.connections if ": " in each.ending)
        duplicates = self.duplicates()
        doubtful = sum(taking.is_doubtful for taking in duplicates)
        unknown = sum(sent.is_accepted is None for sent in self.sent)
        recipients = [recipient for sent in self.sent if sent.is_accepted for recipient in sent.recipients]
        return (
            f"{len(self.sent)} messages handed in, {unknown} of them without an answer; {len(recipients)} recipients\n"
            f"{self.taken()} taken, {sum(self._told().values())} failures told\n"
            f"{len(duplicates)} second copies: {doubtful} behind a broken connection,"
            f" {len(duplicates) - doubtful} of nodes that died\n"
            f"connections broken: {dict(endings)}"
        )

    def findings(self) -> list[str]:
        """Where the promise is broken; empty where it is kept."""
        by_recipient = {recipient: sent for sent in self.sent for recipient in sent.recipients}
        takings = self.hosts.takings()
        taken = {taking.recipient for taking in takings}
        told = self._told()
        settled = self._settled()
        findings = []
        for taking in takings:
            sent = by_recipient.get(taking.recipient)
            if sent is None:
                findings.append(f"nobody has sent anything to {taking.recipient}")
            elif taking.sha256 != sent.sha256:
                findings.append(f"{taking.recipient} got something else than was sent")
        for recipient, sent in by_recipient.items():
            is_gone = recipient.startswith("gone")
            if sent.is_accepted and not is_gone and recipient not in taken:
                findings.append(f"{recipient} is lost")
            if told[recipient] > is_gone or (is_gone and sent.is_accepted and not told[recipient]):
                findings.append(f"of {recipient} the sender was told {told[recipient]} times")
            wanted = {("failed" if is_gone else "delivered"): 1}
            if settled.get(recipient, {}) != wanted and (sent.is_accepted or recipient in settled):
                findings.append(f"of {recipient} it is written that it was {settled.get(recipient)}")
        findings += [
            f"{taking.recipient} got it again, though {taking.connection.client} could know: {taking}"
            for taking in self.duplicates()
            if not taking.is_doubtful and not self._died_with(taking)
        ]
        return findings

    def _died_with(self, taking: Taking) -> bool:
        """Whether the node was killed before it must have written that down."""
        node = next(node for node in self.nodes if node.address == taking.connection.client)
        killed_at = node.life_of(taking.connection.opened_at).killed_at
        if killed_at is None:
            return False
        seconds = killed_at - taking.taken_at
        for began, ended in self.outages:
            seconds -= max(min(ended + _RETURNING_SECONDS, killed_at) - max(began, taking.taken_at), 0.0)
        return seconds < _SETTLING_SECONDS

    def _told(self) -> Counter[str]:
        """How many notices of failure there are for each recipient."""
        rows = postgres.query(self.dsn, _NOTICES)
        return Counter(each for (content,) in rows for each in _FINAL_RECIPIENT.findall(_text(content)))

    def _settled(self) -> dict[str, dict[str, int]]:
        """How often each recipient was written down as delivered, failed or expired."""
        settled: dict[str, dict[str, int]] = {}
        for recipient, result, count in postgres.query(self.dsn, _SETTLED):
            assert isinstance(recipient, str)
            assert isinstance(result, str)
            assert isinstance(count, int)
            settled.setdefault(recipient, {})[result] = count
        return settled


_LEFT = """
SELECT q.recipient, q.is_ready, q.due_at - now() AS due_in, q.leased_by, q.leased_until - now() AS leased_for,
       mailgate.instance_is_alive(q.leased_by), q.attempts, q.last_reply, d.*
FROM mailgate.queue q LEFT JOIN mailgate.destination d ON d.name = q.domain
ORDER BY q.id LIMIT 10
"""
_NOTICES = """
SELECT m.content FROM mailgate.message m WHERE m.reverse_path = ''
    AND EXISTS (SELECT FROM mailgate.delivery d WHERE d.message_id = m.id)
"""
_SETTLED = "SELECT recipient, result, count(*) FROM mailgate.attempt WHERE result <> 'deferred' GROUP BY 1, 2"


def _text(content: object) -> str:
    assert isinstance(content, memoryview)
    return bytes(content).decode("utf-8", "replace")


# ---------------------------------------------------------------- handing in


class Programs:
    """Some programs that hand in mail, over the Unix sockets of whichever node is there, until they are told to stop.

    What got no 250 is not sent again: that would be another message.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        *,
        domains: Sequence[str],
        seed: int,
        programs: int = 2,
        gone: float = 0.0,
        pause_seconds: float = 0.0,
    ) -> None:
        """`gone` is the part of recipients that no host knows, `pause_seconds` the longest time between messages."""
        self._dispatch = dispatch
        self._domains = domains
        self._gone = gone
        self._pause_seconds = pause_seconds
        self._is_enough = threading.Event()
        self._defects: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._run, args=(f"{seed}-{number}",), daemon=True) for number in range(programs)
        ]

    def start(self) -> Programs:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def wait_for(self, messages: int, patience_seconds: float = 60.0) -> None:
        """Return when so many more have got 250."""
        wanted = self._dispatch.accepted() + messages
        eventually(
            lambda: self._defects or self._dispatch.accepted() >= wanted, f"{messages} more accepted", patience_seconds
        )
        assert not self._defects, self._defects

    def finish(self) -> None:
        """Hand in no more."""
        self._is_enough.set()
        for thread in self._threads:
            thread.join(60)
        assert not self._defects, self._defects

    def _run(self, name: str) -> None:
        source = random.Random(name)
        try:
            self._hand_in(name, source, self._is_enough.is_set)
        except Exception as error:  # a thread has nobody else to tell
            self._defects.append(error)

    def _hand_in(self, name: str, source: random.Random, is_enough: Callable[[], bool]) -> None:
        client: Client | None = None
        number = 0
        while not is_enough():
            number += 1
            try:
                if client is None:
                    client = Client(source.choice(self._dispatch.nodes).door)
                self._send(client, f"{name}-{number}", source)
            except ConnectionEnded:
                if client is not None:
                    client.drop()
                client = None
                self._is_enough.wait(0.05)
            if self._pause_seconds:
                self._is_enough.wait(source.uniform(0, self._pause_seconds))
        if client is not None:
            client.drop()

    def _send(self, client: Client, name: str, source: random.Random) -> None:
        recipients = tuple(
            f"{'gone' if source.random() < self._gone else 'to'}-{name}-{number}@{source.choice(self._domains)}"
            for number in range(source.randint(1, 3))
        )
        hand_in(self._dispatch, client, recipients, _letter(name, source))


def hand_in(dispatch: Dispatch, client: Client, recipients: tuple[str, ...], octets: bytes) -> None:
    """Hand in one message. @raises ConnectionEnded: it was not accepted, or nobody knows."""
    commands = [f"MAIL FROM:<{SENDER}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"]
    client.say("\r\n".join(commands))
    answers = [client.reply() for _ in commands]
    refusal = next((answer for answer in answers if not answer.startswith(("250", "354"))), None)
    if refusal is not None:
        assert refusal[:3] in ("421", "451"), answers  # nobody may hear that such a message can't be sent
        raise ConnectionEnded(refusal)
    sent = Sent(recipients, hashlib.sha256(octets).hexdigest())
    dispatch.sent.append(sent)
    client.send(transparent(octets))
    answer = client.reply()
    if not answer.startswith("250"):
        assert answer[:3] in ("421", "451"), answer
        raise ConnectionEnded(answer)  # 451 may be a COMMIT that nobody knows of
    sent.is_accepted = True


def _letter(name: str, source: random.Random) -> bytes:
    lines = [
        f"X-Letter: {name}",
        f"From: <{SENDER}>",
        "Date: Mon, 02 Mar 2026 09:00:00 +0000",
        f"Message-ID: <{name}@example.test>",
        f"Subject: Letter {name}",
        "",
    ]
    lines += [
        source.choice(("", ".", "..", "From ")) + source.randbytes(30).hex() for _ in range(source.randint(1, 60))
    ]
    return "\r\n".join([*lines, ""]).encode()
