"""Nodes and PostgreSQL die while mail is delivered: all of it arrives, and again only where nobody could know.

Standards: RFC 5321 section 4.2.5 and 6.1 (250 is a promise), RFC 1047 (duplicates).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.dispatch import Programs
from tests.support.gate import eventually
from tests.support.postgres import private_server, remove_server
from tests.support.relay import Relay
from tests.support.sink import Conduct, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailgate.storage.embedded import EmbeddedPostgres
    from tests.fault.conftest import MakeWorld

DOMAINS = tuple(f"d{number}.test" for number in range(6))
MANY_DOMAINS = tuple(f"d{number}.test" for number in range(40))
SLOW = Conduct(greylists=0.1, pause_seconds=0.05)
HOSTILE = Conduct(
    faults=(
        ("greeting", Fault.BUSY, 0.01),
        ("MAIL", Fault.BUSY, 0.01),
        ("RCPT", Fault.RESET, 0.005),
        ("DATA", Fault.CUT, 0.005),
        ("content", Fault.CUT, 0.01),
        ("dot", Fault.CUT, 0.02),
        ("dot", Fault.STALL, 0.005),
        ("reply", Fault.CUT, 0.02),
        ("reply", Fault.RESET, 0.02),
    ),
    greylists=0.1,
    pause_seconds=0.05,
)
TAKEN_OVER_SECONDS = 60.0
STOPS_SECONDS = 10.0  # a node that can't write what comes of its mail begins nothing new
SOAK_SECONDS = 600.0
CALM_SECONDS = 240.0  # PostgreSQL has to have run for a while before anybody is taken for dead


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server that nobody starts again but the test."""
    server = private_server()
    server.start()
    yield server
    remove_server(server)


def test_what_got_250_is_delivered_though_nodes_are_killed(make_world: MakeWorld) -> None:
    """Two nodes on one queue; what a dead one had leased is the other's within a minute."""
    world = make_world(domains=DOMAINS, conducts=[SLOW])
    dispatch, nodes = world.dispatch, world.nodes
    source = random.Random(1)
    world.start()
    programs = Programs(dispatch, domains=DOMAINS, seed=1, gone=0.1, pause_seconds=0.02).start()
    for which, is_started_again in ((0, True), (1, True), (0, False)):
        programs.wait_for(source.randint(20, 60))
        time.sleep(source.uniform(0, 0.05))  # at any moment, not only when a letter was just accepted
        nodes[which].kill()
        if is_started_again:
            nodes[which].start()
    programs.wait_for(20)
    programs.finish()
    dispatch.wait_until_drained(TAKEN_OVER_SECONDS)
    assert dispatch.findings() == []
    assert {taking.connection.client for taking in dispatch.hosts.takings()} == {node.address for node in nodes}
    assert world.tracebacks() == []


def test_a_database_that_is_killed_costs_no_mail_and_no_second_copy(
    make_world: MakeWorld, server: EmbeddedPostgres
) -> None:
    """What came of messages waits in the memory of the nodes, which don't spin meanwhile; nothing is sent twice."""
    world = make_world(domains=DOMAINS, dsn=server.dsn, conducts=[SLOW])
    dispatch, nodes = world.dispatch, world.nodes
    world.start()
    programs = Programs(dispatch, domains=DOMAINS, seed=1, gone=0.1, pause_seconds=0.02).start()
    for _ in range(2):
        programs.wait_for(40)
        used = [_cpu_seconds(node.gate.pid) for node in nodes]
        with dispatch.outage():
            _kill(server)
            time.sleep(2.0)  # it is away for that long
            for node, before in zip(nodes, used, strict=True):
                assert _cpu_seconds(node.gate.pid) - before < 1.5
            server.ensure_running()
        taken = dispatch.taken()
        eventually(lambda taken=taken: dispatch.taken() > taken + 20, "mail is delivered again")  # type: ignore[misc]
    programs.wait_for(20)
    programs.finish()
    dispatch.wait_until_drained()
    assert dispatch.findings() == []
    assert dispatch.duplicates() == []
    assert world.tracebacks() == []


@pytest.mark.soak
def test_what_got_250_is_delivered_though_everything_dies_again_and_again(
    make_world: MakeWorld, server: EmbeddedPostgres, seed: int
) -> None:
    """Nodes, PostgreSQL and both at once, and hosts that break off wherever they can; for a long time."""
    world = make_world(
        domains=MANY_DOMAINS,
        conducts=[HOSTILE, HOSTILE],
        dsn=server.dsn,
        settings="reply_seconds = 10.0\nend_of_data_seconds = 5.0\nlongest_retry_seconds = 5.0",
        seed=seed,
    )
    dispatch, nodes = world.dispatch, world.nodes
    source = random.Random(seed)
    world.start()
    programs = Programs(dispatch, domains=MANY_DOMAINS, seed=seed, programs=4, gone=0.05, pause_seconds=0.1).start()
    deaths: Counter[str] = Counter()
    until = time.monotonic() + SOAK_SECONDS
    while time.monotonic() < until:
        programs.wait_for(source.randint(10, 60))
        time.sleep(source.uniform(0, 0.05))
        what = source.choices(("node", "both nodes", "PostgreSQL", "node and PostgreSQL"), (50, 10, 25, 15))[0]
        deaths[what] += 1
        victims = {"PostgreSQL": 0, "both nodes": 2}.get(what, 1)
        killed = source.sample(nodes, victims)
        if "PostgreSQL" in what:
            with dispatch.outage():
                _kill(server)
                time.sleep(source.uniform(0, 2.0))
                for node in killed:
                    node.kill()
                server.ensure_running()
        for node in killed:
            if "PostgreSQL" not in what:
                node.kill()
            time.sleep(source.uniform(0, 0.5))
            node.start()
        dispatch.retry_all()  # else most hosts would be left alone most of the time
    programs.wait_for(20)
    programs.finish()
    world.conduct(Conduct())
    dispatch.retry_all()
    dispatch.wait_until_drained(CALM_SECONDS)
    assert dispatch.findings() == []
    assert world.tracebacks() == []
    sys.stdout.write(f"deaths: {dict(deaths)}\n{dispatch.summary()}\n")


@pytest.mark.soak
def test_a_node_that_is_cut_off_from_the_database_stops_sending_before_it_is_taken_for_dead(
    make_world: MakeWorld,
) -> None:
    """What it has sent and can't write is sent again by the other; it goes no further with what it has leased."""
    world = make_world(domains=DOMAINS, conducts=[Conduct(pause_seconds=0.5)])
    dispatch, (cut_off, other) = world.dispatch, world.nodes
    relay = Relay(dispatch.dsn)
    try:
        cut_off.lead_to_database(relay.dsn)
        cut_off.start()
        programs = Programs(dispatch, domains=DOMAINS, seed=1, programs=4).start()
        programs.wait_for(400)
        programs.finish()
        assert dispatch.queued() > 400
        relay.shut()
        moment = time.monotonic()
        other.start()
        dispatch.wait_until_drained(CALM_SECONDS)
        relay.open()
        eventually(lambda: cut_off.gate.log().rstrip().endswith("connected"), "it is back")
    finally:
        relay.close()
    takings = dispatch.hosts.takings()
    assert {taking.recipient for taking in takings} == {each for sent in dispatch.sent for each in sent.recipients}
    again = dispatch.duplicates()
    assert {taking.connection.client for taking in again} == {cut_off.address}
    assert all(taking.taken_at - moment < STOPS_SECONDS for taking in again)
    assert world.tracebacks() == []
    sys.stdout.write(f"{len(again)} of {len(takings)} are second copies\n")


def _kill(server: EmbeddedPostgres) -> None:
    postmaster = server.postmaster()
    assert postmaster is not None
    processes = psutil.Process(postmaster.pid).children()
    os.kill(postmaster.pid, signal.SIGKILL)
    # Its children see that it is gone, each at its next look; a new postmaster does not start before they have ended.
    psutil.wait_procs(processes, 10)


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
