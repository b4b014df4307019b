"""A destination whose connections break while others of it are under way."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs

from mailgate.outbound.connection import HostUnusable
from mailgate.outbound.delivery import Limits
from mailgate.outbound.plan import Endpoint, Host, Route, Trouble, TroubleKind
from mailgate.outbound.runner import RunnerSettings
from tests.support.queueing import CLOSING, STALLED, TAKEN, FakeNet, FakeRows, FakeSender, runner_on

LOST = Trouble(TroubleKind.LOST, "The connection was lost", "4.4.2")


def test_a_connection_that_broke_under_two_messages_leaves_both_to_later() -> None:
    """The first is known to be untried before the second is: meanwhile there is nobody to give it to."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    host = net.host("mx.elsewhere.test")
    host.answer = None
    runner = runner_on(clock, rows, net, clock.seconds, limits=lambda _route: Limits(max_connections=1))
    rows.add("dora@elsewhere.test")
    rows.add("emil@elsewhere.test")
    with capturedLogs() as events:
        runner.start()
        clock.pump([0.1] * 10)
        (sender,) = host.senders
        assert sender.outstanding == 2
        sender.finish(CLOSING)
        assert host.connects == 1
        sender.finish(CLOSING)
        clock.pump([0.1] * 10)
        host.answer = TAKEN
        clock.pump([1.0] * 400)
    assert not rows.rows
    assert sorted(host.served[-2:]) == ["dora@elsewhere.test", "emil@elsewhere.test"]
    assert not [event for event in events if "log_failure" in event]
    Deferred.fromCoroutine(runner.stop(1.0))


@pytest.mark.parametrize("ending", [CLOSING, LOST], ids=["421", "lost"])
def test_a_host_that_takes_one_message_on_a_connection_gets_all_one_after_the_other(ending: Trouble) -> None:
    """It isn't in trouble: whoever left it alone after each message would take weeks for a newsletter."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    host = net.host("mx.elsewhere.test")
    host.answer = None
    runner = runner_on(clock, rows, net, clock.seconds)
    for number in range(50):
        rows.add(f"d{number}@elsewhere.test")
    runner.start()
    for _ in range(100):
        clock.pump([0.05] * 2)
        for sender in host.open:
            sender.finish(TAKEN)
            while sender.waiting:
                sender.finish(ending)
            sender.is_usable = False
    assert not rows.rows
    assert sorted(attempt.result for attempt in rows.attempts) == ["delivered"] * 50
    Deferred.fromCoroutine(runner.stop(1.0))


def test_a_host_that_takes_few_connections_is_not_asked_for_more_after_each_message() -> None:
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    host = net.host("mx.elsewhere.test")
    host.answer = None
    host.max_connections = 1
    runner = runner_on(clock, rows, net, clock.seconds)
    for number in range(90):
        rows.add(f"d{number}@elsewhere.test")
    runner.start()
    for _ in range(200):
        clock.pump([0.05] * 2)
        for sender in host.open:
            if sender.waiting:
                sender.finish(TAKEN)
    assert not rows.rows
    assert host.connects < 10
    Deferred.fromCoroutine(runner.stop(1.0))


def test_a_connection_that_ends_goes_to_the_destination_that_has_fewest() -> None:
    """Where two have more mail than the connections can carry, the third has its turn all the same."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    runner = runner_on(
        clock,
        rows,
        net,
        clock.seconds,
        limits=lambda _route: Limits(messages_per_connection=1),
        settings=RunnerSettings(max_connections=4),
    )
    hosts = [net.host(f"mx.{name}") for name in ("busy.test", "busier.test", "quiet.test")]
    for host in hosts:
        host.answer = None
    for number in range(40):
        rows.add(f"d{number}@busy.test")
        rows.add(f"d{number}@busier.test")
    rows.add("dora@quiet.test")
    runner.start()
    clock.pump([0.05] * 4)
    assert [len(host.open) for host in hosts] == [4, 0, 0]
    for _ in range(2):
        hosts[0].open[0].finish(TAKEN)
        clock.pump([0.05] * 4)
    assert [len(host.open) for host in hosts] == [2, 1, 1]
    Deferred.fromCoroutine(runner.stop(1.0))


def test_nothing_new_is_sent_while_nobody_can_be_told_what_came_of_it() -> None:
    """A node that is cut off from the database is taken for dead; what it has sent by then is sent again."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    host = net.host("mx.elsewhere.test")
    host.answer = None
    runner = runner_on(clock, rows, net, clock.seconds, limits=lambda _route: Limits(max_connections=1))
    for number in range(5):
        rows.add(f"d{number}@elsewhere.test")
    runner.start()
    clock.pump([0.1] * 10)
    (sender,) = host.senders
    assert sender.outstanding == 2
    rows.is_away = True
    sender.finish(TAKEN)
    assert sender.outstanding == 2  # nobody knows yet
    clock.pump([0.1] * 10)
    sender.finish(TAKEN)
    sender.finish(TAKEN)
    clock.pump([1.0] * 60)
    assert len(host.seen) == 3
    assert not host.open
    rows.is_away = False
    clock.pump([1.0] * 15)
    (sender,) = host.open
    sender.finish(TAKEN)
    sender.finish(TAKEN)
    clock.pump([0.1] * 10)
    assert not rows.rows
    assert sorted(host.served) == [f"d{number}@elsewhere.test" for number in range(5)]
    Deferred.fromCoroutine(runner.stop(1.0))


def test_connections_that_end_let_each_destination_that_waits_have_one() -> None:
    """Whichever they belonged to, and whether those that are asked first can use them."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    runner = runner_on(clock, rows, net, clock.seconds, settings=RunnerSettings(max_connections=2))
    names = [f"d{number}.test" for number in range(400)]
    for name in names:
        net.host(f"mx.{name}").answer = None
        rows.add(f"anna@{name}")
    with capturedLogs() as events:
        runner.start()
        clock.pump([0.01] * 10)
        for name in names:
            net.host(f"mx.{name}").refuses = CLOSING  # those that are connected stay so
        for name in names:
            net.host(f"mx.{name}").answer = TAKEN
        for name in names:
            for sender in net.host(f"mx.{name}").open:
                while sender.outstanding:
                    sender.finish()
        clock.pump([0.1] * 100)
    assert sum(host.connects for host in net.hosts.values()) >= len(names)
    assert not [event for event in events if "log_failure" in event]
    Deferred.fromCoroutine(runner.stop(1.0))


def test_hosts_that_say_nothing_do_not_keep_other_mail_waiting() -> None:
    """All connections are being opened to hosts that are silent, which RFC 5321 allows for five minutes."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)

    async def connect(route: Route, host: Host, address: str) -> FakeSender:
        if host.name.startswith("mx.dead"):
            await deferLater(clock, 300.0)
            raise HostUnusable(STALLED, Endpoint(host.name, address, 25))
        return await net.connect(route, host, address)

    runner = runner_on(clock, rows, net, clock.seconds, connect=connect, settings=RunnerSettings(max_connections=5))
    for number in range(100):
        rows.add(f"dora@dead{number}.test", sender="newsletter")
    runner.start()
    clock.pump([0.1] * 10)
    rows.add("emil@elsewhere.test")
    runner.wake()
    clock.pump([0.5] * 80)
    assert net.host("mx.elsewhere.test").served == ["emil@elsewhere.test"]
    clock.pump([0.5] * 100)
    late = [attempt for attempt in rows.attempts if attempt.result == "deferred"]
    assert 10 <= len(late) <= 15
    assert {attempt.status for attempt in late} == {"4.4.2"}
    Deferred.fromCoroutine(runner.stop(1.0))
    clock.pump([0.1] * 20)
    assert clock.getDelayedCalls() == []
