"""Messages a second, CPU a message, latency, memory and stalls, for one kind of load after another.

Both servers get the same work in turn. A message counts when it is stored: a row in PostgreSQL, a file in a maildir;
a server that has answered 250 for all and still works on its queue is waited for, and its time runs on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import StallProbe, machine_busy_seconds, settle
from benchmarks.server import MAILBOX, ServerFailed
from benchmarks.signed_mail import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.server import Server
    from benchmarks.signed_mail import MailFile

ROOT = Path(__file__).parent.parent
_STORED_POLL_SECONDS = 0.03
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    size_octets: int
    sessions: int
    is_one_per_connection: bool
    is_tls: bool
    is_target: bool = False  # one that a goal is set for: measured in several rounds
    is_checked: bool = False  # SPF, DKIM, ARC and DMARC, on signed mail
    is_cold: bool = False  # each message from a domain that was never heard of

    @property
    def name(self) -> str:
        """What --only takes."""
        if self.is_checked:
            return f"auth-{self._size}-{self.sessions}" + ("-cold" if self.is_cold else "")
        return "-".join(
            (
                self._size,
                str(self.sessions),
                "one" if self.is_one_per_connection else "many",
                "tls" if self.is_tls else "plain",
            )
        )

    @property
    def _size(self) -> str:
        if self.size_octets >= 1_000_000:
            return f"{self.size_octets // 1_000_000}MB"
        return f"{self.size_octets // 1024}KB"


_TARGETS = {"4KB-20-one-plain", "4KB-200-one-plain", "4KB-20-many-plain", "100KB-20-one-plain"}


def cases() -> Iterator[Case]:
    """All of them: sizes, sessions, one or many messages a connection, plain and TLS."""
    for is_tls in (False, True):
        for size_octets in (4096, 102_400):
            for sessions in (1, 20, 200):
                for is_one in (True, False):
                    case = Case(size_octets, sessions, is_one, is_tls)
                    yield Case(size_octets, sessions, is_one, is_tls, case.name in _TARGETS)


def checked_cases() -> Iterator[Case]:
    """Signed mail through the full chain, one message a connection."""
    for size_octets, sessions in ((4096, 20), (4096, 200), (102_400, 20)):
        yield Case(size_octets, sessions, True, False, is_target=True, is_checked=True)
    yield Case(4096, 20, True, False, is_checked=True, is_cold=True)
    yield Case(10_000_000, 1, True, False, is_checked=True)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one server did with one load."""

    server: str
    load: str  # the program that loaded
    messages: int
    accepted_per_second: float
    stored_per_second: float
    server_cpu_ms: float  # a message
    database_cpu_ms: float  # a message
    load_cpu_ms: float  # a message; of the load generator, which shares the machine
    peak_rss_mib: float
    others_share: float  # of the machine, used by whatever else runs: a high one spoils the figures


@dataclass(frozen=True, slots=True)
class Latency:
    """How long clients waited, by a loader that keeps each message's time."""

    messages: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    stall_ms: float | None  # the longest that NOOP waited in a session beside them
    control_ms: float | None  # the same, of a process that only echoes


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator said."""

    started: float  # by the monotonic clock
    ended: float
    cpu_seconds: float
    accepted: int
    first_refusal: str
    latencies_ms: list[float]


def load_program(case: Case, wanted: str = "auto") -> str:
    """The program that loads: smtp-source where it is installed and speaks what the case asks, else our own."""
    if wanted == "auto":
        return "smtp-source" if shutil.which("smtp-source") and not case.is_tls else "own"
    return wanted


def measure(server: Server, case: Case, messages: int, program: str, mail: MailFile | None = None) -> Figures:
    """The figures of one run. `mail` is what our own loader sends.

    @raises ServerFailed: not all messages were stored.
    """
    server.tidy()
    settle()
    server.reset_peak()
    stored_before, cpu_before = server.stored(), server.cpu()
    began, busy_before = time.monotonic(), machine_busy_seconds()
    if program == "smtp-source":
        load = _run_smtp_source(server, case, messages)
    else:
        load = run_loader(server, case, messages, mail)
    ended = load.ended
    missing = stored_before + messages - server.stored()
    deadline = ended + _TIMEOUT_SECONDS
    while missing > 0 and (ended := time.monotonic()) < deadline and not load.first_refusal:
        time.sleep(_STORED_POLL_SECONDS)
        missing = stored_before + messages - server.stored()
    busy, took = machine_busy_seconds() - busy_before, time.monotonic() - began
    cpu = server.cpu()
    accounted = cpu.server - cpu_before.server + cpu.database - cpu_before.database + load.cpu_seconds
    if missing > 0:
        raise ServerFailed(f"{server.name}: {missing} of {messages} messages not stored. {load.first_refusal}")
    return Figures(
        server=server.name,
        load=program,
        messages=messages,
        accepted_per_second=messages / (load.ended - load.started),
        stored_per_second=messages / (ended - load.started),
        server_cpu_ms=(cpu.server - cpu_before.server) * 1000 / messages,
        database_cpu_ms=(cpu.database - cpu_before.database) * 1000 / messages,
        load_cpu_ms=load.cpu_seconds * 1000 / messages,
        peak_rss_mib=server.peak_rss_octets() / 2**20,
        others_share=max(busy - accounted, 0.0) / took / (os.cpu_count() or 1),
    )


def measure_latency(server: Server, case: Case, messages: int, mail: MailFile | None = None) -> Latency:
    """What clients wait for, from MAIL to the 250 at the end of data."""
    server.tidy()
    settle()
    with StallProbe((server.host, server.plain_port)) if server.answers_noop else contextlib.nullcontext() as probe:
        load = run_loader(server, case, messages, mail)
    if not load.latencies_ms:
        raise ServerFailed(f"{server.name}: no message was accepted. {load.first_refusal}")
    waits = sorted(load.latencies_ms)
    return Latency(
        messages=len(waits),
        p50_ms=waits[len(waits) // 2],
        p99_ms=waits[len(waits) * 99 // 100],
        max_ms=waits[-1],
        stall_ms=probe.longest_ms if probe is not None else None,
        control_ms=probe.control_ms if probe is not None else None,
    )


def run_loader(
    server: Server,
    case: Case,
    messages: int,
    mail: MailFile | None = None,
    *,
    recipients: tuple[str, ...] = (MAILBOX,),
    recipients_per_message: int = 0,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> Load:
    """Load with our own program: `mail` from clients that it is allowed from, or messages that it makes itself.

    @raises ServerFailed: it did not end.
    """
    command = [
        *(sys.executable, "-m", "benchmarks.loader", "--host", server.host),
        *("--port", str(server.tls_port if case.is_tls else server.plain_port)),
        *("--tls", "implicit" if case.is_tls else "none"),
        *("--sessions", str(case.sessions), "--messages", str(messages), "--size", str(case.size_octets)),
        *("--per-connection", "1" if case.is_one_per_connection else "0"),
        *("--recipients-per-message", str(recipients_per_message), "--timeout", str(timeout_seconds)),
    ]
    for recipient in recipients:
        command += ["--recipient", recipient]
    if mail is not None:
        command += ["--mail", str(mail.path), "--skip", str(mail.skip)]
        for address, name in CLIENTS:
            command += ["--client", f"{address}={name}"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=timeout_seconds + 10, check=True)
    except subprocess.SubprocessError as error:
        raise ServerFailed(f"{server.name}: the load did not end: {error}") from error
    said = json.loads(done.stdout)
    return Load(
        started=said["started"],
        ended=said["ended"],
        cpu_seconds=said["cpu_seconds"],
        accepted=said["accepted"],
        first_refusal=said["first_refusal"],
        latencies_ms=said["latencies_ms"],
    )


def _run_smtp_source(server: Server, case: Case, messages: int) -> Load:
    command = ["smtp-source", "-s", str(case.sessions), "-m", str(messages), "-l", str(case.size_octets)]
    command += ["-M", "client.test", "-f", "sender@client.test", "-t", MAILBOX, "-C", "10"]
    if not case.is_one_per_connection:
        command.append("-d")
    before = os.times()
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*command, f"{server.host}:{server.plain_port}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"{server.name}: smtp-source did not end in {_TIMEOUT_SECONDS:.0f} s") from None
    ended = time.monotonic()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(started, ended, cpu, messages if done.returncode == 0 else 0, done.stderr.strip()[:300], [])
