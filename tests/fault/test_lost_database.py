"""The database dies, or is away for a while: clients hear 4xx, and mail flows again without help.

Standards: RFC 5321 section 4.2.1 (4yz: try again), section 4.2.5 (250 is a promise).
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.support.gate import Gate, eventually
from tests.support.ledger import Ledger
from tests.support.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mailgate.storage.embedded import EmbeddedPostgres

MAILBOXES = ("alice@example.test", "carol@example.test", "dave@example.test")
BACK_SECONDS = 3.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES)
    yield gate
    gate.close()


def _stop_immediately(postgres: EmbeddedPostgres) -> None:
    # Not waiting: the next postmaster may be there before pg_ctl looks, and it would wait for that one's end.
    stopped = postgres.run([*postgres.stop_command("immediate"), "--no-wait"])
    assert stopped.returncode == 0, stopped.stdout


def _kill_postmaster(postgres: EmbeddedPostgres) -> None:
    postmaster = postgres.postmaster()
    assert postmaster is not None
    os.kill(postmaster.pid, signal.SIGKILL)


def _answers(dsn: str) -> bool:
    try:
        with closing(psycopg2.connect(dsn)) as database, database.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True


def _break_in_cycles(
    gate: Gate, ledger: Ledger, faults: list[Callable[[EmbeddedPostgres], None]], seed: int
) -> list[float]:
    """How long no 250 was heard, in seconds, for each fault."""
    assert gate.postgres is not None
    source = random.Random(seed)
    gate.start()
    load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=seed).start()
    outages = []
    for fault in faults:
        load.wait_for(source.randint(20, 100))
        time.sleep(source.uniform(0, 0.05))  # at any moment, not only when a letter was just accepted
        postmaster = gate.postgres.postmaster()
        assert postmaster is not None
        began = time.monotonic()
        fault(gate.postgres)
        eventually(lambda old=postmaster: gate.postgres.postmaster() not in (None, old), "PostgreSQL runs again")  # type: ignore[misc]
        eventually(lambda: _answers(gate.dsn), "PostgreSQL answers again")
        recovered = time.monotonic()
        eventually(lambda at=recovered: ledger.first_accepted_after(at), "mail is accepted again")  # type: ignore[misc]
        back = ledger.first_accepted_after(recovered)
        assert back is not None
        # Recovery is PostgreSQL's, and takes what the machine gives it; the rest is ours.
        assert back - recovered < BACK_SECONDS
        outages.append(back - began)
    load.finish()
    assert ledger.findings(gate.dsn) == []
    assert ledger.refusals == []
    assert gate.tracebacks() == []
    return outages


def test_an_embedded_database_that_dies_costs_no_mail_and_comes_back(gate: Gate, tmp_path: Path) -> None:
    """Doubt is 451, never 5xx: a fault of ours must not bounce mail."""
    ledger = Ledger(tmp_path / "ledger")
    _break_in_cycles(gate, ledger, [_stop_immediately, _kill_postmaster] * 2, seed=1)
