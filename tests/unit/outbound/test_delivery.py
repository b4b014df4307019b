"""A destination whose connections break while others of it are under way."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from mailgate.outbound.runner import RunnerSettings
from tests.support.queueing import CLOSING, TAKEN, FakeNet, FakeRows, runner_on


def test_a_connection_that_broke_under_two_messages_leaves_both_to_later() -> None:
    """The first is known to be untried before the second is: meanwhile there is nobody to give it to."""
    clock = Clock()
    clock.rightNow = 1_000_000.0
    rows, net = FakeRows(clock.seconds), FakeNet(clock.seconds)
    host = net.host("mx.elsewhere.test")
    runner = runner_on(clock, rows, net, clock.seconds)
    rows.add("anna@elsewhere.test")
    with capturedLogs() as events:
        runner.start()
        clock.pump([0.1] * 10)
        (sender,) = host.senders
        host.answer = None
        rows.add("dora@elsewhere.test")
        rows.add("emil@elsewhere.test")
        runner.wake()
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
