"""mailgate is told to stop under load: messages that are being received are finished, everybody else hears 421.

Standards: RFC 5321 section 3.8 (421 when a server shuts down).
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.gate import Gate, eventually
from tests.support.ledger import Ledger, Letter
from tests.support.load import Client, ConnectionEnded, Load, transparent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAILBOXES = ("alice@example.test", "carol@example.test", "dave@example.test")
OUT_SECONDS = 30.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES)
    gate.start()
    yield gate
    gate.close()


def test_what_is_in_data_gets_its_250_and_the_rest_hears_421(gate: Gate, tmp_path: Path) -> None:
    """A message that has begun is finished; its client hears 421 behind the 250."""
    ledger = Ledger(tmp_path / "ledger")
    load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=1).start()
    load.wait_for(50)
    idle = [Client(gate.port) for _ in range(3)]
    started = Client(gate.port)
    assert started.ask("MAIL FROM:<bob@example.org>").startswith("250")
    writing = []
    for which in range(3):
        letter = Letter(f"slow-{which}", MAILBOXES, b"Subject: Slow\r\n\r\nHalf %d of it, and\r\nthe rest.\r\n" % which)
        ledger.add(letter)
        client = Client(gate.port)
        assert client.begin(letter).startswith("354")
        client.send(letter.octets[:30])
        writing.append((client, letter))
    began = time.monotonic()
    gate.terminate()
    for client in (*idle, started):
        assert client.reply().startswith("421 4.3.2")
        with pytest.raises(ConnectionEnded):
            client.reply()
    eventually(lambda: _refuses_connections(gate.port), "no more connections are taken")
    assert not gate.has_ended()  # the load's own clients may have been finished long ago; these are not
    for client, letter in writing:
        client.send(transparent(letter.octets)[30:])
        ledger.note(letter, "accepted", client.reply())
        assert client.reply().startswith("421 4.3.2")
    assert gate.exit_status(OUT_SECONDS) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < OUT_SECONDS
    gate.start()
    load.finish()
    assert ledger.findings(gate.dsn) == []
    assert ledger.refusals == []
    assert gate.tracebacks() == []


def test_a_client_that_never_finishes_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Nobody has heard 250 for it: it is sent again, to the next mailgate."""
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES, settings="[shutdown]\nseconds = 2.0")
    try:
        gate.start()
        client = Client(gate.port)
        assert client.begin(Letter("endless", MAILBOXES, b"")).startswith("354")
        client.send(b"Subject: Endless\r\n")
        gate.terminate()
        assert gate.exit_status(OUT_SECONDS) in (0, -signal.SIGTERM)
        with pytest.raises(ConnectionEnded):
            client.reply()
        assert gate.tracebacks() == []
    finally:
        gate.close()


def _refuses_connections(port: int) -> bool:
    try:
        Client(port, says_hello=False).drop()
    except ConnectionEnded:
        return True
    return False
