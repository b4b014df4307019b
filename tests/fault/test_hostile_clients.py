"""Clients that are slow, silent or hostile cost the others nothing, and don't stay.

Standards: RFC 5321 section 4.5.3.2 (time-outs).
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.gate import Gate, eventually
from tests.support.ledger import Ledger, Letter
from tests.support.load import Client, ConnectionEnded, Load, transparent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAILBOXES = ("alice@example.test", "carol@example.test", "dave@example.test")
SETTINGS = """
[limits]
sessions_per_network = 500
command_seconds = 4.0
data_seconds = 4.0
transaction_seconds = 6.0
goodbye_seconds = 1.0
"""
MEBIBYTE = 1024 * 1024


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES, settings=SETTINGS)
    gate.start()
    yield gate
    gate.close()


def test_silent_and_dripping_clients_hold_nobody_up_and_hear_421(gate: Gate, tmp_path: Path) -> None:
    """200 that say nothing, 20 that drip: mail flows beside them, and none of them stays."""
    ledger = Ledger(tmp_path / "ledger")
    silent = [Client(gate.port, says_hello=False) for _ in range(200)]
    drips = [_Drip(gate.port) for _ in range(20)]
    load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=1).start()
    load.wait_for(100)
    for client in silent:
        assert client.reply().startswith("421 4.4.2")
    for drip in drips:
        assert drip.end().startswith("421 4.4.2")
    load.wait_for(20)
    load.finish()
    assert ledger.findings(gate.dsn) == []
    assert ledger.refusals == ledger.delays == []
    assert gate.tracebacks() == []


def test_a_slow_message_is_stored_whole(gate: Gate, tmp_path: Path) -> None:
    """An octet every 50 ms is allowed, until the time of the whole transaction is over."""
    ledger = Ledger(tmp_path / "ledger")
    letter = Letter("slow", MAILBOXES, b"Subject: Slow\r\n\r\nSlowly.\r\n.\r\n")
    ledger.add(letter)
    client = Client(gate.port)
    assert client.begin(letter).startswith("354")
    octets = transparent(letter.octets)
    for at in range(len(octets)):
        client.send(octets[at : at + 1])
        time.sleep(0.05)
    ledger.note(letter, "accepted", client.reply())
    assert ledger.findings(gate.dsn) == []


def test_a_client_that_reads_no_reply_is_cut_off(gate: Gate) -> None:
    """Its replies are not kept without a bound, and in the end not even 421 is waited for."""
    clients = [Client(gate.port, silence_seconds=60.0) for _ in range(5)]
    for client in clients:
        assert client.ask("MAIL FROM:<bob@example.org>").startswith("250")
    before = gate.resident_octets
    ended = [threading.Event() for _ in clients]

    def talk(client: Client, end: threading.Event) -> None:
        with suppress(ConnectionEnded):
            while True:
                client.send(b"RCPT TO:<alice@example.test>\r\n" * 1000)
        end.set()

    for client, end in zip(clients, ended, strict=True):
        threading.Thread(target=talk, args=(client, end), daemon=True).start()
    most = before
    deadline = time.monotonic() + 60
    while not all(end.is_set() for end in ended):
        assert time.monotonic() < deadline, "the connections are still there"
        most = max(most, gate.resident_octets)
        time.sleep(0.02)
    assert most - before < 20 * MEBIBYTE
    assert gate.tracebacks() == []


class _Drip:
    """A client that sends an octet of an endless message every 50 ms."""

    def __init__(self, port: int) -> None:
        self._client = Client(port)
        assert self._client.begin(Letter("drip", MAILBOXES, b"")).startswith("354")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> str:
        """What it heard when its time was over."""
        reply = self._client.reply()
        eventually(lambda: not self._thread.is_alive(), "the connection has ended")
        return reply

    def _run(self) -> None:
        with suppress(ConnectionEnded):
            while True:
                self._client.send(b"x\r\n")
                time.sleep(0.05)
