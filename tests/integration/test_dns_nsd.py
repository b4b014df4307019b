"""The resolver and a real name server, NSD, over UDP and TCP."""

from __future__ import annotations

import contextlib
from typing import ClassVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.dns.answer import Answer, Outcome, RecordType
from mailgate.dns.backend import TwistedBackend
from mailgate.dns.resolver import CachingResolver
from tests.support.dns_server import nsd
from tests.support.waiting import reactor, until

_LONG_TEXT = " ".join(f'"{letter * 255}"' for letter in "abcdefghij")

ZONES = {
    "example.test": rf"""
@               MX      10 mx1
@               MX      20 mx2.other.test.
@               TXT     "v=spf1 mx " "-all"
@               TXT     "second \"text\" \000\255"
mx1             A       192.0.2.1
mx1             A       192.0.2.2
mx1             AAAA    2001:db8::1
a.b             A       192.0.2.3
alias           CNAME   mx1
away            CNAME   mx2.other.test.
gone            CNAME   nobody.other.test.
loop1           CNAME   loop2
loop2           CNAME   loop1
far1            CNAME   far2.other.test.
null            MX      0 .
long            TXT     {_LONG_TEXT}
_25._tcp.mx1    TLSA    3 1 1 {"ab" * 32}
*.wild          TXT     "by wildcard"
short           3600 A  192.0.2.4
""",
    "other.test": "mx2 A 198.51.100.2\nfar2 CNAME far1.example.test.\n",
    "2.0.192.in-addr.arpa": "1 PTR mx1.Example.test.\n",
}


class RealServer(TestCase):
    """Each test has a cache of its own; the server is one for all of them."""

    stack: ClassVar[contextlib.ExitStack]
    port: ClassVar[int]

    @classmethod
    def setUpClass(cls) -> None:
        cls.stack = contextlib.ExitStack()
        cls.port = cls.stack.enter_context(nsd(ZONES))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.stack.close()

    def setUp(self) -> None:
        self.backend = TwistedBackend(reactor)
        self.resolver = CachingResolver(
            reactor, [("127.0.0.1", self.port)], timeout_seconds=5, deadline_seconds=10, backend=self.backend
        )

    async def lookup(self, name: str, record_type: RecordType) -> Answer:
        answer = self.resolver.lookup(name, record_type)
        found = await answer if isinstance(answer, Deferred) else answer
        await until(reactor, lambda: self.backend.open_sockets == 0, what="the sockets' end")
        return found

    async def test_records_come_as_they_are_in_the_zone(self) -> None:
        """One kind of value for each type (RFC 1035 section 3.3, RFC 3596, RFC 6698)."""
        for name, record_type, records in (
            ("mx1.example.test", RecordType.A, {"192.0.2.1", "192.0.2.2"}),
            ("mx1.example.test", RecordType.AAAA, {"2001:db8::1"}),
            ("example.test", RecordType.MX, {(10, "mx1.example.test"), (20, "mx2.other.test")}),
            ("null.example.test", RecordType.MX, {(0, "")}),
            ("example.test", RecordType.TXT, {b"v=spf1 mx -all", b'second "text" \x00\xff'}),
            ("1.2.0.192.in-addr.arpa", RecordType.PTR, {"mx1.example.test"}),
            ("alias.example.test", RecordType.CNAME, {"mx1.example.test"}),
            ("_25._tcp.mx1.example.test", RecordType.TLSA, {(3, 1, 1, b"\xab" * 32)}),
            ("x.y.wild.example.test", RecordType.TXT, {b"by wildcard"}),
        ):
            answer = await self.lookup(name, record_type)
            assert (answer.outcome, set(answer.records)) == (Outcome.ANSWER, records), name
            assert (answer.rcode, answer.ttl_seconds) == ("NOERROR", 300)

    async def test_capitals_and_a_final_dot_make_no_difference(self) -> None:
        """RFC 4343; and the answer is for the name in our form."""
        answer = await self.lookup("MX1.Example.Test.", RecordType.A)
        assert answer.question.name == "mx1.example.test"
        assert len(answer.records) == 2
        assert self.resolver.lookup("mx1.example.test", RecordType.A) is answer

    async def test_a_name_without_such_records_differs_from_one_that_does_not_exist(self) -> None:
        """RFC 2308 section 2; an empty non-terminal exists (RFC 8020). Both hold as long as the SOA record says."""
        for name, outcome, rcode in (
            ("mx1.example.test", Outcome.NODATA, "NOERROR"),
            ("b.example.test", Outcome.NODATA, "NOERROR"),
            ("nobody.example.test", Outcome.NXDOMAIN, "NXDOMAIN"),
        ):
            answer = await self.lookup(name, RecordType.TXT)
            assert (answer.outcome, answer.rcode, answer.ttl_seconds) == (outcome, rcode, 60)

    async def test_an_answer_too_long_for_a_datagram_comes_over_tcp(self) -> None:
        """RFC 7766: the server says TC, and we ask again."""
        answer = await self.lookup("long.example.test", RecordType.TXT)
        assert answer.records == (b"".join(bytes([letter]) * 255 for letter in b"abcdefghij"),)

    async def test_an_alias_is_followed_within_a_zone_and_out_of_it(self) -> None:
        """This server follows within the zone alone: the rest is ours (RFC 1034 section 5.3.3)."""
        assert set((await self.lookup("alias.example.test", RecordType.A)).records) == {"192.0.2.1", "192.0.2.2"}
        assert (await self.lookup("away.example.test", RecordType.A)).records == ("198.51.100.2",)
        assert (await self.lookup("gone.example.test", RecordType.A)).outcome is Outcome.NXDOMAIN
        assert (await self.lookup("away.example.test", RecordType.AAAA)).outcome is Outcome.NODATA

    async def test_aliases_in_a_circle_are_a_failure(self) -> None:
        """Within one answer, and from one zone to the next."""
        for name in ("loop1.example.test", "far1.example.test"):
            answer = await self.lookup(name, RecordType.A)
            assert answer.outcome is Outcome.FAILURE
            assert answer.detail

    async def test_a_server_that_refuses_is_a_failure_with_its_rcode(self) -> None:
        """It knows nothing of that zone, and does no recursion."""
        answer = await self.lookup("elsewhere.invalid", RecordType.A)
        assert (answer.outcome, answer.rcode) == (Outcome.FAILURE, "REFUSED")
        assert f"127.0.0.1 port {self.port}: REFUSED" in answer.detail
