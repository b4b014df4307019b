"""The runner on a clock: days of retries, hosts in trouble, notices, stops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.outbound.delivery import Limits
from mailgate.outbound.plan import NoRoute, Trouble, TroubleKind
from mailgate.outbound.runner import QueueRunner
from mailgate.smtp.reply import reply
from mailgate.storage.queue import DestinationState
from tests.support.queueing import (
    CLOSING,
    FULL,
    GREYLISTED,
    NO_SERVICE,
    REFUSED,
    STALLED,
    TAKEN,
    UNKNOWN,
    FakeNet,
    FakeRows,
    FakeSender,
    FakeTelling,
    runner_on,
)

HOUR = 3600.0
DAY = 24 * HOUR


class World:
    """A runner on a clock, a queue in memory, and hosts."""

    def __init__(self, **more: Any) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_000_000.0
        self.rows = FakeRows(self.clock.seconds)
        self.net = FakeNet(self.clock.seconds)
        self.telling = FakeTelling()
        self.runner: QueueRunner = runner_on(
            self.clock, self.rows, self.net, self.clock.seconds, **({"telling": self.telling} | more)
        )

    def run(self, seconds: float, step: float | None = None) -> None:
        """Let time go by, in small steps at first."""
        for _ in range(20):
            self.clock.advance(0.01)
        left = seconds - 0.2
        step = step or min(max(seconds / 50, 0.05), 60.0)
        while left > 0:
            self.clock.advance(min(step, left))
            left -= step

    def start(self, seconds: float = 1.0) -> None:
        self.runner.start()
        self.run(seconds)

    def stop(self, seconds: float = 10.0) -> Deferred[None]:
        return Deferred.fromCoroutine(self.runner.stop(seconds))

    def told(self) -> list[tuple[str, str, str]]:
        """Recipients of notices, what became of them, and the status code."""
        return [
            (each.recipient, each.action.value, "expired" if each.is_expired else each.status)
            for _, recipients in self.telling.told
            for each in recipients
        ]

    def results(self) -> list[str]:
        return [attempt.result for attempt in self.rows.attempts]


@pytest.fixture
def world() -> World:
    return World()


# ---------------------------------------------------------------- time


def test_a_greylisted_recipient_is_taken_at_the_next_attempt(world: World) -> None:
    """RFC 6647 section 2: the client comes back after some minutes."""
    host = world.net.host("mx.elsewhere.test")
    host.answer = GREYLISTED
    world.rows.add("dora@elsewhere.test")
    world.start()
    assert world.results() == ["deferred"]
    host.answer = TAKEN
    world.run(200.0)
    assert world.results() == ["deferred"]
    world.run(200.0)
    assert world.results() == ["deferred", "delivered"]
    assert not world.rows.rows
    assert world.told() == []


def test_five_days_of_deferrals_end_in_one_notice_of_delay_and_one_of_failure(world: World) -> None:
    """RFC 5321 section 4.5.4.1: give up after 4 to 5 days; each pause is longer than the one before, up to a bound."""
    world.net.host("mx.elsewhere.test").answer = FULL
    began = world.clock.seconds()
    world.rows.add("dora@elsewhere.test")
    world.start()
    world.run(4 * HOUR - 60)
    assert world.told() == []
    world.run(120)
    assert world.told() == [("dora@elsewhere.test", "delayed", "4.2.2")]
    world.run(5 * DAY - 4 * HOUR - 300)
    assert len(world.rows.rows) == 1
    world.run(600)
    assert not world.rows.rows
    assert world.told() == [("dora@elsewhere.test", "delayed", "4.2.2"), ("dora@elsewhere.test", "failed", "expired")]
    attempts = world.rows.attempts
    assert [attempt.result for attempt in attempts[-2:]] == ["deferred", "expired"]
    pauses = [after.attempted_at - before.attempted_at for before, after in pairwise(attempts)]
    for number, pause in enumerate(pauses[:-1]):
        expected = min(300.0 * 2**number, 7200.0)
        assert 0.79 * expected <= pause <= 1.21 * expected + 70
    assert 5 * DAY <= attempts[-1].attempted_at - began <= 5 * DAY + 70
    assert 60 <= len(attempts) <= 75


def test_a_dead_host_is_left_alone_longer_and_longer_and_its_mail_still_ends_in_time(world: World) -> None:
    """A hundred messages are not tried one by one, and each of their senders is told of delay and failure, once."""
    world.net.host("mx.elsewhere.test").refuses = REFUSED
    for number in range(100):
        world.rows.add(f"d{number}@elsewhere.test")
    world.start()
    assert len(world.net.tried) == 1
    assert world.results() == ["deferred"]
    world.run(5 * DAY + HOUR)
    assert not world.rows.rows
    assert len(world.net.tried) < 2 * 5 * 24
    failed = [each for each in world.told() if each[1] == "failed"]
    delayed = [each for each in world.told() if each[1] == "delayed"]
    assert sorted(each[0] for each in failed) == sorted(f"d{number}@elsewhere.test" for number in range(100))
    assert sorted(each[0] for each in delayed) == sorted(each[0] for each in failed)
    assert {each[2] for each in failed} == {"expired"}


def test_a_destination_that_is_back_gets_all_its_mail(world: World) -> None:
    host = world.net.host("mx.elsewhere.test")
    host.refuses = STALLED
    for number in range(50):
        world.rows.add(f"d{number}@elsewhere.test")
    world.start(5 * 60.0)
    assert len(world.rows.rows) == 50
    host.refuses = None
    world.run(2 * HOUR)
    assert not world.rows.rows
    assert "elsewhere.test" not in world.rows.away


def test_other_destinations_do_not_wait_for_a_dead_one(world: World) -> None:
    world.net.host("mx.elsewhere.test").refuses = STALLED
    for number in range(50):
        world.rows.add(f"d{number}@elsewhere.test")
    world.rows.add("fritz@other.test")
    world.start()
    assert world.net.host("mx.other.test").served == ["fritz@other.test"]


def test_mail_that_is_to_be_delivered_by_a_time_fails_then(world: World) -> None:
    """RFC 2852 section 4: by-mode R."""
    world.net.host("mx.elsewhere.test").answer = GREYLISTED
    world.rows.add("dora@elsewhere.test", deliver_by=world.clock.seconds() + 1800, deliver_by_mode="R")
    world.start(HOUR)
    assert not world.rows.rows
    assert world.told() == [("dora@elsewhere.test", "failed", "expired")]
    assert world.rows.attempts[-1].attempted_at <= 1_000_000 + 1900


def test_its_sender_is_told_and_it_is_tried_further_where_that_was_asked(world: World) -> None:
    """RFC 2852 section 4: by-mode N."""
    world.net.host("mx.elsewhere.test").answer = GREYLISTED
    world.rows.add("dora@elsewhere.test", deliver_by=world.clock.seconds() + 1800, deliver_by_mode="N")
    world.start(HOUR)
    assert len(world.rows.rows) == 1
    assert world.told() == [("dora@elsewhere.test", "delayed", "4.7.1")]


# ---------------------------------------------------------------- hosts


def test_the_next_host_gets_the_mail_when_the_first_is_down(world: World) -> None:
    """RFC 5321 section 5.1: in order of preference, until an attempt succeeds."""
    world.net.route_by("elsewhere.test", "mx1", "mx2")
    world.net.host("mx1").refuses = REFUSED
    world.rows.add("dora@elsewhere.test")
    world.start()
    assert world.net.tried == ["mx1", "mx2"]
    assert world.results() == ["delivered"]
    assert not world.rows.away


@pytest.mark.parametrize("trouble", [CLOSING, STALLED, Trouble(TroubleKind.LOST, "The connection was lost", "4.4.2")])
def test_what_a_host_leaves_untried_goes_to_the_next(world: World, trouble: Trouble) -> None:
    """The host had one recipient refused, and then ended the connection: the other one is not lost, nor tried twice."""
    world.net.route_by("elsewhere.test", "mx1", "mx2")
    world.net.host("mx1").answers = {"dora@elsewhere.test": UNKNOWN, "emil@elsewhere.test": trouble}
    world.rows.add("dora@elsewhere.test", message_id=7)
    world.rows.add("emil@elsewhere.test", message_id=7)
    world.start()
    assert world.net.host("mx2").served == ["emil@elsewhere.test"]
    assert sorted((each.recipient, each.result) for each in world.rows.attempts) == [
        ("dora@elsewhere.test", "failed"),
        ("emil@elsewhere.test", "delivered"),
    ]


@pytest.mark.parametrize("lacking", [1, 2])
def test_what_one_host_lacks_is_final_only_where_no_other_may_have_it(world: World, lacking: int) -> None:
    """RFC 8689 section 4.2.1: a host of the route that can't be reached now may offer REQUIRETLS."""
    world.net.route_by("elsewhere.test", "mx1", "mx2", needs_requiretls=True)
    other = world.net.host(f"mx{3 - lacking}")
    other.refuses = STALLED
    world.net.host(f"mx{lacking}").refuses = Trouble(TroubleKind.TLS, "The host does not offer REQUIRETLS", "5.7.30")
    world.rows.add("dora@elsewhere.test")
    world.start()
    world.run(900.0)
    assert set(world.results()) == {"deferred"}
    other.refuses = None
    world.run(8 * HOUR)
    assert world.results()[-1] == "delivered"
    world.net.host(f"mx{3 - lacking}").refuses = world.net.host(f"mx{lacking}").refuses
    world.net.host(f"mx{3 - lacking}").senders.clear()
    world.rows.add("emil@elsewhere.test")
    world.run(8 * HOUR)
    assert world.results()[-1] == "failed"


def test_a_host_without_mail_service_does_not_bounce_mail(world: World) -> None:
    """RFC 5321 section 3.1 lets a host say 554 for a greeting: the mail waits."""
    world.net.route_by("elsewhere.test", "mx1", "mx2")
    world.net.host("mx1").refuses = world.net.host("mx2").refuses = NO_SERVICE
    world.rows.add("dora@elsewhere.test")
    world.start()
    assert world.net.tried == ["mx1", "mx2"]
    assert world.results() == ["deferred"]
    assert len(world.rows.rows) == 1


def test_a_host_that_made_trouble_is_avoided_for_a_while(world: World) -> None:
    world.net.route_by("elsewhere.test", "mx1", "mx2")
    world.net.host("mx1").refuses = STALLED
    world.rows.add("dora@elsewhere.test")
    world.start(10.0)
    world.rows.add("emil@elsewhere.test")
    world.runner.wake()
    world.run(20.0)
    assert world.net.tried == ["mx1", "mx2", "mx2"]


def test_a_limit_on_connections_is_heeded_without_leaving_the_host_alone(world: World) -> None:
    """Hosts say 421 to one connection too many; the others go on."""
    host = world.net.host("mx.elsewhere.test")
    host.max_connections = 2
    host.answer = None
    for number in range(40):
        world.rows.add(f"d{number}@elsewhere.test")
    world.start()
    assert len(host.open) == 2
    assert not world.rows.away
    host.answer = TAKEN
    for sender in host.open:
        while sender.waiting:
            sender.finish()
    world.run(30.0)
    assert not world.rows.rows


def test_a_domain_that_takes_no_mail_fails_at_once(world: World) -> None:
    """RFC 7505: null MX."""
    world.net.routes["elsewhere.test"] = NoRoute("elsewhere.test", reply(556, "5.1.10", "No mail here"))
    world.rows.add("dora@elsewhere.test")
    world.start()
    assert world.told() == [("dora@elsewhere.test", "failed", "5.1.10")]
    assert not world.rows.rows


def test_a_failure_of_the_dns_is_tried_again(world: World) -> None:
    world.net.routes["elsewhere.test"] = NoRoute("elsewhere.test", reply(451, "4.4.3", "The DNS does not answer"))
    world.rows.add("dora@elsewhere.test")
    world.start()
    assert world.results() == ["deferred"]
    del world.net.routes["elsewhere.test"]
    world.run(600.0)
    assert world.results() == ["deferred", "delivered"]


# ---------------------------------------------------------------- notices


@pytest.mark.parametrize(
    ("notify", "answer", "relays_dsn", "expected"),
    [
        (None, UNKNOWN, False, ["failed"]),
        ("NEVER", UNKNOWN, False, []),
        ("SUCCESS", UNKNOWN, False, []),
        ("FAILURE SUCCESS", UNKNOWN, False, ["failed"]),
        (None, TAKEN, False, []),
        ("SUCCESS", TAKEN, False, ["relayed"]),
        ("SUCCESS", TAKEN, True, []),
    ],
)
def test_a_sender_is_told_what_it_asked_for(
    world: World, notify: str | None, answer: Any, relays_dsn: bool, expected: list[str]
) -> None:
    """RFC 3461 sections 4.1 and 5.2.2."""
    host = world.net.host("mx.elsewhere.test")
    host.answer, host.relays_dsn = answer, relays_dsn
    world.rows.add("dora@elsewhere.test", notify=notify)
    world.start()
    assert [each[1] for each in world.told()] == expected


def test_nobody_is_told_of_mail_from_the_null_path(world: World) -> None:
    """RFC 5321 section 4.5.5."""
    world.net.host("mx.elsewhere.test").answer = UNKNOWN
    world.rows.add("dora@elsewhere.test", reverse_path="", original_path="")
    world.start()
    assert world.told() == []
    assert not world.rows.rows


def test_recipients_that_fail_together_are_told_of_in_one_notice(world: World) -> None:
    """RFC 3461 section 6.2."""
    world.net.host("mx.elsewhere.test").answer = UNKNOWN
    for number in range(5):
        world.rows.add(f"d{number}@elsewhere.test", message_id=7)
    world.start()
    ((whom, recipients),) = world.telling.told
    assert (whom, len(recipients)) == ("carol@example.org", 5)


def test_a_recipient_of_ours_was_delivered_already(world: World) -> None:
    world.rows.add("alice@example.test", done="delivered", notify="SUCCESS")
    world.rows.add("list@example.test", done="expanded", notify="SUCCESS")
    world.start()
    assert sorted(each[1] for each in world.told()) == ["delivered", "expanded"]
    assert world.net.tried == []
    assert not world.rows.rows


def test_what_an_operator_has_returned_fails_with_his_words(world: World) -> None:
    world.rows.add("dora@elsewhere.test", done="returned", last_reply="No more of that")
    world.start()
    assert world.told() == [("dora@elsewhere.test", "failed", "5.0.0")]
    assert world.results() == ["failed"]
    assert world.net.tried == []


# ---------------------------------------------------------------- how much at a time


def test_connections_grow_with_success_up_to_the_limit() -> None:
    world = World(limits=lambda _route: Limits(first_connections=2, max_connections=6))
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    for number in range(60):
        world.rows.add(f"d{number}@elsewhere.test")
    world.start()
    assert len(host.open) == 2
    for _ in range(3):
        for sender in list(host.open):
            sender.finish()
        world.run(0.3)
    assert len(host.open) == 6


def test_a_connection_carries_so_many_messages_and_no_more() -> None:
    world = World(limits=lambda _route: Limits(first_connections=1, max_connections=1, messages_per_connection=10))
    for number in range(35):
        world.rows.add(f"d{number}@elsewhere.test")
    world.start()
    host = world.net.host("mx.elsewhere.test")
    assert len(host.served) == 35
    assert host.connects == 4


def test_an_idle_connection_is_kept_for_a_moment_and_then_ended(world: World) -> None:
    world.rows.add("dora@elsewhere.test")
    world.start()
    world.rows.add("emil@elsewhere.test")
    world.runner.wake()
    world.run(0.5)
    host = world.net.host("mx.elsewhere.test")
    assert (host.connects, len(host.served)) == (1, 2)
    world.run(10.0)
    assert [sender.has_quit for sender in host.senders] == [True]


def test_a_rate_is_kept() -> None:
    world = World(limits=lambda _route: Limits(messages_per_second=2.0))
    for number in range(100):
        world.rows.add(f"d{number}@elsewhere.test")
    world.runner.start()
    world.run(10.0, step=0.05)
    assert 19 <= len(world.net.host("mx.elsewhere.test").served) <= 24


def test_contents_in_memory_are_bounded(world: World) -> None:
    """What is held waits for its host; the rest waits in the database."""
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    content = memoryview(bytes(250_000))
    for number in range(1200):
        world.rows.add(f"d{number}@elsewhere.test", content=content, size_octets=len(content))
    world.start()
    held = world.runner.held
    assert 64 * 1024 * 1024 <= held * 250_000 <= 200 * 1024 * 1024


def test_a_smarthost_in_trouble_is_tried_for_one_message(world: World) -> None:
    """Its domains are many; what counts is the route."""
    for number in range(20):
        world.net.route_by(f"d{number}.test", "smarthost", key="smarthost:587")
        world.rows.add(f"dora@d{number}.test")
    world.net.host("smarthost").refuses = REFUSED
    world.start()
    assert len(world.net.tried) == 1
    world.net.host("smarthost").refuses = None
    world.run(600.0)
    assert not world.rows.rows


def test_a_paused_destination_is_not_tried_and_its_senders_are_told_in_time(world: World) -> None:
    world.rows.away["elsewhere.test"] = DestinationState("elsewhere.test", True, None, 0, "Maintenance")
    world.rows.add("dora@elsewhere.test")
    world.start(4 * HOUR + 120)
    assert world.net.tried == []
    assert [each[1] for each in world.told()] == ["delayed"]
    del world.rows.away["elsewhere.test"]
    world.run(30.0)
    assert world.results() == ["delivered"]


def test_a_fault_of_ours_loses_no_message(world: World) -> None:
    """The row is given back, and tried again."""
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    world.rows.add("dora@elsewhere.test")
    world.start()
    (sender,) = host.open
    sender.waiting.pop()[1].errback(RuntimeError("a fault"))
    world.run(1.0)
    assert not sender.is_usable
    host.answer = TAKEN
    world.run(120.0)
    assert not world.rows.rows
    assert host.served == ["dora@elsewhere.test"]


def test_a_defect_of_the_router_leaves_no_row_held(world: World) -> None:
    found = world.net.route

    async def broken(*_: Any, **__: Any) -> NoRoute:
        raise RuntimeError("a fault")

    world.net.route = broken  # type: ignore[method-assign]
    world.rows.add("dora@elsewhere.test")
    world.start()
    assert world.runner.held == 0
    world.net.route = found  # type: ignore[method-assign]
    world.run(120.0)
    assert not world.rows.rows


def test_a_defect_that_stays_does_not_keep_the_runner_busy() -> None:
    """Where the destination had been in trouble before, its rows were given back and claimed again without a pause."""
    is_broken = False
    world = World(connect=lambda *given: connect(*given))

    async def connect(*given: Any) -> FakeSender:
        if is_broken:
            raise RuntimeError("a fault")
        return await world.net.connect(*given)

    world.net.host("mx.elsewhere.test").refuses = REFUSED
    world.rows.add("dora@elsewhere.test")
    world.start()
    is_broken = True
    world.run(400.0)
    claims = world.rows.claims
    for _ in range(400):
        world.clock.advance(0.1)
    assert world.rows.claims - claims < 30


@pytest.mark.parametrize("is_paused", [False, True], ids=["dead", "paused"])
def test_mail_for_a_smarthost_that_does_not_come_back_ends_in_time(world: World, is_paused: bool) -> None:
    """All of it, though only one message at a time shows whether the smarthost is back."""
    for number in range(30):
        world.net.route_by(f"d{number}.test", "smarthost", key="smarthost:587")
        world.rows.add(f"dora@d{number}.test")
    if is_paused:
        world.rows.away["smarthost:587"] = DestinationState("smarthost:587", True, None, 0, "Maintenance")
    world.net.host("smarthost").refuses = REFUSED
    world.start(5 * DAY - 60)
    assert len(world.rows.rows) == 30
    world.run(3 * HOUR)
    assert not world.rows.rows
    assert sorted(each[1] for each in world.told()) == ["delayed"] * 30 + ["failed"] * 30


# ---------------------------------------------------------------- the database, and stops


def test_what_became_of_mail_waits_for_the_database(world: World) -> None:
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    world.rows.add("dora@elsewhere.test")
    world.start()
    world.rows.is_away = True
    host.open[0].finish()
    world.run(120.0)
    assert len(world.rows.rows) == 1
    world.rows.is_away = False
    world.run(30.0)
    assert not world.rows.rows
    assert host.served == ["dora@elsewhere.test"]


def test_what_is_under_way_is_not_begun_again_when_its_lease_was_lost(world: World) -> None:
    """Another node took this one for dead, and let go of its rows: they come back with the next claim."""
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    row = world.rows.add("dora@elsewhere.test")
    world.start()
    world.rows.rows[row].claim = None
    world.runner.wake()
    world.run(1.0)
    assert sum(sender.outstanding for sender in host.open) == 1
    host.open[0].finish(TAKEN)
    world.run(1.0)
    assert (world.runner.held, world.rows.rows, host.served) == (0, {}, ["dora@elsewhere.test"])


def test_what_is_claimed_while_it_stops_is_given_back() -> None:
    """The answer to a claim may come behind the order to stop."""
    claimed: Deferred[None] = Deferred()
    world = World()
    claim = world.rows.claim

    async def slowly(*given: Any, **more: Any) -> Any:
        await claimed
        return await claim(*given, **more)

    async def never(*_: Any, **__: Any) -> NoRoute:
        return await Deferred()

    world.rows.claim = slowly  # type: ignore[method-assign]
    world.net.route = never  # type: ignore[method-assign]
    world.rows.add("dora@elsewhere.test")
    world.start()
    world.stop()
    claimed.callback(None)
    world.run(1.0)
    assert [each.claim for each in world.rows.rows.values()] == [None]


def test_a_stop_finishes_what_is_under_way_and_gives_the_rest_back() -> None:
    world = World(limits=lambda _route: Limits(first_connections=1, max_connections=1))
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    for number in range(10):
        world.rows.add(f"d{number}@elsewhere.test")
    world.start()
    (sender,) = host.open
    under_way = sender.outstanding
    stopped = world.stop()
    assert stopped.called is False
    while sender.waiting:
        sender.finish()
    world.run(1.0)
    assert bool(stopped.called)
    assert len(world.rows.rows) == 10 - under_way
    assert all(each.claim is None and each.row.attempts == 0 for each in world.rows.rows.values())


def test_a_stop_does_not_wait_for_a_host_that_stalls(world: World) -> None:
    host = world.net.host("mx.elsewhere.test")
    host.answer = None
    world.rows.add("dora@elsewhere.test")
    world.start()
    stopped = world.stop(5.0)
    world.run(6.0)
    assert stopped.called
    assert len(world.rows.rows) == 1
    assert not host.open


def test_nothing_is_left_on_the_clock_after_a_stop(world: World) -> None:
    world.rows.add("dora@elsewhere.test")
    world.start()
    stopped = world.stop()
    world.run(15.0)
    assert stopped.called
    assert world.clock.getDelayedCalls() == []
