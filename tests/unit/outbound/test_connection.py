"""The connection to a host: time-outs in every phase, back-pressure, and nobody left waiting when it ends."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from mailgate.outbound.connection import ClientTimeouts, HostUnusable, MailSender, connect
from mailgate.outbound.plan import (
    Delivery,
    Host,
    OutgoingMessage,
    OutgoingRecipient,
    Result,
    TlsDemand,
    TlsLevel,
    TroubleKind,
)
from tests.support import host as scripted
from tests.support.outgoing import LINES, outgoing

TIMEOUTS = ClientTimeouts(
    connect=30, handshake=60, greeting=300, hello=301, mail=302, rcpt=303, data=120, chunk=180, end=600, quit=5
)
EHLO = b"250-host.test\r\n250-PIPELINING\r\n250 DSN\r\n"
ONE_BY_ONE = b"250 host.test\r\n"


class Transport:
    """Keeps what is written until the host reads, and pauses its producer, where the host is slow, as a socket does."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.is_slow = self.is_aborted = self.disconnecting = False
        self.most_octets = 0
        self._held = b""
        self._producer: Any = None

    def write(self, octets: bytes) -> None:
        self._held += octets
        self.most_octets = max(self.most_octets, len(self._held))
        if self.is_slow and len(self._held) > 65536 and self._producer is not None:
            self._producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.is_aborted = True

    def take(self) -> bytes:
        """What the host reads."""
        octets, self._held = self._held, b""
        return octets


class NoTls:
    """No TLS here."""

    def creator(self, demand: TlsDemand, host_name: str) -> Any:
        """Never asked for."""
        raise AssertionError

    def judge(self, connection: Any, demand: TlsDemand, host_name: str) -> Any:
        """Never asked for."""
        raise AssertionError


class Dialed:
    """A connection being made, and what came of it."""

    def __init__(self, *, level: TlsLevel = TlsLevel.NONE, unix_path: str = "", source: str | None = None) -> None:
        self.reactor: Any = MemoryReactorClock()  # Any: it makes itself a reactor's interfaces
        self.transport = Transport()
        self.ready: list[MailSender | Failure] = []
        self.deliveries: list[Delivery] = []
        self.connecting: Deferred[Any] = Deferred.fromCoroutine(
            connect(
                self.reactor,
                Host("host.test", ("192.0.2.25",), 25, TlsDemand(level), unix_path),
                "" if unix_path else "192.0.2.25",
                protocol="lmtp" if unix_path else "smtp",
                credentials=None,
                helo="mail.example.test",
                timeouts=TIMEOUTS,
                tls=NoTls(),
                time=self.reactor.seconds,
                source_address=source,
            )
        )
        self.connecting.addBoth(self.ready.append)

    def made(self) -> Dialed:
        factory = (self.reactor.tcpClients or self.reactor.unixClients)[0][2 if self.reactor.tcpClients else 1]
        protocol = factory.buildProtocol(None)
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        return self

    def says(self, octets: bytes) -> bytes:
        self.transport.protocol.dataReceived(octets)
        return self.transport.take()

    def lost(self, reason: Exception | None = None) -> None:
        self.transport.protocol.connectionLost(Failure(reason or ConnectionDone()))

    def send(self, message: OutgoingMessage) -> bytes:
        self.sender.send(message).addCallback(self.deliveries.append)
        return self.transport.take()

    @property
    def sender(self) -> MailSender:
        (sender,) = self.ready
        assert isinstance(sender, MailSender)
        return sender

    @property
    def unusable(self) -> HostUnusable:
        (failure,) = self.ready
        assert isinstance(failure, Failure)
        assert isinstance(failure.value, HostUnusable)
        return failure.value

    def was_aborted(self) -> bool:
        return self.transport.is_aborted

    @property
    def is_clean(self) -> bool:
        """Whether no timer is left."""
        return not self.reactor.getDelayedCalls()


def opened(ehlo: bytes = EHLO) -> Dialed:
    dialed = Dialed().made()
    assert dialed.says(b"220 host.test\r\n") == b"EHLO mail.example.test\r\n"
    dialed.says(ehlo)
    return dialed


# ---------------------------------------------------------------- where to


def test_the_address_and_the_port_are_those_of_the_host() -> None:
    """RFC 5321 section 5.1; from the source address that was asked for."""
    dialed = Dialed(source="192.0.2.9")
    address, port, _, timeout, bind_address = dialed.reactor.tcpClients[0]
    assert (address, port, timeout, bind_address) == ("192.0.2.25", 25, 30, ("192.0.2.9", 0))


def test_lmtp_goes_over_a_unix_socket() -> None:
    """RFC 2033 section 5: on a host, and not over port 25."""
    dialed = Dialed(unix_path="/run/lmtp").made()
    assert dialed.reactor.unixClients[0][0] == "/run/lmtp"
    assert dialed.says(b"220 host.test\r\n") == b"LHLO mail.example.test\r\n"
    dialed.says(EHLO)
    assert (dialed.sender.endpoint.address, dialed.sender.endpoint.port) == ("/run/lmtp", 0)


def test_a_connection_refused_is_trouble_with_connecting() -> None:
    """The next address, or the next host, may do."""
    dialed = Dialed()
    dialed.reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    assert dialed.unusable.trouble.kind is TroubleKind.CONNECT
    assert dialed.unusable.trouble.status == "4.4.1"
    assert dialed.is_clean


def test_giving_up_while_connecting_leaves_nothing_behind() -> None:
    """Who waits may be cancelled."""
    dialed = Dialed().made()
    dialed.connecting.cancel()
    assert dialed.transport.disconnecting or dialed.was_aborted()
    dialed.lost()
    assert len(dialed.ready) == 1
    assert dialed.is_clean


# ---------------------------------------------------------------- hosts that stall


def test_a_host_that_never_greets_is_left_after_five_minutes() -> None:
    """RFC 5321 section 4.5.3.2.1."""
    dialed = Dialed().made()
    dialed.reactor.advance(299)
    assert not dialed.ready
    dialed.reactor.advance(2)
    assert dialed.unusable.trouble.kind is TroubleKind.TIMEOUT
    assert dialed.was_aborted()
    dialed.lost(ConnectionLost())
    assert dialed.is_clean


def test_a_host_that_gives_its_greeting_an_octet_at_a_time_has_no_more_time_for_it() -> None:
    """Part of a reply is no progress."""
    dialed = Dialed().made()
    for _ in range(10):
        dialed.reactor.advance(29)
        dialed.says(b"2")
        if dialed.ready:
            break
    dialed.reactor.advance(11)
    assert dialed.unusable.trouble.kind in (TroubleKind.TIMEOUT, TroubleKind.PROTOCOL)


@pytest.mark.parametrize(
    ("said", "seconds", "is_ambiguous"),
    [
        ([], 302, None),
        ([b"250 Ok\r\n"], 303, None),
        ([b"250 Ok\r\n", b"250 Ok\r\n"], 120, None),
        ([b"250 Ok\r\n", b"250 Ok\r\n", b"354 Go on\r\n"], 600, True),
    ],
)
def test_a_host_that_stalls_has_the_time_of_its_phase(
    said: list[bytes], seconds: int, is_ambiguous: bool | None
) -> None:
    """RFC 5321 section 4.5.3.2: MAIL, RCPT and DATA, and the end of data, each its own."""
    dialed = opened(ONE_BY_ONE)
    dialed.reactor.advance(1000)  # an idle session owes nothing
    dialed.send(outgoing())
    for octets in said:
        dialed.reactor.advance(100)
        dialed.says(octets)
    dialed.reactor.advance(seconds - 1)
    assert not dialed.deliveries
    dialed.reactor.advance(1)
    (delivery,) = dialed.deliveries
    assert delivery.trouble is not None
    assert delivery.trouble.kind is TroubleKind.TIMEOUT
    assert [outcome.is_ambiguous for outcome in delivery.outcomes] == ([] if is_ambiguous is None else [is_ambiguous])
    assert dialed.was_aborted()
    assert not dialed.sender.is_usable
    dialed.lost(ConnectionLost())
    assert dialed.is_clean


def test_quit_waits_five_seconds_and_no_longer() -> None:
    """Nothing depends on the reply."""
    dialed = opened()
    gone: list[object] = []
    Deferred.fromCoroutine(dialed.sender.quit()).addBoth(gone.append)
    assert dialed.transport.take() == b"QUIT\r\n"
    dialed.reactor.advance(4.9)
    assert not dialed.was_aborted()
    dialed.reactor.advance(0.2)
    dialed.reactor.advance(5)
    assert dialed.was_aborted()
    dialed.lost()
    assert gone == [None]
    assert dialed.is_clean


def test_quit_ends_the_session() -> None:
    """RFC 5321 section 4.1.1.10: the server closes, and so do we."""
    dialed = opened()
    gone: list[object] = []
    Deferred.fromCoroutine(dialed.sender.quit()).addBoth(gone.append)
    dialed.says(b"221 Bye\r\n")
    assert dialed.transport.disconnecting
    dialed.lost()
    assert gone == [None]
    assert dialed.sender.trouble is None
    assert dialed.is_clean


# ---------------------------------------------------------------- messages


def test_content_and_the_next_envelope_go_in_one_write() -> None:
    """RFC 2920 section 3.1; the third message is handed over by whoever hears of the first."""
    dialed = opened()
    sender = dialed.sender
    assert sender.max_outstanding == 2
    third: list[Delivery] = []

    def go_on(delivery: Delivery) -> None:
        dialed.deliveries.append(delivery)
        sender.send(outgoing("erin@host.test", message_id=3)).addCallback(third.append)

    sender.send(outgoing("carol@host.test", message_id=1)).addCallback(go_on)
    assert dialed.transport.take().endswith(b"RCPT TO:<carol@host.test>\r\nDATA\r\n")
    assert dialed.send(outgoing("dave@host.test", message_id=2)) == b""
    written = dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    assert written.endswith(b"\r\n.\r\nMAIL FROM:<alice@example.test>\r\nRCPT TO:<dave@host.test>\r\nDATA\r\n")
    assert sender.outstanding == 2
    written = dialed.says(b"250 2.0.0 First\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    assert written.endswith(b"\r\n.\r\nMAIL FROM:<alice@example.test>\r\nRCPT TO:<erin@host.test>\r\nDATA\r\n")
    assert dialed.deliveries[0].outcomes[0].reply == "250 2.0.0 First"
    dialed.says(b"250 2.0.0 Second\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    dialed.says(b"250 2.0.0 Third\r\n")
    assert third[0].outcomes[0].reply == "250 2.0.0 Third"


def test_a_connection_lost_ends_all_that_is_outstanding() -> None:
    """What the end was sent of is ambiguous; the other has not been tried."""
    dialed = opened()
    dialed.send(outgoing(message_id=1))
    dialed.send(outgoing(message_id=2))
    dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    dialed.lost(ConnectionLost())
    first, second = dialed.deliveries
    assert first.outcomes[0].is_ambiguous
    assert second.outcomes == ()
    assert first.trouble == second.trouble
    assert dialed.is_clean
    dialed.send(outgoing(message_id=3))
    assert dialed.deliveries[2].outcomes == ()


def test_abort_ends_all_that_is_outstanding() -> None:
    """As if the host had gone."""
    dialed = opened()
    dialed.send(outgoing())
    dialed.sender.abort()
    assert dialed.was_aborted()
    assert len(dialed.deliveries) == 1
    dialed.lost()
    assert dialed.is_clean


def test_abort_drops_a_connection_that_has_nothing_to_do() -> None:
    """Without a word, and without blame."""
    dialed = opened()
    dialed.send(outgoing())
    dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    dialed.says(b"250 Ok\r\n")
    dialed.sender.abort()
    assert dialed.was_aborted()
    dialed.lost()
    assert dialed.sender.trouble is None
    assert dialed.is_clean


class Stored:
    """Content that has to be read: the test says when."""

    def __init__(self, size_octets: int) -> None:
        self.size_octets = size_octets
        self.asked: list[tuple[int, Deferred[bytes]]] = []

    def piece(self, number: int) -> Deferred[bytes]:
        """As `OutgoingContent.piece`."""
        deferred: Deferred[bytes] = Deferred()
        self.asked.append((number, deferred))
        return deferred


def stored_message(size_octets: int = 1000) -> tuple[OutgoingMessage, Stored]:
    content = Stored(size_octets)
    return OutgoingMessage(7, "", (OutgoingRecipient(70, "carol@host.test"),), content), content


def test_content_is_read_piece_by_piece_when_it_is_wanted() -> None:
    """Not before the host has said 354."""
    dialed = opened()
    message, content = stored_message()
    dialed.send(message)
    assert not content.asked
    assert dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n") == b""
    content.asked[0][1].callback(LINES)
    assert dialed.transport.take() == LINES.replace(b"\r\n.", b"\r\n..")
    content.asked[1][1].callback(b"")
    assert dialed.transport.take() == b".\r\n"
    assert [number for number, _ in content.asked] == [0, 1]
    dialed.says(b"250 2.0.0 Ok\r\n")
    assert dialed.deliveries[0].outcomes[0].result is Result.DELIVERED


def test_content_that_cannot_be_read_breaks_the_connection_off() -> None:
    """The host must not take half of it for the whole."""
    dialed = opened()
    message, content = stored_message()
    dialed.send(message)
    dialed.send(outgoing(message_id=2))
    dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    content.asked[0][1].callback(b"Half")
    content.asked[1][1].errback(Failure(OSError("gone")))
    assert b".\r\n" not in dialed.transport.take()
    assert dialed.was_aborted()
    first, second = dialed.deliveries
    assert (first.outcomes[0].result, first.outcomes[0].status) == (Result.DEFERRED, "4.3.0")
    assert (second.outcomes, second.trouble) == ((), None)
    assert not dialed.sender.is_usable


CHUNKING = b"250-host.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n"


def test_a_piece_that_comes_after_the_content_was_refused_goes_nowhere() -> None:
    """RFC 3030 section 2: a chunk may be refused while the next one is being read."""
    dialed = opened(CHUNKING)
    message, content = stored_message(2_000_000)
    dialed.send(message)
    dialed.says(b"250 Ok\r\n250 Ok\r\n")
    content.asked[0][1].callback(b"First\r\n")
    assert dialed.transport.take() == b"BDAT 7\r\nFirst\r\n"
    dialed.says(b"552 5.3.4 Too large\r\n")
    assert dialed.deliveries[0].outcomes[0].status == "5.3.4"
    written = dialed.send(outgoing(message_id=2))
    content.asked[1][1].callback(b"Second\r\n")
    assert dialed.transport.take() == b""
    assert written.startswith(b"RSET\r\nMAIL FROM")
    assert dialed.says(b"250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n").startswith(b"Subject: Example")


def test_the_rest_of_a_piece_that_was_refused_is_not_sent_for_another_message() -> None:
    """Even by a host that answers before it has been asked, and does not read meanwhile."""
    dialed = opened(CHUNKING)
    dialed.transport.is_slow = True
    dialed.send(outgoing(pieces=(b"x" * 2_000_000 + b"\r\n",)))
    dialed.send(outgoing(message_id=2))
    dialed.transport.protocol.dataReceived(b"250 Ok\r\n250 Ok\r\n")
    dialed.transport.protocol.dataReceived(b"552 No\r\n" + b"250 Ok\r\n" * 3 + b"354 Go on\r\n")
    dialed.transport.take()
    dialed.transport.protocol.resumeProducing()
    assert dialed.transport.take() == LINES.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def test_content_that_never_comes_is_given_up() -> None:
    """Every wait has a deadline."""
    dialed = opened()
    message, content = stored_message()
    dialed.send(message)
    dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    cancelled: list[object] = []
    content.asked[0][1].addErrback(cancelled.append)
    dialed.reactor.advance(180)
    assert dialed.deliveries[0].outcomes[0].result is Result.DEFERRED
    assert dialed.was_aborted()


def test_large_content_does_not_pile_up_for_a_host_that_does_not_read() -> None:
    """At most 256 KiB are held; a host that takes some in time is not timed out, one that takes nothing is."""
    dialed = opened()
    dialed.transport.is_slow = True
    octets = (b"x" * 998 + b"\r\n") * 3000
    dialed.send(outgoing(pieces=(octets,)))
    received = dialed.says(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    while not received.endswith(b"\r\n.\r\n"):
        dialed.reactor.advance(179)
        dialed.transport.protocol.resumeProducing()
        part = dialed.transport.take()
        assert part
        received += part
    assert dialed.transport.most_octets <= 256 * 1024
    assert received == octets + b".\r\n"
    dialed.says(b"250 2.0.0 Ok\r\n")
    dialed.send(outgoing(pieces=(octets,)))
    dialed.transport.protocol.dataReceived(b"250 Ok\r\n250 Ok\r\n354 Go on\r\n")
    dialed.reactor.advance(180)
    assert dialed.deliveries[1].trouble is not None
    assert dialed.deliveries[1].trouble.kind is TroubleKind.TIMEOUT
    assert dialed.deliveries[1].outcomes == ()


@pytest.mark.parametrize("limit", range(0, 260, 3))
def test_a_host_that_goes_at_any_octet_leaves_nobody_waiting(limit: int) -> None:
    """Each message has its Delivery, once; each timer is gone."""
    host = scripted.Host()
    dialed = Dialed().made()
    waiting = host.greeting
    while waiting and limit > 0:
        part, waiting, limit = waiting[:limit], waiting[limit:], limit - len(waiting)
        waiting += host.receive(dialed.says(part))
        if dialed.ready and not dialed.deliveries and not dialed.sender.outstanding:
            for number in (1, 2):
                waiting += host.receive(dialed.send(outgoing(message_id=number)))
    dialed.lost(ConnectionLost())
    if isinstance(dialed.ready[0], MailSender):
        assert [delivery.message_id for delivery in dialed.deliveries] == [1, 2]
    else:
        assert dialed.unusable.trouble.kind is TroubleKind.LOST
    assert dialed.is_clean
