"""A DNS server that is silent, wrong, slow or malicious costs a deadline, and nothing else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SkipTest, TestCase

from mailgate.dns.answer import Answer, Outcome, RecordType
from mailgate.dns.backend import MAX_CANDIDATES, MAX_DATAGRAMS, TwistedBackend
from mailgate.dns.resolver import CachingResolver
from mailgate.dns.zone import Zone
from tests.support.dns_server import HOST, LoopbackServer, Query, Respond, from_zone
from tests.support.waiting import reactor, until

HASTY: dict[str, Any] = {"timeout_seconds": 0.25, "deadline_seconds": 0.6}

ZONE = Zone("host.example.test A 192.0.2.1\nbig.example.test TXT " + " ".join(f'"{"x" * 250}"' for _ in range(240)))
GOOD = from_zone(ZONE)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def silent(query: Query) -> Iterable[bytes]:
    return ()


def good(query: Query) -> bytes:
    (wire,) = GOOD(query) or ()
    return wire


def forged(query: Query, address: str = "198.51.100.66") -> dns.message.Message:
    """A response that would be taken, with a wrong address."""
    response = dns.message.make_response(query.message, recursion_available=True)
    response.answer.append(dns.rrset.from_text(query.message.question[0].name, 60, "IN", "A", address))
    return response


def truncated(query: Query) -> bytes:
    response = dns.message.make_response(query.message, recursion_available=True)
    response.flags |= dns.flags.TC
    return response.to_wire()


def bomb(query: Query, count: int = 1000) -> bytes:
    """So many mail exchangers, whose names are one of 120 labels: seconds of work for dnspython."""
    question = query.message.question[0].name.to_wire() or b""
    start = struct.pack("!6H", query.message.id, 0x8180, 1, 1 + count, 0, 0) + question + struct.pack("!2H", 15, 1)
    name = struct.pack("!H", 0xC000 | len(start))
    first = b"\1a" * 110 + b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 4) + bytes(4)
    owner = b"\xc0\x0c"
    return start + first + b"".join(owner + struct.pack("!2HIHH", 15, 1, 60, 4, n) + name for n in range(count))


class Case(TestCase):
    """A server on loopback, a resolver that asks it, and a look for what is left open.

    The resolver is patient where an answer is to come: this machine may be busy.
    """

    timeout = 60

    def setUp(self) -> None:
        self.sending = 0
        self.backend = TwistedBackend(reactor)
        self.servers: list[LoopbackServer] = []

    async def tearDown(self) -> None:  # type: ignore[override]  # trial awaits it
        for server in self.servers:
            await server.stop()
        await until(reactor, lambda: self.backend.open_sockets == 0, what="the sockets' end")

    def resolver(self, *responds: Respond, **options: Any) -> CachingResolver:
        self.servers += [LoopbackServer(reactor, respond) for respond in responds]
        options = {"timeout_seconds": 15, "deadline_seconds": 20} | options
        return CachingResolver(reactor, [server.place for server in self.servers], backend=self.backend, **options)

    @property
    def queries(self) -> list[Query]:
        return self.servers[0].queries

    async def ask(
        self, resolver: CachingResolver, name: str = "host.example.test", record_type: RecordType = RecordType.A
    ) -> Answer:
        """The answer."""
        found = resolver.lookup(name, record_type)
        return await found if isinstance(found, Deferred) else found

    async def assert_fails(self, resolver: CachingResolver, detail: str, **question: Any) -> None:
        answer = await self.ask(resolver, **question)
        assert answer.outcome is Outcome.FAILURE
        assert detail in answer.detail
        assert answer.records == ()

    async def assert_found(self, resolver: CachingResolver) -> None:
        answer = await self.ask(resolver)
        assert answer.records == ("192.0.2.1",), answer


class Datagrams(Case):
    """What comes over UDP."""

    async def test_silence_is_a_failure_at_the_deadline(self) -> None:
        """The server is asked again as long as there is time, and named."""
        resolver = self.resolver(silent, **HASTY)
        before = reactor.seconds()
        await self.assert_fails(resolver, f"no answer from {HOST} port {self.servers[0].port} within 0.6 s")
        assert reactor.seconds() - before < 10
        assert len(self.queries) >= 2

    async def test_what_is_no_answer_to_the_query_is_passed_over(self) -> None:
        """Wrong ids, wrong questions, the query itself, garbage: the right answer is still awaited (RFC 5452)."""

        def respond(query: Query) -> Iterable[bytes]:
            wrong_id = forged(query)
            wrong_id.id ^= 1
            yield wrong_id.to_wire()
            wrong_question = dns.message.make_query("other.example.test.", "A", id=query.message.id)
            yield forged(Query(wrong_question, 0, False, query.send, None, query.server)).to_wire()
            no_response = forged(query)
            no_response.flags &= ~dns.flags.QR
            yield no_response.to_wire()
            yield struct.pack("!H", query.message.id) + b"\xff" * 40
            yield struct.pack("!H", query.message.id)
            yield b""
            yield good(query)

        await self.assert_found(self.resolver(respond))
        assert len(self.queries) == 1

    async def test_a_datagram_from_elsewhere_is_never_seen(self) -> None:
        """Even with the right id and question (RFC 5452 section 9.1)."""

        def respond(query: Query) -> Iterable[bytes]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
                elsewhere.sendto(forged(query).to_wire(), (HOST, query.client_port))
            yield good(query)

        await self.assert_found(self.resolver(respond))

    async def test_a_flood_of_forgeries_costs_that_query_alone(self) -> None:
        """After a few we are deaf; the next try has another port and id."""
        for count, octets, is_deaf in (
            (MAX_DATAGRAMS - 1, 1, False),
            (MAX_DATAGRAMS, 1, True),
            (MAX_CANDIDATES - 1, 0, False),
            (MAX_CANDIDATES, 0, True),
        ):

            def respond(query: Query, count: int = count, octets: int = octets) -> Iterable[bytes]:
                if len(query.server.queries) == 1:
                    for _ in range(count):  # a wrong id, or garbage behind the right one
                        yield struct.pack("!H", query.message.id ^ octets) + b"\x81\x80" + b"\xff" * 12
                yield good(query)

            await self.assert_found(self.resolver(respond, timeout_seconds=0.5 if is_deaf else 15))
            assert (len(self.queries) > 1) is is_deaf
            await self.servers.pop().stop()

    async def test_an_answer_that_takes_too_long_to_read_is_not_read(self) -> None:
        """Over UDP it is passed over, over TCP the server is given up. dnspython never sees it."""
        read: list[int] = []
        from_wire = dns.message.from_wire

        def measured(wire: bytes, **options: Any) -> dns.message.Message:
            read.append(len(wire))
            return from_wire(wire, **options)

        self.patch(dns.message, "from_wire", measured)  # type: ignore[no-untyped-call]  # trial's
        for respond in (lambda query: [bomb(query, 100)], lambda query: [(truncated, bomb)[query.is_tcp](query)]):
            await self.assert_fails(self.resolver(respond, **HASTY), "", record_type=RecordType.MX)
            await self.servers.pop().stop()
        assert max(read) < 100

    async def test_every_query_has_a_port_and_an_id_of_its_own(self) -> None:
        """Neither can be told from the one before (RFC 5452 section 9.2)."""
        resolver = self.resolver(GOOD, cache_entries=0)
        for _ in range(40):
            await self.assert_found(resolver)
        for values in (
            [query.client_port for query in self.queries],
            [query.message.id for query in self.queries],
        ):
            assert len(set(values)) > 35
            steps = {after - before for before, after in pairwise(values)}
            assert len(steps) > 30

    async def test_a_closed_port_is_known_at_once(self) -> None:
        """And the next server is asked."""
        resolver = self.resolver(GOOD, GOOD)
        await self.servers.pop(0).stop()
        before = reactor.seconds()
        await self.assert_found(resolver)
        assert reactor.seconds() - before < 10

    async def test_no_server_at_all_is_a_failure_that_says_so(self) -> None:
        """The operator reads why in the log and in `mailgate lookup`."""
        resolver = self.resolver(GOOD)
        await self.servers.pop().stop()
        await self.assert_fails(resolver, "Connection refused")

    async def test_a_server_without_edns_is_asked_without(self) -> None:
        """RFC 6891 section 7: FORMERR or NOTIMP."""

        def respond(query: Query) -> Iterable[bytes]:
            if query.message.edns >= 0:
                response = dns.message.make_response(query.message)
                response.use_edns(False)
                response.set_rcode(dns.rcode.FORMERR)
                yield response.to_wire()
            else:
                yield good(query)

        await self.assert_found(self.resolver(respond))

    async def test_a_query_asks_for_recursion_the_ad_bit_and_1232_octets(self) -> None:
        """RFC 6840 section 5.7; no fragments on any path."""
        await self.assert_found(self.resolver(GOOD))
        (query,) = self.queries
        assert query.message.flags == dns.flags.RD | dns.flags.AD
        assert (query.message.edns, query.message.payload, query.message.ednsflags) == (0, 1232, 0)

    async def test_a_server_that_fails_is_not_the_last_word(self) -> None:
        """SERVFAIL of one, an answer of the next."""

        def respond(query: Query) -> Iterable[bytes]:
            response = dns.message.make_response(query.message)
            response.set_rcode(dns.rcode.SERVFAIL)
            yield response.to_wire()

        await self.assert_found(self.resolver(respond, GOOD))

    async def test_a_referral_is_no_answer(self) -> None:
        """A server that does no recursion says nothing of the name (RFC 2308 section 2.2)."""

        def respond(query: Query) -> Iterable[bytes]:
            response = dns.message.make_response(query.message)
            response.authority.append(dns.rrset.from_text("test.", 60, "IN", "NS", "ns.test."))
            yield response.to_wire()

        await self.assert_fails(self.resolver(respond), "refers us to others")

    async def test_an_answer_is_authenticated_where_each_alias_on_the_way_is(self) -> None:
        """RFC 4035 section 3.2.3 is about one response; who forges the alias chooses where it leads."""
        for flags, expected in (((True, True), True), ((False, True), False), ((True, False), False)):

            def respond(query: Query, flags: tuple[bool, bool] = flags) -> Iterable[bytes]:
                response = dns.message.make_response(query.message, recursion_available=True)
                name = query.message.question[0].name
                is_alias = name == dns.name.from_text("host.example.test")
                kind, value = ("CNAME", "b.test.") if is_alias else ("A", "192.0.2.1")
                response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, value))
                if flags[0 if is_alias else 1]:
                    response.flags |= dns.flags.AD
                yield response.to_wire()

            answer = await self.ask(self.resolver(respond, trusts_ad=True))
            assert (answer.records, answer.is_authenticated) == (("192.0.2.1",), expected)
            await self.servers.pop().stop()

    async def test_aliases_in_a_circle_are_a_failure(self) -> None:
        """In one answer, and from query to query without an end."""

        def in_one(query: Query) -> Iterable[bytes]:
            response = dns.message.make_response(query.message)
            name = query.message.question[0].name
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "b.test."))
            response.answer.append(dns.rrset.from_text("b.test.", 60, "IN", "CNAME", name.to_text()))
            yield response.to_wire()

        def one_by_one(query: Query) -> Iterable[bytes]:
            response = dns.message.make_response(query.message)
            name = query.message.question[0].name
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", f"x{len(query.server.queries)}.test."))
            yield response.to_wire()

        for respond in (in_one, one_by_one):
            await self.assert_fails(self.resolver(respond), "")
            assert len(self.queries) <= 8
            await self.servers.pop().stop()


class Streams(Case):
    """What comes over TCP, behind a datagram that was cut."""

    async def test_a_cut_answer_is_fetched_whole(self) -> None:
        """Up to the 64 KiB that a message can have."""
        answer = await self.ask(self.resolver(GOOD), "big.example.test", RecordType.TXT)
        assert answer.records == (b"x" * 60_000,)
        assert [query.is_tcp for query in self.queries] == [False, True]

    async def test_an_answer_that_is_cut_over_tcp_too_is_a_failure(self) -> None:
        """RFC 2181 section 9: there it makes no sense, and no circle."""
        await self.assert_fails(self.resolver(lambda query: [truncated(query)]), "")
        assert [query.is_tcp for query in self.queries] == [False, True]

    async def test_no_tcp_is_a_failure(self) -> None:
        """The connection is refused."""

        def respond(query: Query) -> Iterable[bytes]:
            query.server.stop_stream()
            yield truncated(query)

        await self.assert_fails(self.resolver(respond), "no connection")

    async def _over_tcp(self, detail: str, *pieces: bytes, closes: bool = False, drips: bool = False) -> None:
        async def send(query: Query) -> None:
            self.sending += 1
            for piece in pieces:
                query.transport.write(piece)
            while drips and query.server.connections:
                query.transport.write(b"\0")
                await deferLater(reactor, 0.02)
            self.sending -= 1
            if closes:
                query.transport.loseConnection()

        def respond(query: Query) -> Iterable[bytes]:
            if query.is_tcp:
                Deferred.fromCoroutine(send(query))
                return ()
            return [truncated(query)]

        await self.assert_fails(self.resolver(respond, **(HASTY if detail == "no answer from" else {})), detail)
        await self.servers.pop().stop()
        await until(reactor, lambda: self.sending == self.backend.open_sockets == 0, what="the sockets' end")

    async def test_a_stream_that_ends_early_is_a_failure(self) -> None:
        """Before the length, in it, and within the message."""
        for pieces in ([], [b"\0"], [b"\0\x40", b"\1\2\3"]):
            await self._over_tcp("EOF", *pieces, closes=True)

    async def test_a_stream_that_says_nothing_costs_the_deadline(self) -> None:
        """Nothing at all, a length and no message, and an octet now and then."""
        await self._over_tcp("no answer from")
        await self._over_tcp("no answer from", b"\xff\xff")
        await self._over_tcp("no answer from", b"\xff\xff", drips=True)

    async def test_garbage_on_a_stream_is_a_failure(self) -> None:
        """A whole message of it, and far more than was said."""
        await self._over_tcp("", b"\0\x20" + b"\xff" * 32)
        await self._over_tcp("", b"\0\x00")
        await self._over_tcp("", b"\0\x20" + b"\xff" * 1_000_000)


class Cancelled(Case):
    """Who no longer waits."""

    async def test_cancelling_ends_the_look_up(self) -> None:
        """The socket is closed, no other server is asked, and nothing is remembered of it."""
        resolver = self.resolver(silent, GOOD)
        waiter = resolver.lookup("host.example.test", RecordType.A)
        assert isinstance(waiter, Deferred)
        await until(reactor, lambda: self.queries, what="the query")
        waiter.cancel()
        waiter.addErrback(lambda failure: failure.trap(CancelledError))
        await until(reactor, lambda: self.backend.open_sockets == 0, what="the socket's end")
        assert self.servers[1].queries == []
        self.servers[0].respond = GOOD
        await self.assert_found(resolver)

    async def test_cancelling_a_stream_closes_it(self) -> None:
        """While it is read."""
        resolver = self.resolver(lambda query: () if query.is_tcp else [truncated(query)])
        waiter = resolver.lookup("host.example.test", RecordType.A)
        assert isinstance(waiter, Deferred)
        await until(reactor, lambda: len(self.queries) == 2, what="the query over TCP")
        waiter.cancel()
        waiter.addErrback(lambda failure: failure.trap(CancelledError))
        await until(reactor, lambda: not self.servers[0].connections, what="the connection's end")
        assert self.backend.open_sockets == 0

    async def test_others_who_wait_for_the_same_are_not_cancelled(self) -> None:
        """One query serves both, and the one who stays has the answer."""
        held: list[Query] = []
        resolver = self.resolver(lambda query: held.append(query))
        first, second = (resolver.lookup("host.example.test", RecordType.A) for _ in range(2))
        assert isinstance(first, Deferred)
        assert isinstance(second, Deferred)
        await until(reactor, lambda: held, what="the query")
        first.cancel()
        first.addErrback(lambda failure: failure.trap(CancelledError))
        held[0].send(good(held[0]))
        assert (await second).records == ("192.0.2.1",)
        assert len(self.queries) == 1


class Traces(Case):
    """What a look-up leaves behind, however it ends: nothing."""

    async def test_no_descriptor_stays_open(self) -> None:
        """After answers over both transports, failures, and look-ups that nobody waits for any more."""

        def respond(query: Query) -> Iterable[bytes]:
            name = query.message.question[0].name.to_text()
            if name.startswith("silent") or (name.startswith("half") and query.is_tcp):
                return ()
            return [truncated(query)] if name.startswith("half") else [good(query)]

        resolver = self.resolver(respond, **HASTY)
        await self.ask(resolver)
        before = open_descriptors()
        waiters = []
        for number in range(20):
            for kind in ("silent", "half", "host", "big"):
                waiter = resolver.lookup(f"{kind}{number}.test", RecordType.TXT)
                assert isinstance(waiter, Deferred)
                waiters.append(waiter)
        await until(reactor, lambda: len(self.queries) >= 80, what="the queries")
        for waiter in waiters[::3]:
            waiter.addErrback(lambda failure: failure.trap(CancelledError))
            waiter.cancel()
        for waiter in waiters:
            await waiter
        await until(reactor, lambda: not self.backend.open_sockets and not self.servers[0].connections, what="the end")
        await until(reactor, lambda: open_descriptors() <= before, what="the descriptors' end")

    async def test_an_ordinary_look_up_writes_no_line_to_the_log(self) -> None:
        """Over UDP, TCP, and where it fails: Twisted's ports would write several."""
        hasty = self.resolver(silent, **HASTY)
        silent_server = self.servers.pop()
        resolver = self.resolver(GOOD)
        self.servers.append(silent_server)
        with capturedLogs() as events:
            await self.assert_found(resolver)
            await self.ask(resolver, "big.example.test", RecordType.TXT)
            await self.assert_fails(hasty, "no answer")
        assert events == []

    async def test_a_server_may_have_an_ipv6_address(self) -> None:
        """Over both transports."""
        try:
            server = LoopbackServer(reactor, GOOD, "::1")
        except CannotListenError as error:
            raise SkipTest("there is no IPv6 here") from error
        self.servers.append(server)
        resolver = self.resolver()
        await self.assert_found(resolver)
        answer = await self.ask(resolver, "big.example.test", RecordType.TXT)
        assert len(answer.records) == 1
        assert [query.is_tcp for query in server.queries] == [False, False, True]
