"""Hosts that fall silent or go at any octet, and the runner with a client of its own, on a clock: who hears what.

The queue is in memory; everything from the runner to the octets of the dialogue is what runs in production.

Standards: RFC 5321 sections 4.5.3.2 (time-outs), 4.5.4.1 (retries, giving up) and 6.1; RFC 1047 (duplicates); RFC 3464.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mailgate.outbound.connection import ClientTimeouts, MailSender, connect
from mailgate.outbound.plan import Host, Route, TlsDemand, TlsLevel
from tests.support import host as scripted
from tests.support.queueing import FakeNet, FakeRows, FakeTelling, runner_on

HOUR = 3600.0
DAY = 24 * HOUR
ADDRESS = "192.0.2.25"
FIRST_PORT = 1000


class Fault(Enum):
    """What a host does when its octets are used up."""

    GOES = "goes"
    STALLS = "stalls"


class Side(Enum):
    """Whose octets are counted."""

    REPLIES = "replies"
    COMMANDS = "commands"


FAULTS = pytest.mark.parametrize(
    ("side", "fault"), [(side, fault) for side in Side for fault in Fault], ids=lambda each: str(each.value)
)


class OneUnknown(scripted.Host):
    """A host that knows everybody but those who are gone."""

    def _answer(self, line: bytes) -> bytes:
        said = super()._answer(line)
        if line.startswith(b"RCPT TO:<gone") and said.startswith(b"250"):
            self._accepted -= 1
            return b"550 5.1.1 No such user\r\n"
        return said


@dataclass
class Place:
    """Where a host is: after so many octets each of its connections breaks; None: it does not."""

    octets: int | None
    side: Side = Side.REPLIES
    fault: Fault = Fault.GOES
    taken: int = 0  # messages whose end it has read


class Wire:
    """A transport whose other end is a host."""

    disconnecting = False

    def __init__(self, clock: Clock, place: Place, sender: Any) -> None:
        self._clock = clock
        self._place = place
        self._sender = sender
        self._host = OneUnknown()
        self._is_silent = self._is_gone = False
        self.heard = self.said = 0
        sender.makeConnection(self)
        self._say(self._host.greeting)

    def write(self, octets: bytes) -> None:
        place = self._place
        if self._is_silent:
            return
        if place.side is Side.COMMANDS and place.octets is not None:
            left = place.octets - self.heard
            is_broken = len(octets) > left
            octets = octets[: max(left, 0)]
            self.heard += len(octets)
            self._say(self._hear(octets))
            if is_broken:
                self._break()
            return
        self.heard += len(octets)
        self._say(self._hear(octets))

    def _hear(self, octets: bytes) -> bytes:
        before = len(self._host.messages)
        replies = self._host.receive(octets)
        self._place.taken += len(self._host.messages) - before
        return replies

    def _say(self, octets: bytes) -> None:
        place = self._place
        if self._is_silent or not octets:
            return
        is_broken = False
        if place.side is Side.REPLIES and place.octets is not None:
            left = place.octets - self.said
            is_broken = len(octets) > left
            octets = octets[:left]
        self.said += len(octets)
        if octets:
            self._clock.callLater(0, self._arrive, octets)
        if is_broken:
            self._break()

    def _arrive(self, octets: bytes) -> None:
        if not self._is_gone:
            self._sender.dataReceived(octets)

    def _break(self) -> None:
        self._is_silent = True
        if self._place.fault is Fault.GOES:
            self._clock.callLater(0, self._lost, ConnectionLost())

    def _lost(self, reason: Exception) -> None:
        if not self._is_gone:
            self._is_gone = self._is_silent = True
            self._sender.connectionLost(Failure(reason))

    def loseConnection(self) -> None:
        self._clock.callLater(0, self._lost, ConnectionDone())

    def abortConnection(self) -> None:
        self._clock.callLater(0, self._lost, ConnectionLost())

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming

    def unregisterProducer(self) -> None:
        """It never said that it was full."""


class Network(Clock):
    """A reactor: time, and connections to the places, by port."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = 1_000_000.0
        self.places: list[Place] = []
        self.wires: list[Wire] = []

    def connectTCP(self, address: str, port: int, factory: Any, *_: object) -> Network:
        self.callLater(0, self._made, self.places[port - FIRST_PORT], factory.buildProtocol(None))
        return self

    def _made(self, place: Place, sender: Any) -> None:
        self.wires.append(Wire(self, place, sender))

    def disconnect(self) -> None:
        """No connection takes time here."""


class World:
    """A runner, and a host for each of the places, with a message for two of its users: one of them is gone."""

    def __init__(self, places: list[Place]) -> None:
        self.network = Network()
        self.network.places = places
        self.rows = FakeRows(self.network.seconds)
        self.telling = FakeTelling()
        net = FakeNet(self.network.seconds)
        for number in range(len(places)):
            domain = f"d{number}.test"
            host = Host(f"mx.{domain}", (ADDRESS,), FIRST_PORT + number, TlsDemand(TlsLevel.NONE))
            net.routes[domain] = Route(domain, (host,))
            for user in ("gone", "to"):
                self.rows.add(f"{user}@{domain}", message_id=number + 1)
        self.runner = runner_on(
            self.network, self.rows, net, self.network.seconds, connect=self._connect, telling=self.telling
        )

    async def _connect(self, route: Route, host: Host, address: str) -> MailSender:
        nothing: Any = None  # TLS, where none is asked for
        return await connect(
            self.network,
            host,
            address,
            protocol="smtp",
            credentials=None,
            helo="mail.example.test",
            timeouts=ClientTimeouts(),
            tls=nothing,
            time=self.network.seconds,
        )

    def run(self, seconds: float) -> None:
        """Let time go by."""
        until = self.network.seconds() + seconds
        while self.network.seconds() < until:
            while any(call.getTime() <= self.network.seconds() + 1 for call in self.network.getDelayedCalls()):
                self.network.advance(0.1)
            self.network.advance(10.0)

    def told(self, action: str) -> Counter[str]:
        """How often a notice told of each recipient."""
        return Counter(
            each.recipient for _, recipients in self.telling.told for each in recipients if each.action.value == action
        )

    def attempts(self, result: str) -> Counter[str]:
        """How many attempts had that result, for each recipient."""
        return Counter(each.recipient for each in self.rows.attempts if each.result == result)


def dialogue_octets(side: Side) -> int:
    """How many octets that side has in a dialogue that nothing breaks, QUIT included."""
    world = World([Place(None)])
    world.runner.start()
    world.run(60.0)
    (wire,) = world.network.wires
    return wire.said if side is Side.REPLIES else wire.heard


def broken(side: Side, fault: Fault, step: int = 1) -> list[Place]:
    """A host for each octet, or for some, at which a dialogue can break."""
    return [Place(octets, side, fault) for octets in range(0, dialogue_octets(side), step)]


@FAULTS
def test_a_host_that_breaks_off_at_any_octet_costs_no_message(side: Side, fault: Fault) -> None:
    """When it is well again it has all of its mail; a second time only what it may have taken before."""
    world = World(broken(side, fault))
    world.runner.start()
    world.run(2 * HOUR)
    assert world.rows.rows
    for place in world.network.places:
        place.octets = None
    world.run(6 * HOUR)
    assert not world.rows.rows
    everywhere = range(len(world.network.places))
    assert world.told("failed") == {f"gone@d{number}.test": 1 for number in everywhere}
    assert world.attempts("delivered") == {f"to@d{number}.test": 1 for number in everywhere}
    doubtful = Counter(each.recipient for each in world.rows.attempts if each.is_ambiguous)
    assert doubtful
    for number, place in enumerate(world.network.places):
        assert 1 <= place.taken <= 1 + doubtful[f"to@d{number}.test"], number


@FAULTS
def test_a_host_that_stays_broken_is_one_notice_for_each_recipient_that_has_failed(side: Side, fault: Fault) -> None:
    """After five days; one of delay before it, and none of what was delivered."""
    world = World(broken(side, fault, 5))
    world.runner.start()
    world.run(5 * DAY + 2 * HOUR)
    assert not world.rows.rows
    delivered = world.attempts("delivered")
    everybody = {f"{user}@d{number}.test" for number in range(len(world.network.places)) for user in ("gone", "to")}
    assert world.told("failed") == dict.fromkeys(everybody - delivered.keys(), 1)
    assert 0 < len(delivered) < len(everybody) / 4
    assert set(delivered.values()) == {1}
    assert set(world.told("delayed").values()) == {1}
    assert world.told("delayed").keys() < world.told("failed").keys()
    assert world.runner.held == 0
