"""The resolver: what is remembered and for how long, who waits for whom, and what comes back when nobody answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dns.asyncbackend
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from mailgate.dns import resolver as resolver_module
from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.dns.backend import TwistedBackend
from mailgate.dns.resolver import CachingResolver, servers_from_resolv_conf

SERVER = ("192.0.2.53", 53)
NAME = "host.example.test"

Message = dns.message.QueryMessage


class FakeSocket(dns.asyncbackend.DatagramSocket):  # type: ignore[name-defined,misc]  # re-exported, but not said so
    """What is sent on it waits for the test to answer."""

    def __init__(self, backend: FakeBackend, family: int, destination: tuple[str, int]) -> None:
        super().__init__(family, socket.SOCK_DGRAM)
        self._backend = backend
        self.destination = destination
        self._arrived: Deferred[bytes] = Deferred()
        self.is_open = True

    async def sendto(self, what: bytes, destination: object, timeout: float | None) -> int:
        message = dns.message.from_wire(what)
        assert isinstance(message, Message)
        self.query = message
        self._backend.sockets.append(self)
        return len(what)

    async def recvfrom(self, size: int, timeout: float | None) -> tuple[bytes, tuple[str, int]]:
        return await self._backend.within(timeout, self._arrived), self.destination

    async def close(self) -> None:
        self.is_open = False

    def answer(self, *records: str, change: Callable[[Message], Any] | None = None, ttl: int = 300) -> None:
        """Answer with these records; with a change to the response; without either, NODATA without SOA."""
        response = dns.message.make_response(self.query)
        assert isinstance(response, Message)
        question = self.query.question[0]
        for record in records:  # one by one, for dnspython shuffles what is one set
            response.answer.append(dns.rrset.from_text(question.name, ttl, "IN", question.rdtype, record))
        if change is not None:
            change(response)
        self._arrived.callback(response.to_wire())


class FakeBackend(TwistedBackend):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.sockets: list[FakeSocket] = []

    async def make_socket(self, af: int, socktype: int, *args: Any, **kwargs: Any) -> Any:
        assert socktype == socket.SOCK_DGRAM
        return FakeSocket(self, af, args[2])


class Bench:
    """A resolver whose time and servers are the test's."""

    def __init__(self, servers: Sequence[tuple[str, int]] = (SERVER,), **options: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.backend = FakeBackend(self.clock)
        self.resolver = CachingResolver(self.clock, servers, backend=self.backend, **options)

    @property
    def sockets(self) -> list[FakeSocket]:
        return self.backend.sockets

    def ask(self, name: str = NAME, record_type: RecordType = RecordType.A) -> Deferred[Answer]:
        """A look-up of what is not known."""
        found = self.resolver.lookup(name, record_type)
        assert isinstance(found, Deferred)
        return found

    def known(self, name: str = NAME, record_type: RecordType = RecordType.A) -> Answer | None:
        """What is answered at once; asks for nothing that lasts."""
        found = self.resolver.lookup(name, record_type)
        if isinstance(found, Answer):
            return found
        found.addErrback(lambda failure: failure.trap(CancelledError))
        found.cancel()
        self.sockets.pop()
        return None

    def learn(self, *records: str, **how: Any) -> Answer:
        """Ask, answer, and hand out the answer."""
        waiter = self.ask()
        self.sockets.pop().answer(*records, **how)
        return result_of(waiter)

    def assert_nothing_is_left(self) -> None:
        assert self.clock.getDelayedCalls() == []
        assert not any(socket.is_open for socket in self.sockets)


def result_of(waiter: Deferred[Answer]) -> Answer:
    found: list[Answer] = []
    waiter.addCallback(found.append)
    assert found, "there is no answer yet"
    return found[0]


def soa(ttl: int, minimum: int) -> Callable[[Message], None]:
    def change(response: Message) -> None:
        text = f"ns.test. hostmaster.test. 1 2 3 4 {minimum}"
        response.authority.append(dns.rrset.from_text("test.", ttl, "IN", "SOA", text))

    return change


# ---------------------------------------------------------------- what is remembered


def test_an_answer_is_given_at_once_as_long_as_it_holds() -> None:
    """And it says how long it held when it came, not what is left of it. Its records are in the order received."""
    bench = Bench()
    addresses = ("192.0.2.7", "192.0.2.1", "192.0.2.9", "192.0.2.3")
    answer = bench.learn(*addresses, ttl=300)
    assert answer == Answer(
        Question(NAME, RecordType.A), Outcome.ANSWER, addresses, "NOERROR", 300, False, bench.clock.seconds()
    )
    bench.clock.advance(299.9)
    assert bench.known() is answer
    bench.clock.advance(0.2)
    assert bench.known() is None
    bench.assert_nothing_is_left()


def test_a_question_is_of_a_name_and_a_type() -> None:
    """Another type is asked for."""
    bench = Bench()
    bench.learn("192.0.2.1")
    assert bench.known(record_type=RecordType.AAAA) is None


@pytest.mark.parametrize(
    ("ttl", "kept"),
    [(0, 5.0), (3, 5.0), (60, 60.0), (86_400, 86_400.0), (604_800, 86_400.0), (2**31 - 1, 86_400.0)],
)
def test_a_time_to_live_is_kept_within_bounds(ttl: int, kept: float) -> None:
    """A record that may not be kept at all serves one message; one that claims weeks is asked for every day."""
    bench = Bench(minimum_ttl_seconds=5.0, maximum_ttl_seconds=86_400.0)
    assert bench.learn("192.0.2.1", ttl=ttl).ttl_seconds == ttl
    bench.clock.advance(kept - 0.1)
    assert bench.known() is not None
    bench.clock.advance(0.2)
    assert bench.known() is None


@pytest.mark.parametrize(
    ("ttl", "minimum", "held", "kept"),
    [(300, 60, 60, 60.0), (30, 60, 30, 30.0), (86_400, 86_400, 86_400, 10_800.0)],
)
@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_what_is_not_there_is_remembered_by_the_soa_record(
    rcode: dns.rcode.Rcode, ttl: int, minimum: int, held: int, kept: float
) -> None:
    """The smaller of its time to live and its minimum, and never more than three hours (RFC 2308 section 5)."""
    bench = Bench()

    def change(response: Message) -> None:
        response.set_rcode(rcode)
        soa(ttl, minimum)(response)

    answer = bench.learn(change=change)
    assert answer.outcome is (Outcome.NXDOMAIN if rcode == dns.rcode.NXDOMAIN else Outcome.NODATA)
    assert (answer.rcode, answer.ttl_seconds) == (dns.rcode.to_text(rcode), held)
    bench.clock.advance(kept - 0.1)
    assert bench.known() is answer
    bench.clock.advance(0.2)
    assert bench.known() is None


def test_a_negative_answer_without_soa_holds_for_a_moment() -> None:
    """RFC 2308 section 5: nobody knows for how long; one message may still use it."""
    bench = Bench(minimum_ttl_seconds=5.0)
    assert bench.learn().ttl_seconds == 0
    bench.clock.advance(5.1)
    assert bench.known() is None


def test_a_failure_is_remembered_briefly() -> None:
    """RFC 9520: a broken domain is not asked for with every recipient."""
    bench = Bench(failure_seconds=10.0)
    answer = bench.learn(change=lambda response: response.set_rcode(dns.rcode.SERVFAIL))
    assert (answer.outcome, answer.rcode, answer.records) == (Outcome.FAILURE, "SERVFAIL", ())
    assert answer.detail == "192.0.2.53 port 53: SERVFAIL"
    bench.clock.advance(9.9)
    assert bench.known() is answer
    bench.clock.advance(0.2)
    assert bench.known() is None


def test_the_least_used_answer_makes_room() -> None:
    """The cache is bounded."""
    bench = Bench(cache_entries=2)
    for name in ("a.test", "b.test"):
        bench.ask(name)
        bench.sockets.pop().answer("192.0.2.1")
    assert bench.known("a.test") is not None
    bench.ask("c.test")
    bench.sockets.pop().answer("192.0.2.1")
    assert [bench.known(name) is not None for name in ("a.test", "b.test", "c.test")] == [True, False, True]


@pytest.mark.parametrize(("trusts_ad", "flag"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_ad_bit_counts_where_config_says_so(trusts_ad: bool, flag: bool) -> None:
    """RFC 4035 section 4.9.3: only from a server that is trusted, over a way that is."""

    def change(response: Message) -> None:
        if flag:
            response.flags |= dns.flags.AD

    answer = Bench(trusts_ad=trusts_ad).learn("192.0.2.1", change=change)
    assert answer.is_authenticated is (trusts_ad and flag)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("a..test", "the name has an empty label"),
        (".test", "the name has an empty label"),
        ("test..", "the name has an empty label"),
        ("..", "the name has an empty label"),
        ("x" * 64 + ".test", "a label of the name has 64 octets, more than 63"),
        (".".join(["x" * 49] * 6), "the name has 301 octets, more than 255"),
        ("xn--\udcff.test", "the name has no A-form"),
        ("\u2024\u0301.test", "the name has no A-form"),
    ],
)
def test_a_name_that_can_t_exist_is_answered_without_asking(name: str, detail: str) -> None:
    """As RFC 7208 section 4.3 has it: like a name that does not exist. Nobody said so, so there is no rcode."""
    bench = Bench()
    answer = bench.resolver.lookup(name, RecordType.TXT)
    assert isinstance(answer, Answer)
    assert (answer.outcome, answer.rcode, answer.records) == (Outcome.NXDOMAIN, "", ())
    assert detail in answer.detail
    assert bench.sockets == []


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("Example.TEST.", "example.test."),
        ("_dmarc.BÜCHER.example", "_dmarc.xn--bcher-kva.example."),
        ("_dmarc。bücher。example", "_dmarc.xn--bcher-kva.example."),
        ("", "."),
        (".", "."),
        ("x" * 63 + ".test", "x" * 63 + ".test."),
        (".".join(["x" * 49] * 5) + ".com", ".".join(["x" * 49] * 5) + ".com."),
        ("a b.test", "a\\032b.test."),
        ("a\\.test", "a\\\\.test."),
        ("0/25.2.0.192.in-addr.arpa", "0/25.2.0.192.in-addr.arpa."),
    ],
)
def test_a_name_is_asked_for_in_a_form_and_without_escapes(name: str, asked: str) -> None:
    """Dots part labels, and nothing else means anything; one answer serves all the ways to write it."""
    bench = Bench()
    waiter = bench.ask(name, RecordType.TXT)
    assert bench.sockets[0].query.question[0].name.to_text() == asked
    bench.sockets[0].answer('"x"')
    answer = result_of(waiter)
    assert bench.resolver.lookup(name, RecordType.TXT) is answer
    assert bench.resolver.lookup(answer.question.name, RecordType.TXT) is answer


# ---------------------------------------------------------------- who waits for whom


def test_equal_look_ups_share_one_query() -> None:
    """Twenty sessions that see the same domain at once ask for it once."""
    bench = Bench()
    waiters = [bench.ask(name) for name in (NAME, NAME.upper(), f"{NAME}.")]
    assert len(bench.sockets) == 1
    bench.sockets[0].answer("192.0.2.1")
    assert len({id(result_of(waiter)) for waiter in waiters}) == 1
    bench.assert_nothing_is_left()


def test_whoever_is_told_first_may_ask_again_at_once() -> None:
    """The answer is known by then."""
    bench = Bench()
    again: list[Answer | Deferred[Answer]] = []
    waiter = bench.ask()
    waiter.addCallback(lambda answer: again.extend((answer, bench.resolver.lookup(NAME, RecordType.A))))
    bench.sockets[0].answer("192.0.2.1")
    assert again[0] is again[1]


def test_the_last_one_to_cancel_takes_the_look_up_along() -> None:
    """And nothing is remembered: it was no failure of the DNS."""
    bench = Bench()
    waiters = [bench.ask(), bench.ask()]
    for waiter in waiters:
        waiter.addErrback(lambda failure: failure.trap(CancelledError))
        assert bench.sockets[0].is_open
        waiter.cancel()
    bench.assert_nothing_is_left()
    assert bench.known() is None


def test_cancelling_one_leaves_the_others_waiting() -> None:
    """A client that goes takes nothing from another."""
    bench = Bench()
    first, second = bench.ask(), bench.ask()
    first.addErrback(lambda failure: failure.trap(CancelledError))
    first.cancel()
    bench.sockets[0].answer("192.0.2.1")
    assert result_of(second).records == ("192.0.2.1",)


def test_the_deadline_is_the_end() -> None:
    """However many servers and tries there still are."""
    bench = Bench(timeout_seconds=5.0, deadline_seconds=12.0)
    waiter = bench.ask()
    for _ in range(119):
        bench.clock.advance(0.1)
    assert waiter.called is False
    assert len(bench.sockets) == 3
    bench.clock.advance(0.2)
    answer = result_of(waiter)
    assert answer.outcome is Outcome.FAILURE
    assert answer.detail == "no answer from 192.0.2.53 port 53 within 12 s"
    assert answer.answered_at == bench.clock.seconds()
    bench.assert_nothing_is_left()
    assert bench.known() is answer


def test_look_ups_on_the_wire_are_bounded() -> None:
    """The others wait for their turn, and no longer than their deadline; one that nobody waits for has no turn."""
    bench = Bench(max_running=2, deadline_seconds=4.0)
    waiters = [bench.ask(f"{letter}.test") for letter in "abcde"]
    assert len(bench.sockets) == 2
    waiters[2].addErrback(lambda failure: failure.trap(CancelledError))
    waiters[2].cancel()
    bench.sockets[0].answer("192.0.2.1")
    asked = [socket.query.question[0].name.to_text() for socket in bench.sockets]
    assert asked == ["a.test.", "b.test.", "d.test."]
    bench.clock.advance(4.1)
    assert [result_of(waiters[index]).outcome for index in (1, 3, 4)] == [Outcome.FAILURE] * 3
    bench.assert_nothing_is_left()
    bench.ask("f.test")
    assert bench.sockets[-1].query.question[0].name.to_text() == "f.test."


def test_a_defect_of_ours_is_a_failure_and_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up raises nothing: doubt must not bounce mail."""

    def broken(_rdatas: object) -> None:
        raise ZeroDivisionError

    bench = Bench()
    waiter = bench.ask()
    monkeypatch.setattr(resolver_module, "records_of", broken)
    with capturedLogs() as events:
        bench.sockets[0].answer("192.0.2.1")
    assert result_of(waiter).outcome is Outcome.FAILURE
    assert [(event["name"], event["type"]) for event in events] == [(NAME, "A")]
    bench.assert_nothing_is_left()


# ---------------------------------------------------------------- servers


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", (("192.0.2.1", 53), ("2001:db8::1", 53))),
        ("# nameserver 192.0.2.1\nsearch example.test\nnameserver\t192.0.2.2 # ours\n", (("192.0.2.2", 53),)),
        ("  nameserver fe80::1%eth0\nnameserver name.test\nnameserver\n", (("fe80::1%eth0", 53),)),
        ("", (("127.0.0.1", 53), ("::1", 53))),
        ("options trust-ad\n\xff\n", (("127.0.0.1", 53), ("::1", 53))),
    ],
)
def test_servers_come_from_resolv_conf(tmp_path: Path, text: str, servers: tuple[tuple[str, int], ...]) -> None:
    """resolv.conf(5); what can't be read there is passed over."""
    path = tmp_path / "resolv.conf"
    path.write_text(text, "latin-1")
    assert servers_from_resolv_conf(path) == servers


def test_without_a_resolv_conf_the_machine_itself_is_asked(tmp_path: Path) -> None:
    """resolv.conf(5)."""
    assert servers_from_resolv_conf(tmp_path / "none") == (("127.0.0.1", 53), ("::1", 53))


def test_a_silent_server_is_asked_last_for_a_while() -> None:
    """Three look-ups in a row say that it is silent, and a line in the log; it is asked again, and is not forgotten."""
    first, second = ("192.0.2.1", 53), ("192.0.2.2", 53)
    bench = Bench((first, second), timeout_seconds=2.0, cache_entries=0)

    def ask(*, first_answers: bool) -> list[tuple[str, int]]:
        """Which servers one look-up goes to."""
        waiter = bench.ask()
        asked = []
        while not waiter.called:
            socket = bench.sockets.pop()
            asked.append(socket.destination)
            if socket.destination == second or first_answers:
                socket.answer("192.0.2.9")
            else:
                bench.clock.advance(2.1)
        return asked

    with capturedLogs() as events:
        assert [ask(first_answers=False) for _ in range(5)] == [[first, second]] * 3 + [[second]] * 2
        assert [(event["server"], event["log_level"].name) for event in events] == [("192.0.2.1 port 53", "warn")]
        bench.clock.advance(31)
        assert [ask(first_answers=False) for _ in range(2)] == [[first, second], [second]]
        bench.clock.advance(31)
        assert [ask(first_answers=True) for _ in range(2)] == [[first]] * 2
        assert [event["log_level"].name for event in events] == ["warn", "info"]


def test_one_name_without_an_answer_says_little_of_a_server() -> None:
    """However often it is asked for it: the name's own servers may be the slow ones."""
    bench = Bench(timeout_seconds=1.0, deadline_seconds=30.0)
    with capturedLogs() as events:
        waiter = bench.ask()
        for _ in range(301):
            bench.clock.advance(0.1)
        assert result_of(waiter).outcome is Outcome.FAILURE
    assert len(bench.sockets) > 5
    assert events == []


def test_servers_can_be_exchanged() -> None:
    """SIGHUP: look-ups from then on go to the new ones."""
    bench = Bench(cache_entries=0, deadline_seconds=3)
    bench.resolver.use_servers([("2001:db8::53", 5353)])
    waiter = bench.ask()
    assert bench.sockets[0].family == socket.AF_INET6
    bench.clock.advance(3.1)
    assert "2001:db8::53 port 5353" in result_of(waiter).detail


def test_resolv_conf_is_read_again(tmp_path: Path) -> None:
    """The network may come after us, and change while we run."""
    path = tmp_path / "resolv.conf"
    bench = Bench(cache_entries=0, deadline_seconds=1, resolv_conf=path)
    bench.resolver.use_servers([])
    path.write_text("nameserver 192.0.2.99\n")
    details = []
    for seconds in (20, 20, 0):
        waiter = bench.ask()
        bench.clock.advance(1)
        details.append(result_of(waiter).detail.split()[3])
        bench.clock.advance(seconds)
    assert details == ["127.0.0.1", "127.0.0.1", "192.0.2.99"]
