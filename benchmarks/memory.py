"""The gate's memory: what an idle session holds, and what one message of maximum size takes."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.server import MAILBOX, MANY_MAILBOXES, MANY_MAILBOXES_PATTERN, ServerFailed
from benchmarks.throughput import Case, run_loader

if TYPE_CHECKING:
    from benchmarks.gate import Gate

MAX_MESSAGE_OCTETS = 26_214_400 - 1024  # [limits] message_octets, less the header that the loader adds
_SETTLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class IdleSessions:
    """What idle sessions hold."""

    kind: str  # "plain" or "TLS"
    sessions: int
    kib_each: float


@dataclass(frozen=True, slots=True)
class BigMessage:
    """What one big message takes."""

    recipients: int
    size_mib: float
    base_rss_mib: float
    peak_rss_mib: float
    seconds: float

    @property
    def times_size(self) -> float:
        """How many times its size the peak is above the base."""
        return (self.peak_rss_mib - self.base_rss_mib) / self.size_mib


def raise_open_files(wanted: int) -> int:
    """How many files a process may open from now on: `wanted`, or what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def idle_sessions(gate: Gate, count: int, *, is_tls: bool) -> IdleSessions:
    """Open sessions, say EHLO in each, and see what the gate grew by.

    A tenth of them is opened and kept before the count starts, so that what is allocated once is not counted. The
    gate should be one that has done nothing else: memory that it had freed would take the sessions in.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    clients: list[socket.socket] = []
    try:
        clients += [_greeted(gate, context if is_tls else None) for _ in range(count // 10)]
        time.sleep(_SETTLE_SECONDS)
        before = gate.rss_octets()
        clients += [_greeted(gate, context if is_tls else None) for _ in range(count)]
        time.sleep(_SETTLE_SECONDS)
        grown = gate.rss_octets() - before
    finally:
        for client in clients:
            client.close()
        gc.collect()
    time.sleep(_SETTLE_SECONDS)
    return IdleSessions("TLS" if is_tls else "plain", count, grown / count / 1024)


def big_message(gate: Gate, recipients: int) -> BigMessage:
    """Send one message of maximum size and see the peak."""
    case = Case(MAX_MESSAGE_OCTETS, 1, is_one_per_connection=True, is_tls=False)
    gate.reset_peak()
    before = gate.rss_octets()
    if recipients == 1:
        load = run_loader(gate, case, 1, recipients=(MAILBOX,))
    else:
        many = min(recipients, MANY_MAILBOXES)
        load = run_loader(gate, case, 1, recipients=(MANY_MAILBOXES_PATTERN,), recipients_per_message=many)
    if load.accepted != 1:
        raise ServerFailed(f"{gate.name}: the big message was not accepted: {load.first_refusal}")
    size_mib = MAX_MESSAGE_OCTETS / 2**20
    return BigMessage(recipients, size_mib, before / 2**20, gate.peak_rss_octets() / 2**20, load.ended - load.started)


def _greeted(gate: Gate, context: ssl.SSLContext | None) -> socket.socket:
    """A session that has said EHLO and says no more."""
    port = gate.plain_port if context is None else gate.tls_port
    client = socket.create_connection((gate.host, port), timeout=10)
    with contextlib.ExitStack() as stack:
        stack.callback(client.close)
        if context is not None:
            client = context.wrap_socket(client, server_hostname="mx.bench.test")
        _reply(client)
        client.sendall(b"EHLO client.test\r\n")
        _reply(client)
        stack.pop_all()
    return client


def _reply(client: socket.socket) -> None:
    said = b""
    while not (said.endswith(b"\n") and said[said.rfind(b"\n", 0, -1) + 4 :][:1] == b" "):
        data = client.recv(4096)
        if not data:
            raise ServerFailed(f"an idle session was closed: {said!r}")
        said += data
