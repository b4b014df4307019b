"""The database dies, or is away for a while: clients hear 4xx, and mail flows again without help.

Standards: RFC 5321 section 4.2.1 (4yz: try again), section 4.2.5 (250 is a promise).
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.support.gate import Gate, eventually
from tests.support.ledger import Ledger, Letter
from tests.support.load import Client, Habits, Load, transparent
from tests.support.postgres import crash, private_server, remove_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mailgate.storage.embedded import EmbeddedPostgres

MAILBOXES = ("alice@example.test", "carol@example.test", "dave@example.test")
BACK_SECONDS = 3.0
MEBIBYTE = 1024 * 1024


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
    gate: Gate, ledger: Ledger, faults: Sequence[Callable[[EmbeddedPostgres], None]], seed: int
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


@pytest.mark.soak
@pytest.mark.parametrize("_round", range(3))
def test_many_deaths_of_the_database_cost_no_mail(gate: Gate, tmp_path: Path, seed: int, _round: int) -> None:
    """The same for a long time, from a random seed."""
    ledger = Ledger(tmp_path / "ledger")
    faults = random.Random(seed).choices([_stop_immediately, _kill_postmaster], k=40)
    outages = _break_in_cycles(gate, ledger, faults, seed)
    middle, longest = statistics.median(outages), max(outages)
    sys.stdout.write(f"{len(ledger.letters)} letters; outages: {middle:.2f} s as a rule, {longest:.2f} s at most\n")


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server that nobody starts again but the test."""
    server = private_server()
    server.start()
    yield server
    remove_server(server)


def test_a_server_that_is_away_is_451_and_bounded_memory_and_needs_no_restart(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Sessions wait a bounded time for it; when it is back, so is mailgate."""
    ledger = Ledger(tmp_path / "ledger")
    gate = Gate(log=tmp_path / "log", dsn=server.dsn, mailboxes=MAILBOXES, wait_seconds=1.0)
    try:
        gate.start()
        pid = gate.pid
        load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=1, clients=16, habits=Habits(large=0.2)).start()
        load.wait_for(100)
        client = Client(gate.port)
        letter = Letter("in the middle", MAILBOXES, b"Subject: In the middle\r\n\r\nof an outage.\r\n")
        ledger.add(letter)
        assert client.begin(letter).startswith("354")
        before = gate.resident_octets
        crash(server)
        client.send(transparent(letter.octets))
        began = time.monotonic()
        ledger.note(letter, "refused", client.reply())
        assert letter.accepted_as is None
        # wait_seconds, and a second for an attempt that is under way; the rest is for a machine that is busy.
        assert time.monotonic() - began < 10.0
        wanted = len(ledger.delays) + 40
        eventually(lambda: len(ledger.delays) > wanted, "40 more hear 4xx")
        assert gate.resident_octets - before < 100 * MEBIBYTE
        assert ledger.refusals == []
        server.ensure_running()
        recovered = time.monotonic()
        eventually(lambda: ledger.first_accepted_after(recovered), "mail is accepted again")
        back = ledger.first_accepted_after(recovered)
        assert back is not None
        assert back - recovered < BACK_SECONDS
        assert client.begin(letter).startswith("354")
        client.send(transparent(letter.octets))
        ledger.note(letter, "accepted", client.reply())
        load.finish()
        assert gate.pid == pid
        assert ledger.findings(gate.dsn) == []
        assert ledger.refusals == []
        assert {delay[:9] for delay in ledger.delays} == {"451 4.3.0"}
        assert gate.tracebacks() == []
    finally:
        gate.close()
