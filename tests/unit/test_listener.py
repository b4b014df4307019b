"""The connection: time-outs, back-pressure, who owns what waits, the PROXY protocol, shutting down."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from mailgate.listener import Timeouts, Tolerated
from mailgate.policy.chain import Chain
from mailgate.policy.limits import LimitsPolicy, NodeLimits, Usage
from mailgate.policy.stage import SessionView, Stage
from mailgate.policy.verdict import Decision, Defer, Quarantine
from mailgate.smtp.reply import reply
from mailgate.smtp.session import Limits, Settings, State
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.records import Disposition, Stored
from tests.support.connection import Client, FakeTransport, Listener

TIMEOUTS = Timeouts(command=300, data=180, transaction=1800, handshake=30, goodbye=10)


@pytest.fixture
def failures() -> Iterator[list[LogEvent]]:
    """The tracebacks that were logged; there must be none unless the test takes them out."""
    logged: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            logged.append(event)

    globalLogPublisher.addObserver(observe)
    yield logged
    globalLogPublisher.removeObserver(observe)
    assert not logged


@pytest.fixture(autouse=True)
def _no_traceback(failures: list[LogEvent]) -> None:
    """In no test does one appear unseen."""


def greeted(listener: Listener, peer: str = "192.0.2.7") -> Client:
    client = listener.connect(peer)
    client.say("EHLO client.example")
    return client


def in_transaction(listener: Listener) -> Client:
    client = greeted(listener)
    client.say("MAIL FROM:<alice@client.example>", "RCPT TO:<bob@example.test>")
    assert client.connection._session is not None
    return client


def in_data(listener: Listener) -> Client:
    client = in_transaction(listener)
    assert client.say("DATA").startswith(b"354 ")
    return client


def in_chunk(listener: Listener) -> Client:
    client = in_transaction(listener)
    assert client.say("BDAT 1000000 LAST") == b""
    return client


PATIENT = Limits(errors=10**6, idle_commands=10**6)


# ------------------------------------------------------------ time


@pytest.mark.parametrize(
    ("begin", "seconds"),
    [
        (lambda listener: listener.connect(), 300),
        (greeted, 300),
        (in_transaction, 300),
        (in_data, 180),
        (in_chunk, 180),
    ],
    ids=["greeting", "command", "transaction", "data", "chunk"],
)
def test_a_silent_client_hears_421_and_is_aborted_after_the_grace(begin: Any, seconds: int) -> None:
    """RFC 5321 section 4.5.3.2; and a peer that never reads can't hold the connection open."""
    listener = Listener(timeouts=TIMEOUTS)
    client = begin(listener)
    client.heard()
    client.transport.is_read = False
    listener.clock.advance(seconds - 1)
    assert client.heard() == b""
    listener.clock.advance(1)
    assert client.heard().startswith(b"421 4.4.2 ")
    assert client.transport.is_losing
    listener.clock.advance(9)
    assert not client.transport.is_aborted
    listener.clock.advance(1)
    assert client.transport.is_aborted
    assert not listener.clock.getDelayedCalls()
    assert listener.journal.sessions[0].ending == "timeout"
    assert not listener.factory.connections


def test_a_client_that_reads_the_421_is_not_aborted() -> None:
    listener = Listener(timeouts=TIMEOUTS)
    client = greeted(listener)
    listener.clock.advance(300)
    assert client.transport.is_gone
    assert not client.transport.is_aborted
    assert not listener.clock.getDelayedCalls()


def test_a_reply_starts_the_time_anew() -> None:
    listener = Listener(timeouts=TIMEOUTS)
    client = greeted(listener)
    for _ in range(10):
        listener.clock.advance(299)
        assert client.say("NOOP").startswith(b"250 ")


def test_data_starts_the_time_anew() -> None:
    listener = Listener(timeouts=TIMEOUTS)
    client = in_data(listener)
    for _ in range(5):
        listener.clock.advance(179)
        client.send(b"x\r\n")
    listener.clock.advance(179)
    assert client.say(".").startswith(b"250 ")


def test_a_command_has_to_arrive_whole_in_time() -> None:
    """An octet now and then does not keep a connection."""
    listener = Listener(timeouts=TIMEOUTS)
    client = greeted(listener)
    for _ in range(30):
        client.send(b"x")
        listener.clock.advance(10)
    assert client.heard().startswith(b"421 4.4.2 ")


def test_an_endless_command_is_bounded_in_time() -> None:
    listener = Listener(timeouts=TIMEOUTS)
    client = greeted(listener)
    for _ in range(30):
        client.send(b"x" * 5000)
        listener.clock.advance(10)
    assert client.heard().startswith(b"421 4.4.2 ")


@pytest.mark.parametrize("begin", [in_data, in_chunk], ids=["data", "chunk"])
def test_a_whole_transaction_is_bounded_against_slow_drip(begin: Any) -> None:
    listener = Listener(timeouts=TIMEOUTS)
    client = begin(listener)
    for second in range(0, 1800, 100):
        assert client.heard() == b"", second
        client.send(b"x\r\n")
        listener.clock.advance(100)
    assert client.heard().startswith(b"421 4.4.2 The transaction took too long")
    assert client.transport.is_gone
    assert [record.disposition for record in listener.journal.transactions] == [Disposition.ABANDONED]


def test_commands_within_a_transaction_do_not_prolong_it() -> None:
    listener = Listener(timeouts=TIMEOUTS)
    client = in_transaction(listener)
    for _ in range(0, 1800, 100):
        assert client.say("NOOP").startswith(b"250 ")
        listener.clock.advance(100)
    assert client.heard().startswith(b"421 4.4.2 The transaction took too long")


def test_a_chunk_without_a_transaction_is_bounded_against_slow_drip() -> None:
    """Its octets are read only so that they are not run as commands."""
    listener = Listener(timeouts=TIMEOUTS)
    client = greeted(listener)
    client.send(b"BDAT 99999999999999999999\r\n")
    for _ in range(0, 1800, 100):
        client.send(b"x")
        listener.clock.advance(100)
    assert client.heard().startswith(b"421 4.4.2 ")
    assert client.transport.is_gone


@pytest.mark.parametrize("stage", list(Stage))
def test_no_client_is_timed_out_while_it_waits_for_us(stage: Stage) -> None:
    """However long a decision takes: its own deadline is the chain's business."""
    listener = Listener(timeouts=TIMEOUTS)
    decision: Deferred[Decision] = Deferred()
    listener.chain.answers[stage] = lambda _request: decision
    client = listener.connect()
    client.say("EHLO a.example", "MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA", "x", ".")
    listener.clock.advance(100_000)
    assert client.heard() == b""
    del listener.chain.answers[stage]
    decision.callback(Decision(Quarantine("late")))
    listener.clock.advance(100)  # the clock for the client's next command starts with our answer
    assert client.codes() == [220, 250, 250, 250, 354, 250][list(Stage).index(stage) :]
    assert not client.transport.is_losing


def test_no_client_is_timed_out_while_a_message_is_stored() -> None:
    listener = Listener(timeouts=TIMEOUTS)
    listener.writer.is_slow = True
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    listener.clock.advance(100_000)
    assert client.heard() == b""
    listener.writer.answer()
    assert client.codes() == [250]
    listener.clock.advance(299)
    assert client.heard() == b""


# ------------------------------------------------------------ back-pressure


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    listener = Listener(session_limits=PATIENT, timeouts=TIMEOUTS)
    client = greeted(listener)
    client.transport.is_read = False
    sent = 0
    while client.transport.producerState == "producing" and sent < 10**6:
        client.send(b"HELP\r\n" * 1000)
        sent += 1
        listener.clock.advance(0)
    assert client.transport.producerState == "paused"
    assert len(client.heard()) < 65536 + 64 * 1024
    client.send(b"HELP\r\n")  # was on its way
    assert client.heard() == b""
    client.transport.client_reads()
    listener.clock.advance(0)
    assert client.transport.producerState == "producing"
    assert client.heard().startswith(b"214 ")


def test_a_client_that_never_reads_is_aborted() -> None:
    """Back-pressure must not give it our time-outs back."""
    listener = Listener(timeouts=TIMEOUTS, session_limits=PATIENT)
    client = greeted(listener)
    client.transport.is_read = False
    client.send(b"HELP\r\n" * 2000)
    listener.clock.advance(0)
    assert client.connection._is_paused
    listener.clock.advance(300)
    assert not client.transport.is_aborted
    listener.clock.advance(10)
    assert client.transport.is_aborted


@pytest.mark.parametrize("outcome", ["stored", "refused"])
def test_what_was_decided_is_done_though_the_client_does_not_read(outcome: str) -> None:
    """A message that has arrived whole is stored, and a session that is to end ends."""
    listener = Listener(timeouts=TIMEOUTS, session_limits=PATIENT)
    client = greeted(listener)
    decision: Deferred[Decision] = Deferred()
    listener.chain.answers[Stage.END_OF_DATA] = lambda _request: decision
    client.transport.is_read = False
    client.send(b"HELP\r\n" * 50 + b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nx\r\n.\r\n" + b"HELP\r\n")
    client.transport.producer.pauseProducing()
    if outcome == "stored":
        decision.callback(Decision(Quarantine("why not")))
        assert len(listener.writer.stored) == 1
        assert listener.writer.confirmed == []
        assert client.codes()[-1] == 250  # HELP waits
    else:
        decision.callback(Decision(Defer(reply(421, "4.7.0", "Enough"))))
        assert client.transport.is_losing
        listener.clock.advance(10)
        assert client.transport.is_aborted


def test_input_is_bounded_while_a_decision_is_awaited() -> None:
    listener = Listener(session_limits=PATIENT)
    decision: Deferred[Decision] = Deferred()
    listener.chain.answers[Stage.MAIL] = lambda _request: decision
    client = greeted(listener)
    client.send(b"MAIL FROM:<>\r\n")
    for _ in range(100):
        if client.transport.producerState == "paused":
            break
        client.send(b"NOOP\r\n" * 1000)
    session = client.connection._session
    assert session is not None
    assert 65536 < session.waiting_octets < 65536 + 6000
    assert client.transport.producerState == "paused"
    decision.callback(Decision(Quarantine("late")))
    listener.clock.advance(0)
    assert client.transport.producerState == "producing"
    assert set(client.codes()) == {250}


def test_others_have_a_turn_while_a_client_says_much() -> None:
    """64 KiB of commands that came in one read are not all done before anybody else is looked at."""
    listener = Listener(session_limits=PATIENT)
    client = greeted(listener)
    client.send(b"NOOP\r\n" * 10_000)
    assert len(client.codes()) == 64
    assert len(listener.clock.getDelayedCalls()) == 2  # the time-out, and the next turn
    listener.clock.advance(0)
    assert len(client.codes()) == 10_000 - 64
    client.send(b"NOOP\r\n" * 10_000)
    client.transport.client_goes()
    listener.clock.advance(0)
    assert not listener.clock.getDelayedCalls()


# ------------------------------------------------------------ the client goes


@pytest.mark.parametrize("stage", list(Stage))
def test_a_decision_is_cancelled_when_the_client_goes(stage: Stage) -> None:
    listener = Listener()
    cancelled: list[Deferred[Decision]] = []
    listener.chain.answers[stage] = lambda _request: Deferred(cancelled.append)
    client = listener.connect()
    client.say("EHLO a.example", "MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA", "x", ".")
    assert not cancelled
    client.transport.client_goes()
    assert len(cancelled) == 1
    assert [record.ending for record in listener.journal.sessions] == ["lost"]
    is_in_transaction = stage not in (Stage.CONNECT, Stage.HELO, Stage.MAIL)
    assert len(listener.journal.transactions) == (1 if stage is Stage.MAIL or is_in_transaction else 0)
    assert not listener.writer.stored
    assert listener.usage.sessions == listener.usage.held_octets == 0
    assert not listener.clock.getDelayedCalls()


def test_a_policy_that_swallows_the_cancellation_does_no_harm() -> None:
    listener = Listener()

    def cancel(deferred: Deferred[Decision]) -> None:
        deferred.callback(Decision(Quarantine("too late")))

    listener.chain.answers[Stage.END_OF_DATA] = lambda _request: Deferred(cancel)
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    client.transport.client_goes()
    assert not listener.writer.stored
    assert [record.disposition for record in listener.journal.transactions] == [Disposition.ABANDONED]


def test_a_message_on_its_way_to_storage_is_stored_though_the_client_has_gone() -> None:
    """The writer is told that nobody has heard the 250: the client may send the same again."""
    listener = Listener()
    listener.writer.is_slow = True
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    client.transport.client_goes()
    assert listener.writer.cancelled == 0
    assert listener.writer.abandoned == [listener.writer.stored[0].transaction.id]
    assert listener.writer.unconfirmed == []
    assert listener.usage.held_octets == 3
    listener.writer.answer()
    assert listener.writer.unconfirmed == [listener.writer.stored[0].transaction.id]
    assert listener.journal.transactions == []
    assert listener.usage.held_octets == 0
    assert len(listener.journal.sessions) == 1


def test_a_message_that_could_not_be_stored_after_the_client_has_gone_is_recorded() -> None:
    listener = Listener()
    listener.writer.is_slow = True
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    client.transport.client_goes()
    listener.writer.waiting[0].errback(Failure(StorageUnavailable()))
    assert [record.disposition for record in listener.journal.transactions] == [Disposition.DEFERRED]
    assert listener.writer.unconfirmed == []


def test_an_unconfirmed_message_is_reported_when_the_client_goes() -> None:
    listener = Listener()
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    client.transport.client_goes()
    assert listener.writer.unconfirmed == [listener.writer.stored[0].transaction.id]
    assert listener.writer.confirmed == []


def test_the_next_command_confirms_a_message() -> None:
    listener = Listener()
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    client.send(b"QUIT\r\n")
    assert listener.writer.confirmed == [listener.writer.stored[0].transaction.id]
    assert listener.writer.unconfirmed == []


def test_mail_behind_the_final_dot_waits_for_the_store() -> None:
    listener = Listener()
    listener.writer.is_slow = True
    client = in_data(listener)
    assert client.say("x", ".", "MAIL FROM:<two@client.example>", "NOOP") == b""
    asked = len(listener.chain.asked)
    listener.writer.answer()
    assert len(listener.chain.asked) == asked + 1
    assert client.codes() == [250, 250, 250]
    client.transport.client_goes()
    assert listener.writer.unconfirmed == [listener.writer.stored[0].transaction.id]


# ------------------------------------------------------------ failures of ours


def test_storage_that_is_away_is_451_without_a_traceback() -> None:
    listener = Listener()
    listener.writer.is_slow = True
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    listener.writer.waiting.pop().errback(Failure(StorageUnavailable("away")))
    assert client.heard().startswith(b"451 4.3.0 ")


def test_storage_that_breaks_is_451_with_a_traceback(failures: list[LogEvent]) -> None:
    """Whatever is wrong with us, mail does not bounce."""
    listener = Listener()
    listener.writer.is_slow = True
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    listener.writer.waiting.pop().errback(Failure(ZeroDivisionError()))
    assert client.heard().startswith(b"451 4.3.0 ")
    assert len(failures) == 1
    failures.clear()
    assert client.say("NOOP").startswith(b"250 ")


def test_a_defect_ends_one_session_and_no_other(failures: list[LogEvent]) -> None:
    listener = Listener()
    decision: Deferred[Decision] = Deferred()
    other = greeted(listener)
    listener.chain.answers[Stage.MAIL] = lambda _request: decision
    client = greeted(listener)
    client.send(b"MAIL FROM:<>\r\n")
    decision.callback(None)  # type: ignore[arg-type]  # that is the defect
    assert client.transport.is_aborted
    assert len(failures) == 1
    failures.clear()
    assert other.say("NOOP").startswith(b"250 ")


def test_a_decision_that_a_policy_gives_up_by_itself_is_451() -> None:
    """A client must not wait for an answer that nobody is going to give."""
    listener = Listener()
    decision: Deferred[Decision] = Deferred()
    listener.chain.answers[Stage.MAIL] = lambda _request: decision
    client = greeted(listener)
    assert client.say("MAIL FROM:<>", "NOOP") == b""
    decision.cancel()
    assert client.codes() == [451, 250]


def test_a_resend_hears_the_first_id() -> None:
    listener = Listener()
    listener.writer.is_slow = True
    client = in_data(listener)
    client.send(b"x\r\n.\r\n")
    first = listener.writer.stored[0].transaction.id
    listener.writer.waiting.pop().callback(Stored(first, is_resend=False))
    accepted = client.heard()
    client.say("MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA")
    client.send(b"x\r\n.\r\n")
    listener.writer.waiting.pop().callback(Stored(first, is_resend=True))
    assert client.heard() == accepted


# ------------------------------------------------------------ bounds


def limited(limits: NodeLimits, **more: Any) -> Listener:
    usage = Usage()
    listener = Listener(limits=limits, usage=usage, **more)
    chain = Chain(listener.clock, [LimitsPolicy(limits, usage)])
    listener.chain = listener.factory.chain = chain
    return listener


def test_sessions_over_the_bound_hear_421() -> None:
    listener = limited(NodeLimits(sessions=2))
    clients = [listener.connect(f"192.0.2.{number}") for number in range(3)]
    assert [client.heard()[:9] for client in clients] == [b"220 mx.ex", b"220 mx.ex", b"421 4.3.2"]
    assert clients[2].transport.is_gone
    assert listener.usage.sessions == 2
    clients[0].transport.client_goes()
    assert listener.connect("192.0.2.9").heard().startswith(b"220 ")


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        (["192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.8"], [220, 220, 421, 220]),
        (["::ffff:192.0.2.7", "192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"], [220, 220, 421, 220]),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::1", "2001:db8:0:1::1"], [220, 220, 421, 220]),
        (["198.51.100.1"] * 4, [220, 220, 220, 220]),
    ],
    ids=["IPv4", "IPv4 on an IPv6 socket", "IPv6 by /64", "unlimited"],
)
def test_sessions_of_a_network_over_the_bound_hear_421(peers: list[str], expected: list[int]) -> None:
    listener = limited(NodeLimits(sessions_per_network=2, unlimited_networks=(ip_network("198.51.100.0/24"),)))
    clients = [listener.connect(peer) for peer in peers]
    assert [client.codes()[0] for client in clients] == expected
    for client in clients:
        client.transport.client_goes()
    assert listener.usage.sessions == 0
    assert not listener.usage.networks


def test_a_message_without_room_in_memory_is_452_and_read_to_its_end() -> None:
    listener = limited(NodeLimits(memory_octets=1000))
    client = in_data(listener)
    for _ in range(5):
        client.send(b"x" * 298 + b"\r\n")
        assert listener.usage.held_octets <= 1000
    assert listener.usage.held_octets == 0
    assert client.say("QUIT", ".", "NOOP").startswith(b"452 4.3.1 ")
    assert not listener.writer.stored


def test_a_new_message_is_refused_while_there_is_no_room() -> None:
    listener = limited(NodeLimits(memory_octets=600))
    hoarder = in_data(listener)
    client = in_transaction(listener)
    hoarder.send(b"x" * 598 + b"\r\n")
    assert client.say("RCPT TO:<bob@example.test>").startswith(b"452 4.3.1 ")
    assert client.say("DATA").startswith(b"452 4.3.1 ")
    assert listener.usage.held_octets == 600
    hoarder.transport.client_goes()
    assert listener.usage.held_octets == 0
    assert in_data(listener) is not None


def test_a_fault_frees_the_memory_at_once() -> None:
    listener = Listener()
    client = in_data(listener)
    client.send(b"x\r\n")
    assert listener.usage.held_octets == 3
    client.send(b"bare\nline\r\n")
    assert listener.usage.held_octets == 0


def test_what_is_tolerated_depends_on_the_network() -> None:
    tolerated = Tolerated(bare_line_ends=(ip_network("198.51.100.0/24"),))
    listener = Listener(tolerated=tolerated)
    for peer, code in (("198.51.100.7", 250), ("192.0.2.7", 550)):
        client = greeted(listener, peer)
        client.say("MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA")
        client.send(b"x\ny\r\n.\r\n")
        assert client.codes() == [code]


# ------------------------------------------------------------ shutting down


def test_shutting_down_lets_messages_finish_and_tells_the_rest() -> None:
    """RFC 5321 section 3.8: 421; who is in the middle of a message finishes it, and hears 421 then."""
    listener = Listener()
    idle, transacting, sending, chunking = (
        greeted(listener),
        in_transaction(listener),
        in_data(listener),
        in_transaction(listener),
    )
    chunking.say("BDAT 3", "x")
    listener.writer.is_slow = True
    storing = in_data(listener)
    storing.send(b"x\r\n.\r\n")
    decision: Deferred[Decision] = Deferred()
    listener.chain.answers[Stage.MAIL] = lambda _request: decision
    waiting = greeted(listener)
    waiting.send(b"MAIL FROM:<>\r\n")
    clients = [idle, transacting, sending, chunking, storing, waiting]
    for client in clients:
        client.heard()
    done = listener.factory.shut_down(30)
    fired: list[object] = []
    done.addCallback(fired.append)
    assert [client.codes() for client in clients] == [[421], [421], [], [], [], []]
    decision.callback(Decision(Quarantine("late")))
    assert waiting.codes() == [250, 421]
    listener.writer.answer()
    assert storing.codes() == [250, 421]
    listener.writer.is_slow = False
    sending.send(b"x\r\n.\r\n")
    assert sending.codes() == [250, 421]
    assert not fired
    chunking.send(b"BDAT 0 LAST\r\n")
    assert chunking.codes() == [250, 421]
    assert fired == [None]
    assert len(listener.writer.stored) == 3
    assert {record.ending for record in listener.journal.sessions} == {"shutdown"}
    assert not listener.clock.getDelayedCalls()


def test_shutting_down_has_an_end() -> None:
    listener = Listener()
    client = in_data(listener)
    fired: list[object] = []
    listener.factory.shut_down(30).addCallback(fired.append)
    for _ in range(29):
        listener.clock.advance(1)
        client.send(b"x\r\n")
    assert not fired
    listener.clock.advance(1)
    assert client.transport.is_aborted
    assert fired == [None]
    assert not listener.writer.stored


def test_shutting_down_without_clients_is_done_at_once() -> None:
    fired: list[object] = []
    Listener().factory.shut_down(30).addCallback(fired.append)
    assert fired == [None]


def test_a_client_that_does_not_read_does_not_delay_the_shutdown() -> None:
    listener = Listener(session_limits=PATIENT)
    client = greeted(listener)
    client.transport.is_read = False
    client.send(b"HELP\r\n" * 2000)
    listener.clock.advance(0)
    fired: list[object] = []
    listener.factory.shut_down(30).addCallback(fired.append)
    assert client.transport.is_losing
    listener.clock.advance(10)
    assert fired == [None]


# ------------------------------------------------------------ PROXY

PROXIES = (ip_network("203.0.113.0/24"),)


def v2(source: str, destination: str) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", 5678, 25)
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, len(addresses)) + addresses


@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 192.0.2.99 192.0.2.25 5678 25\r\n", v2("192.0.2.99", "192.0.2.25")], ids=["v1", "v2"]
)
@pytest.mark.parametrize("cut", ["whole", "byte by byte"])
def test_a_trusted_proxy_says_who_the_client_is(header: bytes, cut: str) -> None:
    listener = Listener(proxy_from=PROXIES)
    client = listener.connect("203.0.113.5")
    assert client.heard() == b""
    octets = header + b"EHLO client.example\r\n"
    for piece in [octets] if cut == "whole" else [octets[place : place + 1] for place in range(len(octets))]:
        client.send(piece)
    assert client.codes() == [220, 250]
    view = listener.chain.asked[0].session
    assert (view.client_address, view.client_port, view.server_address, view.server_port) == (
        "192.0.2.99",
        5678,
        "192.0.2.25",
        25,
    )
    assert dict(listener.usage.networks) == {"192.0.2.99/32": 1}


def test_a_proxy_that_speaks_for_itself_is_the_client() -> None:
    listener = Listener(proxy_from=PROXIES)
    client = listener.connect("203.0.113.5")
    client.send(b"PROXY UNKNOWN\r\n")
    assert client.codes() == [220]
    assert listener.chain.asked[0].session.client_address == "203.0.113.5"


def test_nobody_else_may_say_who_the_client_is() -> None:
    listener = Listener(proxy_from=PROXIES)
    client = listener.connect("192.0.2.7")
    assert client.codes() == [220]
    assert client.say("PROXY TCP4 192.0.2.99 192.0.2.25 5678 25").startswith(b"500 ")
    assert listener.chain.asked[0].session.client_address == "192.0.2.7"


@pytest.mark.parametrize("octets", [b"EHLO client.example\r\n", b"PROXY TCP4 x", b"PROXY " + b"x" * 200])
def test_a_proxy_that_sends_no_header_is_aborted(octets: bytes) -> None:
    listener = Listener(proxy_from=PROXIES)
    client = listener.connect("203.0.113.5")
    client.send(octets + b"\r\n")
    assert client.transport.is_aborted
    assert client.heard() == b""
    assert listener.usage.sessions == 0
    assert not listener.journal.sessions


def test_a_proxy_header_has_to_arrive_whole_in_time() -> None:
    listener = Listener(proxy_from=PROXIES, timeouts=TIMEOUTS)
    client = listener.connect("203.0.113.5")
    for octet in b"PROXY TCP4 192.":
        client.send(bytes([octet]))
        listener.clock.advance(2)
    assert client.transport.is_aborted
    assert listener.factory.handshake_failures == 0


def test_the_time_of_the_first_command_begins_with_the_greeting() -> None:
    """Not with the connection: a proxy's header may be late."""
    listener = Listener(proxy_from=PROXIES, timeouts=TIMEOUTS)
    client = listener.connect("203.0.113.5")
    listener.clock.advance(29)
    client.send(b"PROXY UNKNOWN\r\n")
    listener.clock.advance(299)
    assert client.codes() == [220]
    listener.clock.advance(1)
    assert client.codes() == [421]


def test_a_proxy_that_goes_leaves_nothing() -> None:
    listener = Listener(proxy_from=PROXIES)
    client = listener.connect("203.0.113.5")
    client.send(b"PROXY")
    client.transport.client_goes()
    assert not listener.factory.connections
    assert not listener.clock.getDelayedCalls()


# ------------------------------------------------------------ TLS, as far as it goes without OpenSSL


def test_a_handshake_that_does_not_end_is_counted_and_aborted() -> None:
    listener = Listener(timeouts=TIMEOUTS, is_implicit_tls=True)
    client = listener.connect()
    assert client.transport.wants_tls
    assert client.heard() == b""
    listener.clock.advance(30)
    assert client.transport.is_aborted
    assert listener.factory.handshake_failures == 1
    assert listener.usage.sessions == 0


def test_a_handshake_after_starttls_is_bounded_in_time() -> None:
    listener = Listener(timeouts=TIMEOUTS, settings=Settings("mx.example.test", offers_starttls=True))
    client = greeted(listener)
    listener.clock.advance(200)
    assert client.say("STARTTLS").startswith(b"220 ")
    assert client.transport.wants_tls
    listener.clock.advance(29)
    assert not client.transport.is_gone
    listener.clock.advance(1)
    assert client.transport.is_aborted
    assert listener.factory.handshake_failures == 1
    assert client.heard() == b""


def test_implicit_tls_over_the_bound_costs_no_handshake() -> None:
    listener = Listener(limits=NodeLimits(sessions=1), is_implicit_tls=True)
    listener.connect()
    client = listener.connect("192.0.2.8")
    assert client.transport.is_aborted
    assert not client.transport.wants_tls


def test_input_behind_starttls_reaches_nobody() -> None:
    """RFC 3207 section 6."""
    listener = Listener(settings=Settings("mx.example.test", offers_starttls=True))
    client = greeted(listener)
    assert client.say("STARTTLS", "MAIL FROM:<evil@client.example>").startswith(b"554 ")
    assert client.transport.is_gone
    assert not client.transport.wants_tls
    assert [request.stage for request in listener.chain.asked] == [Stage.CONNECT, Stage.HELO]


# ------------------------------------------------------------ AUTH


class Gatekeeper:
    """PLAIN at once; SLOW through a Deferred; and mechanisms that are broken."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[object]] = []
        self.cancelled = 0

    def mechanisms(self, _session: SessionView) -> tuple[str, ...]:
        return ("PLAIN", "SLOW", "RAISES", "NONSENSE")

    def begin(self, mechanism: str, _session: SessionView) -> Any:  # an Exchange
        gatekeeper = self

        class Begun:
            def step(self, response: bytes | None) -> object:
                match mechanism:
                    case "PLAIN" if response is None:
                        return b""
                    case "PLAIN":
                        return "alice" if response == b"\0alice\0secret" else reply(535, "5.7.8", "Wrong")
                    case "SLOW":
                        gatekeeper.waiting.append(Deferred(gatekeeper.cancel))
                        return gatekeeper.waiting[-1]
                    case "RAISES":
                        raise ZeroDivisionError
                return 42

        return Begun()

    def cancel(self, _deferred: Deferred[object]) -> None:
        self.cancelled += 1


def authenticating() -> tuple[Listener, Gatekeeper, Client]:
    gatekeeper = Gatekeeper()
    listener = Listener(
        settings=Settings("mx.example.test", mechanisms=gatekeeper.mechanisms), authenticator=gatekeeper
    )
    return listener, gatekeeper, greeted(listener)


def test_plain_authenticates() -> None:
    listener, _, client = authenticating()
    assert client.say("AUTH PLAIN") == b"334 \r\n"
    assert client.say("AGFsaWNlAHNlY3JldA==").startswith(b"235 2.7.0 ")
    client.say("MAIL FROM:<>")
    assert listener.chain.asked[-1].session.authenticated == "alice"
    client.transport.client_goes()
    assert "AGFsaWNl" not in listener.journal.sessions[0].dialogue


def test_an_exchange_may_take_its_time() -> None:
    _, gatekeeper, client = authenticating()
    assert client.say("AUTH SLOW", "bm8=", "NOOP") == b""
    gatekeeper.waiting[0].callback(b"who?")
    assert client.heard() == b"334 d2hvPw==\r\n"
    gatekeeper.waiting[1].callback(reply(535, "5.7.8", "Wrong"))
    assert client.codes() == [535, 250]


def test_an_exchange_is_cancelled_when_the_client_goes() -> None:
    _, gatekeeper, client = authenticating()
    client.say("AUTH SLOW")
    client.transport.client_goes()
    assert gatekeeper.cancelled == 1


@pytest.mark.parametrize("mechanism", ["RAISES", "NONSENSE"])
def test_a_broken_authenticator_is_454(mechanism: str, failures: list[LogEvent]) -> None:
    """RFC 4954 section 4.7.3: a temporary failure of ours is no word on the credentials."""
    _, _, client = authenticating()
    assert client.say(f"AUTH {mechanism}").startswith(b"454 4.7.0 ")
    failures.clear()
    assert client.say("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith(b"235 ")


def test_a_deferred_authentication_that_fails_is_454(failures: list[LogEvent]) -> None:
    _, gatekeeper, client = authenticating()
    client.say("AUTH SLOW")
    gatekeeper.waiting[0].errback(Failure(ZeroDivisionError()))
    assert client.heard().startswith(b"454 4.7.0 ")
    assert len(failures) == 1
    failures.clear()


def test_a_response_to_a_challenge_has_to_come_in_time() -> None:
    gatekeeper = Gatekeeper()
    listener = Listener(
        settings=Settings("mx.example.test", mechanisms=gatekeeper.mechanisms),
        authenticator=gatekeeper,
        timeouts=TIMEOUTS,
    )
    client = greeted(listener)
    client.say("AUTH PLAIN")
    for _ in range(30):
        client.send(b"A")
        listener.clock.advance(10)
    assert client.heard().startswith(b"421 4.4.2 ")


# ------------------------------------------------------------ odds and ends


def test_what_comes_after_quit_is_nobodys_business() -> None:
    listener = Listener()
    client = greeted(listener)
    client.transport.is_read = False
    assert client.say("QUIT", "NOOP").startswith(b"221 ")
    client.send(b"NOOP\r\n" * 100_000)
    assert client.heard() == b""
    session = client.connection._session
    assert session is not None
    assert session.state is State.CLOSED
    assert session.waiting_octets == 0


def test_new_rules_are_for_new_sessions() -> None:
    listener = Listener()
    old = greeted(listener)
    listener.factory.rules = Listener(settings=Settings("new.example.test")).factory.rules
    assert b"250-mx.example.test" in old.say("EHLO client.example")
    assert listener.connect().heard().startswith(b"220 new.example.test ")


def test_a_client_without_an_address_is_local() -> None:
    """Over a Unix socket."""
    listener = Listener()
    client = Client.__new__(Client)
    connection = listener.factory.buildProtocol(None)

    class Peerless:
        pass

    client.transport = FakeTransport()
    client.transport.peerAddr = Peerless()  # as a UNIXAddress, it has no host
    client.transport.protocol = connection
    connection.makeConnection(client.transport)
    assert listener.chain.asked[0].session.client_address == "127.0.0.1"


def test_the_end_of_input_alone_is_the_end() -> None:
    listener = Listener()
    client = in_data(listener)
    client.send(b"x\r\n.")
    client.transport.lose(ConnectionDone())
    assert not listener.writer.stored
    assert [record.disposition for record in listener.journal.transactions] == [Disposition.ABANDONED]
