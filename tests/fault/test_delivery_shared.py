"""Two nodes on one queue: both deliver, what one is told counts for the other, and a stop leaves nothing behind."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.support import postgres
from tests.support.dispatch import Programs
from tests.support.gate import eventually
from tests.support.sink import Conduct, Fault

if TYPE_CHECKING:
    from tests.fault.conftest import MakeWorld
    from tests.support.dispatch import Dispatch

DOMAINS = tuple(f"d{number}.test" for number in range(4))
OUT_SECONDS = 20.0
AT_ONCE_SECONDS = 10.0  # no lease of a dead node is noticed to be one as soon


def test_a_node_that_stops_finishes_what_is_under_way_and_the_other_takes_the_rest(make_world: MakeWorld) -> None:
    """Nothing is sent twice, and nothing has to wait until the other node notices."""
    world = make_world(domains=DOMAINS, conducts=[Conduct(pause_seconds=0.3)])
    dispatch = world.dispatch
    stopping, staying = world.nodes
    world.start()
    programs = Programs(dispatch, domains=DOMAINS, seed=1, programs=4).start()
    for times in (1, 2):
        programs.wait_for(100)
        stopping.gate.terminate()
        assert stopping.gate.exit_status(OUT_SECONDS) in (0, -signal.SIGTERM)
        assert _leases_of_the_dead(dispatch) == 0
        if times == 1:
            stopping.start()
    programs.finish()
    assert dispatch.queued() > 20  # else there was nothing to leave
    began = time.monotonic()
    world.conduct(Conduct())
    dispatch.wait_until_drained()
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert dispatch.findings() == []
    assert dispatch.duplicates() == []
    clients = {taking.connection.client for taking in dispatch.hosts.takings()}
    assert clients == {stopping.address, staying.address}
    assert world.tracebacks() == []


def test_a_paused_destination_is_paused_for_both_nodes(make_world: MakeWorld) -> None:
    """And for what they have claimed already; the mail for others flows, and goes on when the pause is over."""
    world = make_world(domains=DOMAINS, conducts=[Conduct(pause_seconds=0.05)])
    dispatch = world.dispatch
    world.start()
    programs = Programs(dispatch, domains=DOMAINS, seed=1).start()
    programs.wait_for(40)
    postgres.query(dispatch.dsn, "INSERT INTO mailgate.destination (name, is_paused) VALUES ('d0.test', true)")
    postgres.query(dispatch.dsn, "SELECT pg_notify('queue', 'destination')")
    eventually(lambda: not _leased(dispatch, "d0.test"), "nobody has mail for it any longer")
    before = _taken_for(dispatch, "d0.test")
    programs.wait_for(100)
    programs.finish()
    eventually(lambda: dispatch.queued() == _waiting(dispatch, "d0.test"), "only what is paused is left")
    assert _waiting(dispatch, "d0.test") > 20
    assert _taken_for(dispatch, "d0.test") == before > 0
    dispatch.retry_all()
    dispatch.wait_until_drained(AT_ONCE_SECONDS)
    assert dispatch.findings() == []
    assert dispatch.duplicates() == []
    assert world.tracebacks() == []


def test_a_host_in_trouble_is_left_alone_by_both_nodes(make_world: MakeWorld) -> None:
    """Neither tries its mail one by one; when an operator says so, it is tried again at once."""
    world = make_world(domains=DOMAINS[:1], conducts=[Conduct(faults=(("greeting", Fault.BUSY, 1.0),))])
    dispatch = world.dispatch
    (sink,) = world.sinks
    world.start()
    for node in world.nodes:
        dispatch.hand_in(node, *(f"to-{number}-{node.address}@{DOMAINS[0]}" for number in range(30)))
    eventually(lambda: _backed_off(dispatch), "the host is left alone")
    tried = len(sink.connections)
    assert tried <= 2 * 5  # each node has opened as many at once as it begins with, before it knew
    time.sleep(3.0)  # in which both look, and some mail has become due again
    assert len(sink.connections) == tried
    assert dispatch.queued() == 60
    world.conduct(Conduct())
    dispatch.retry_all()
    dispatch.wait_until_drained(AT_ONCE_SECONDS)
    assert dispatch.findings() == []
    assert dispatch.duplicates() == []
    assert world.tracebacks() == []


def _leases_of_the_dead(dispatch: Dispatch) -> int:
    return _count(dispatch, "leased_by IS NOT NULL AND NOT mailgate.instance_is_alive(leased_by)")


def _leased(dispatch: Dispatch, domain: str) -> int:
    return _count(dispatch, "domain = %s AND leased_by IS NOT NULL", domain)


def _waiting(dispatch: Dispatch, domain: str) -> int:
    return _count(dispatch, "domain = %s", domain)


def _count(dispatch: Dispatch, condition: str, *values: str) -> int:
    ((count,),) = postgres.query(dispatch.dsn, f"SELECT count(*) FROM mailgate.queue WHERE {condition}", values)
    assert isinstance(count, int)
    return count


def _taken_for(dispatch: Dispatch, domain: str) -> int:
    return sum(taking.recipient.endswith(f"@{domain}") for taking in dispatch.hosts.takings())


def _backed_off(dispatch: Dispatch) -> list[tuple[object, ...]]:
    return postgres.query(dispatch.dsn, "SELECT name FROM mailgate.destination WHERE backed_off_until > now()")
