"""How fast a full queue empties into Postfix's smtp-sink: mailgate, and Postfix itself beside it.

Both have the same messages of about 4 KB in their queue, signed with DKIM already (RSA-2048 and Ed25519), each for a
recipient of its own at one destination. Then they may begin, and the time counts until their queue is empty. mailgate
is one process with its PostgreSQL; Postfix is as it comes, with its 20 connections to a destination. mailgate has as
many. The sink has to have counted each message.

The messages come into mailgate's queue by one transaction, with the functions that accept mail; into Postfix's by SMTP,
while it has no queue manager.
"""

from __future__ import annotations

import shutil
import smtplib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extras import execute_values

from benchmarks.gate import Gate
from benchmarks.machine import make_certificate
from benchmarks.postfix import Postfix
from benchmarks.server import Cpu, LeftOut, ServerFailed, wait_for_greeting
from mailgate.auth.canonical import body_hashes
from mailgate.auth.private_key import generate_key
from mailgate.auth.signer import BODY_FORM, sign
from mailgate.ids import IdGenerator
from mailgate.message import MessageContent
from mailgate.storage.queued import QueueEntry, queue_column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_SINK = ("127.0.0.77", 2526)
_DOMAIN = "sink.test"
_SENDER = "anna@company.example"
_MAX_SECONDS = 300.0
_LOADERS = 20
_ROUTE = f"""
[outbound]
tls = "none"

[[route]]
domains = ["{_DOMAIN}"]
to = "smtp://{_SINK[0]}:{_SINK[1]}"
tls = "none"
"""


@dataclass(frozen=True, slots=True)
class Row:
    """How one queue emptied."""

    what: str
    messages: int
    seconds: float
    cpu: Cpu


def rows(place: Path, messages: int, *, has_postfix: bool) -> list[Row]:
    """Measure mailgate, and then Postfix. `place` is a folder that is made.

    @raises LeftOut, ServerFailed: that can't be.
    """
    place.mkdir()
    place.chmod(0o755)
    mail = [_message(number) for number in range(messages)]
    certificate, key = make_certificate(place, "mx.bench.test")
    found = [_drain_mailgate(place, certificate, key, mail)]
    if has_postfix:
        found.append(_drain_postfix(place, certificate, key, mail))
    return found


def _drain_mailgate(place: Path, certificate: Path, key: Path, mail: Sequence[bytes]) -> Row:
    with (
        _sink(place, len(mail)),
        Gate(place / "gate", certificate, key, mailboxes=("postmaster@bench.test",), more=_ROUTE) as gate,
        closing(psycopg2.connect(gate.dsn)) as database,
    ):
        with database.cursor() as cursor:
            _fill(cursor, mail)
        before = gate.cpu()
        began = time.monotonic()
        database.commit()
        database.autocommit = True

        def left() -> int:
            with database.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM (SELECT FROM mailgate.queue LIMIT 1) AS q")
                return int(cursor.fetchall()[0][0])

        seconds = _wait(left, began)
        after = gate.cpu()
    return Row("mailgate", len(mail), seconds, Cpu(after.server - before.server, after.database - before.database))


def _fill(cursor: psycopg2.extensions.cursor, mail: Sequence[bytes]) -> None:
    ids = IdGenerator(4095, time.time)
    now = time.time()
    stored = [(ids.next(), octets) for octets in mail]
    execute_values(
        cursor,
        "INSERT INTO mailgate.message (id, received_at, reverse_path, trace, content, size_octets, sha256) VALUES %s",
        [(identifier, _SENDER, octets, len(octets), octets) for identifier, octets in stored],
        "(%s, now(), %s, '', %s, %s, sha256(%s))",
        page_size=200,
    )
    entries = [
        QueueEntry(
            message_id=identifier,
            recipient=f"bob{identifier}@{_DOMAIN}",
            reverse_path=_SENDER,
            sender=_SENDER,
            size_octets=len(octets),
            created_at=now,
        )
        for identifier, octets in stored
    ]
    cursor.execute(f"SELECT mailgate.enqueue({queue_column(entries)}, '{{}}')")


def _drain_postfix(place: Path, certificate: Path, key: Path, mail: Sequence[bytes]) -> Row:
    parameters = (
        f"relay_domains = {_DOMAIN}",
        f"transport_maps = inline:{{ {_DOMAIN}=smtp:[{_SINK[0]}]:{_SINK[1]} }}",
        "in_flow_delay = 0",
    )
    postfix = Postfix(place / "postfix", certificate, key, parameters)
    postfix.stop_queue()
    with _sink(place, len(mail)), postfix:
        with ThreadPoolExecutor(_LOADERS) as loaders:
            for _ in loaders.map(lambda start: _load(postfix, mail[start::_LOADERS], start), range(_LOADERS)):
                pass
        queued = postfix.queued()
        if queued != len(mail):
            raise ServerFailed(f"Postfix has {queued} of {len(mail)} messages in its queue")
        before = postfix.cpu()
        began = time.monotonic()
        postfix.start_queue()
        seconds = _wait(postfix.queued, began)
        after = postfix.cpu()
    return Row("Postfix", len(mail), seconds, Cpu(after.server - before.server, 0.0))


def _load(postfix: Postfix, mail: Sequence[bytes], start: int) -> None:
    with smtplib.SMTP(postfix.host, postfix.plain_port) as client:
        for number, octets in enumerate(mail):
            client.sendmail(_SENDER, f"bob{start + number * _LOADERS}@{_DOMAIN}", octets)


def _wait(left: Callable[[], int], began: float) -> float:
    """Seconds until nothing is left."""
    while left():
        seconds = time.monotonic() - began
        if seconds > _MAX_SECONDS:
            raise ServerFailed(f"the queue did not empty within {_MAX_SECONDS:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


@contextmanager
def _sink(place: Path, expected: int) -> Iterator[None]:
    """Postfix's sink.

    @raises LeftOut: it is not installed.
    @raises ServerFailed: it has counted fewer messages than were expected, or more.
    """
    program = shutil.which("smtp-sink")
    if program is None:
        raise LeftOut("smtp-sink is not installed")
    counters = place / "sink"
    with counters.open("wb") as output:
        process = subprocess.Popen([program, "-c", "-u", "nobody", f"{_SINK[0]}:{_SINK[1]}", "1000"], stdout=output)
    try:
        if not wait_for_greeting(*_SINK, 10):
            raise ServerFailed("smtp-sink does not answer")
        yield
    finally:
        process.terminate()
        process.wait()
    counted = int(counters.read_bytes().rpartition(b"mesg=")[2] or 0)
    if counted != expected:
        raise ServerFailed(f"the sink has counted {counted} of {expected} messages")


_keys = (generate_key("company.example", "r", "rsa"), generate_key("company.example", "e", "ed25519"))


def _message(number: int) -> bytes:
    header = (
        b'From: "Anna Smith" <anna@company.example>\r\nTo: Bob <bob@sink.test>\r\n'
        b"Subject: The figures of the quarter\r\n"
        b"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <%d.1@company.example>\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n" % number
    )
    body = b"Every line of this text says about as much as the one before it, %d.\r\n" % number
    body *= (4096 - len(header)) // len(body)
    octets = header + b"\r\n" + body
    content = MessageContent([octets], len(octets), b"")
    return sign(content.header(), body_hashes(content, (BODY_FORM,)), _keys, time.time()) + octets
