"""mailgate dies at any moment, and is started again: what got 250 is there, once and whole.

Standards: RFC 5321 section 4.2.5 and 6.1 (250 is a promise), RFC 1047 (duplicates).
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.gate import Gate
from tests.support.ledger import Ledger
from tests.support.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAILBOXES = ("alice@example.test", "carol@example.test", "dave@example.test")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES)
    yield gate
    gate.close()


def _kill_in_cycles(gate: Gate, ledger: Ledger, cycles: int, seed: int) -> None:
    source = random.Random(seed)
    gate.start()
    load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=seed).start()
    for _ in range(cycles):
        load.wait_for(source.randint(20, 100))
        time.sleep(source.uniform(0, 0.05))  # at any moment, not only when a letter was just accepted
        gate.kill()
        gate.start()
    load.wait_for(20)
    load.finish()
    assert ledger.findings(gate.dsn) == []
    assert ledger.refusals == []
    assert gate.tracebacks() == []


def test_what_got_250_survives_kill_9_once_and_whole(gate: Gate, tmp_path: Path) -> None:
    """RFC 5321 section 6.1: it must not be lost for frivolous reasons; RFC 1047: nor doubled."""
    ledger = Ledger(tmp_path / "ledger")
    _kill_in_cycles(gate, ledger, cycles=4, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("_round", range(3))
def test_what_got_250_survives_many_kills(gate: Gate, tmp_path: Path, seed: int, _round: int) -> None:
    """The same for a long time, from a random seed."""
    ledger = Ledger(tmp_path / "ledger")
    _kill_in_cycles(gate, ledger, cycles=60, seed=seed)
