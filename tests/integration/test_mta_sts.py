"""MTA-STS policies: fetched from real HTTPS servers on loopback, kept in a real database, for as long as they say."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from mailgate.certificate import CertificateFiles
from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from mailgate.outbound import mta_sts_fetch
from mailgate.outbound.mta_sts import MAX_POLICY_OCTETS, NOT_KNOWN, Mode, NotKnown, Policy
from mailgate.outbound.mta_sts_fetch import MtaStsPolicies, PolicyHost, PolicyUnavailable
from mailgate.outbound.mx import Survey
from mailgate.outbound.plan import PublishedPolicy
from mailgate.outbound.tls_report import TlsCounts
from mailgate.storage.mta_sts import MtaStsTable
from mailgate.storage.tls_results import TlsResultWriter
from mailgate.tls import TlsContexts
from tests.support import postgres
from tests.support.certificates import Authority
from tests.support.waiting import reactor
from tests.support.writing import WritingTestCase

POLICY = b"version: STSv1\nmode: enforce\nmx: mx.example.test\nmax_age: 604800\n"
ON_LOOPBACK = Survey(order="ipv4", allows_private_addresses=True)


class PolicyFile(Resource):
    """Answers every request by one function, and notes what was asked for."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, answer: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self.asked: list[tuple[bytes | None, bytes]] = []
        self._answer = answer

    def render_GET(self, request: Request) -> Any:  # noqa: N802 - Twisted calls it
        self.asked.append((request.getHeader(b"host"), request.uri))
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return self._answer(request)


class PolicyHostTests(TestCase):
    """A policy host for example.test, with a certificate by an authority that is trusted."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.authority = Authority(self.folder, datetime.now(UTC))
        self.files = self.authority.issue("web", names=("mta-sts.example.test",))

    def served(self, answer: Any, files: CertificateFiles | None = None, **more: Any) -> PolicyHost:
        """A client of a server that answers so."""
        self.file = PolicyFile(answer)
        contexts = TlsContexts.load([files or self.files])
        factory = TLSMemoryBIOFactory(contexts.factory(), False, Site(self.file))
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return self.client(port.getHost().port, **more)

    def client(self, port: int, *, records: str = "A 127.0.0.1", survey: Survey = ON_LOOPBACK) -> PolicyHost:
        zone = Zone("\n".join(f"mta-sts.example.test {record}" for record in records.split(",")))
        return PolicyHost(reactor, zone, ca_file=self.authority.certificate_file, survey=survey, port=port)

    async def problem(self, host: PolicyHost) -> tuple[str, str]:
        try:
            octets = await host.fetch("example.test")
        except PolicyUnavailable as error:
            return error.result, str(error)
        raise AssertionError(octets)

    async def test_a_policy_is_fetched_from_its_place(self) -> None:
        """RFC 8461 section 3.3."""
        host = self.served(lambda request: POLICY)
        assert await host.fetch("example.test") == POLICY
        assert self.file.asked == [(b"mta-sts.example.test", b"/.well-known/mta-sts.txt")]

    async def test_the_next_address_is_tried_where_one_refuses(self) -> None:
        """On one of them nobody listens."""
        host = self.served(lambda request: POLICY, records="A 127.0.0.9,A 127.0.0.1")
        assert await host.fetch("example.test") == POLICY

    async def test_a_certificate_that_does_not_do_has_a_name_of_its_own(self) -> None:
        """RFC 8461 section 3.3, RFC 8460 section 4.3.2.2."""
        (self.folder / "stranger").mkdir()
        stranger = Authority(self.folder / "stranger", datetime.now(UTC), "stranger")
        for files in (
            self.authority.issue("wrong", names=("example.test",)),
            self.authority.issue("old", names=("mta-sts.example.test",), days=(-30, -1)),
            stranger.issue("foreign", names=("mta-sts.example.test",)),
        ):
            result, _ = await self.problem(self.served(lambda request: POLICY, files))
            assert result == "sts-webpki-invalid", files
            assert self.file.asked == []

    async def test_redirects_are_not_followed(self) -> None:
        """RFC 8461 section 3.3: "HTTP 3xx redirects MUST NOT be followed"."""

        def redirect(request: Request) -> bytes:
            request.redirect(b"https://mta-sts.example.test/elsewhere")
            return POLICY

        result, reason = await self.problem(self.served(redirect))
        assert (result, reason) == ("sts-policy-fetch-error", "the policy host answered 302")
        assert len(self.file.asked) == 1

    async def test_only_a_text_file_that_is_there_is_one(self) -> None:
        """RFC 8461 section 3.3: 200 and text/plain."""

        def missing(request: Request) -> bytes:
            request.setResponseCode(404)
            return POLICY

        def page(request: Request) -> bytes:
            request.setHeader(b"content-type", b"text/html")
            return POLICY

        for answer, words in ((missing, "404"), (page, "text/html")):
            result, reason = await self.problem(self.served(answer))
            assert result == "sts-policy-fetch-error"
            assert words in reason

    async def test_a_file_without_end_is_cut(self) -> None:
        """And nothing of it is believed."""

        def endless(request: Request) -> Any:
            def more() -> None:
                if not request._disconnected:
                    request.write(b"mx: a.test\n" * 1000)
                    reactor.callLater(0, more)

            more()
            return NOT_DONE_YET

        result, reason = await self.problem(self.served(endless))
        assert (result, reason) == ("sts-policy-invalid", f"it has more than {MAX_POLICY_OCTETS} octets")

    async def test_header_fields_without_end_are_cut(self) -> None:
        """They are no policy, and would fill the memory for a minute."""

        def endless(request: Request) -> Any:
            transport: Any = request.transport
            transport.write(b"HTTP/1.1 200 OK\r\n")

            def more() -> None:
                if not request._disconnected:
                    transport.write(b"x-more: and more\r\n" * 1000)
                    reactor.callLater(0, more)

            more()
            return NOT_DONE_YET

        with mock.patch.object(mta_sts_fetch, "_FETCH_SECONDS", 5.0):
            result, reason = await self.problem(self.served(endless))
        assert (result, "took longer" in reason) == ("sts-policy-fetch-error", False), reason

    async def test_a_host_that_stalls_costs_its_time(self) -> None:
        """RFC 8461 section 3.3 suggests a minute; here it is less."""
        with mock.patch.object(mta_sts_fetch, "_FETCH_SECONDS", 0.3):
            for host in (self.served(lambda request: NOT_DONE_YET), self.client(self.silent_port())):
                result, reason = await self.problem(host)
                assert result == "sts-policy-fetch-error"
                assert "took longer" in reason

    def silent_port(self) -> int:
        """Of a server that takes connections and says nothing."""
        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    async def test_a_lost_connection_is_no_end_of_file(self) -> None:
        """A truncated policy could name fewer hosts, or a shorter time."""

        def cut(request: Request) -> Any:
            request.setHeader(b"content-length", b"1000")
            request.write(POLICY)
            transport: Any = request.transport
            reactor.callLater(0.05, transport.abortConnection)
            return NOT_DONE_YET

        result, _ = await self.problem(self.served(cut))
        assert result == "sts-policy-fetch-error"

    async def test_a_policy_host_among_our_own_machines_is_not_asked(self) -> None:
        """A stranger's records would choose which of them hears from us."""
        host = self.served(lambda request: POLICY, survey=Survey())
        result, reason = await self.problem(host)
        assert result == "sts-policy-fetch-error"
        assert "not of the public Internet" in reason
        assert self.file.asked == []

    async def test_nobody_there_is_a_failure_with_its_reason(self) -> None:
        """No address, or nobody who listens."""
        result, _ = await self.problem(self.client(1))
        assert result == "sts-policy-fetch-error"
        result, reason = await self.problem(self.client(1, records="TXT nothing"))
        assert (result, "has no address" in reason) == ("sts-policy-fetch-error", True)


class KeptPolicyTests(WritingTestCase):
    """Policies of a domain over weeks, with a table in the database and a clock that is a number."""

    def setUp(self) -> None:
        super().setUp()
        self.now = 1_800_000_000.0
        self.zone = Zone()
        self.fetched = 0
        self.failures: list[tuple[str, str]] = []
        self.octets: bytes | None = POLICY
        self.set_id("1")

    def set_id(self, identifier: str) -> None:
        self.zone.remove("_mta-sts.example.test", RecordType.TXT)
        if identifier:
            self.zone.add("_mta-sts.example.test", RecordType.TXT, f"v=STSv1; id={identifier};".encode())

    def fetch(self, domain: str) -> Deferred[bytes]:
        assert domain == "example.test"
        self.fetched += 1
        if self.octets is None:
            return fail(PolicyUnavailable("sts-policy-fetch-error", "it is away"))
        return succeed(self.octets)

    async def policies(self) -> MtaStsPolicies:
        """As a node has them that has just been started."""
        return MtaStsPolicies(
            self.zone,
            self.fetch,
            MtaStsTable(await self.settled()),
            time=lambda: self.now,
            failed=lambda domain, result, reason: self.failures.append((domain, result)),
        )

    async def policy(self, policies: MtaStsPolicies) -> Policy | NotKnown | None:
        found = policies.policy("example.test")
        return await found if isinstance(found, Deferred) else found

    async def mode(self, policies: MtaStsPolicies) -> Mode | None:
        found = await self.policy(policies)
        return found.mode if isinstance(found, Policy) else None

    async def test_a_policy_is_fetched_once_and_known_to_all_nodes(self) -> None:
        """RFC 8461 section 5.1: it holds for max_age."""
        first, second = await self.policies(), await self.policies()
        found = await self.policy(first)
        assert isinstance(found, Policy)
        assert found.mode is Mode.ENFORCE
        assert first.policy("example.test") == found
        assert await self.policy(second) == found
        assert self.fetched == 1
        rows = self.query("SELECT domain, policy_id, mode, mx, expires_at - fetched_at FROM mta_sts_policy")
        assert [row[:4] for row in rows] == [("example.test", "1", "enforce", ["mx.example.test"])]
        assert rows[0][4].total_seconds() == 604_800

    async def test_many_who_ask_at_once_wait_for_one_fetch(self) -> None:
        """A thousand messages to one domain are one request to its policy host."""
        policies = await self.policies()
        waiting = [policies.policy("example.test") for _ in range(10)]
        assert isinstance(waiting[3], Deferred)
        waiting[3].addErrback(lambda failure: None)
        waiting[3].cancel()
        for waiter in (*waiting[:3], *waiting[4:]):
            assert isinstance(waiter, Deferred)
            assert await waiter is not None
        assert self.fetched == 1

    async def test_another_id_means_another_fetch(self) -> None:
        """RFC 8461 section 3.1; looked at every five minutes."""
        policies = await self.policies()
        await self.policy(policies)
        self.set_id("2")
        self.octets = POLICY.replace(b"enforce", b"testing")
        self.now += 100
        assert await self.mode(policies) is Mode.ENFORCE
        self.now += 300
        assert await self.mode(policies) is Mode.TESTING
        assert self.fetched == 2

    async def test_a_policy_outlives_record_and_host_until_its_time_is_over(self) -> None:
        """RFC 8461 section 10.2: who suppresses them is whom it protects from."""
        policies = await self.policies()
        await self.policy(policies)
        for identifier in ("", "2", "1"):
            self.set_id(identifier)
            self.octets = None
            self.now += 2 * 86_400
            assert await self.mode(policies) is Mode.ENFORCE
            assert await self.mode(await self.policies()) is Mode.ENFORCE
        self.now += 86_400
        assert await self.policy(policies) is NOT_KNOWN
        assert await self.policy(await self.policies()) is NOT_KNOWN
        self.set_id("")
        assert await self.policy(await self.policies()) is None

    async def test_a_policy_is_fetched_again_before_it_runs_out(self) -> None:
        """Once a day, though its id is the same."""
        policies = await self.policies()
        for _ in range(30):
            assert await self.mode(policies) is Mode.ENFORCE
            self.now += 43_200
        assert self.fetched == 15

    async def test_a_fetch_that_fails_is_counted_and_not_tried_for_five_minutes(self) -> None:
        """RFC 8461 section 3.3."""
        policies = await self.policies()
        self.octets = None
        for seconds in (0, 100, 199):
            self.now += seconds
            assert await self.policy(policies) is NOT_KNOWN
        assert (self.fetched, self.failures) == (1, [("example.test", "sts-policy-fetch-error")])
        self.now += 2
        self.octets = b"<html>"
        assert await self.policy(policies) is NOT_KNOWN
        assert self.failures[1:] == [("example.test", "sts-policy-invalid")]
        self.now += 301
        self.octets = POLICY
        assert await self.mode(policies) is Mode.ENFORCE

    async def test_a_failure_is_remembered_though_an_old_policy_has_run_out(self) -> None:
        """RFC 8461 section 3.3: or each message would ask a policy host that is away."""
        policies = await self.policies()
        await self.policy(policies)
        self.octets = None
        self.now += 700_000
        for _ in range(3):
            assert await self.policy(policies) is NOT_KNOWN
        assert self.fetched == 2

    async def test_a_policy_that_holds_for_no_time_is_not_fetched_for_each_message(self) -> None:
        """RFC 8461 section 3.2: max_age may be 0."""
        self.octets = POLICY.replace(b"604800", b"0")
        policies = await self.policies()
        for _ in range(3):
            assert await self.policy(policies) is None
        assert self.fetched == 1

    async def test_a_domain_without_a_record_has_no_policy_and_is_not_asked(self) -> None:
        """RFC 8461 section 3.1."""
        self.set_id("")
        assert await self.policy(await self.policies()) is None
        self.zone.fail("_mta-sts.example.test")
        assert await self.policy(await self.policies()) is NOT_KNOWN
        assert self.fetched == 0

    async def test_without_the_database_policies_are_fetched_all_the_same(self) -> None:
        """And those that are known hold."""
        policies = await self.policies()
        postgres.drop_database(self.dsn)
        with mock.patch("mailgate.storage.pool.PATIENCE_SECONDS", 0.1):
            found = await self.policy(policies)
            assert isinstance(found, Policy)
            self.set_id("")
            self.now += 301
            assert await self.policy(policies) == found

    async def test_an_older_policy_does_not_replace_a_newer_one(self) -> None:
        """Two nodes may fetch at once."""
        await self.policy(await self.policies())
        self.now -= 10
        self.set_id("0")
        await self.policy(await self.policies())
        assert self.query("SELECT policy_id FROM mta_sts_policy") == [("1",)]


class TlsResultTests(WritingTestCase):
    async def test_counts_of_all_nodes_add_up(self) -> None:
        """RFC 8460 section 4: a day's report is one."""
        pool = await self.settled()
        long = PublishedPolicy("example.test", "sts", ("version: STSv1", *(f"mx: mx{n}.test" for n in range(2000))))
        plain = PublishedPolicy("example.org")
        for _ in range(2):
            counts = TlsCounts(lambda: 1_800_000_000.0)
            counts.count(long, "mx1.test")
            counts.count(long, "mx1.test")
            counts.count(
                plain, "mx.example.org", "starttls-not-supported", receiving_address="192.0.2.1", reason="it's"
            )
            writer = TlsResultWriter(reactor, pool, counts)
            writer.start()
            await writer.stop()
            await writer.write()
        rows = self.query(
            "SELECT day::text, policy_domain, policy_type, length(policy), mx_host, result_type, receiving_address,"
            " reason, sessions FROM tls_result ORDER BY policy_domain"
        )
        assert rows == [
            (
                *("2027-01-15", "example.org", "no-policy-found", 0, "mx.example.org", "starttls-not-supported"),
                *("192.0.2.1", "it's", 2),
            ),
            ("2027-01-15", "example.test", "sts", len("\n".join(long.text)), "mx1.test", "", "", "", 4),
        ]

    async def test_what_can_not_be_written_waits(self) -> None:
        """For the database to be back."""
        pool = await self.settled()
        counts = TlsCounts(lambda: 0.0)
        counts.count(PublishedPolicy("example.test"), "mx.example.test")
        postgres.drop_database(self.dsn)
        with mock.patch("mailgate.storage.pool.PATIENCE_SECONDS", 0.1):
            await TlsResultWriter(reactor, pool, counts).write()
        assert list(counts.take().values()) == [1]
