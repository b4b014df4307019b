"""Suppression: an address that fails for good again and again is refused for a while, on all nodes."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.task import Clock

from mailgate.envelope import Address, ForwardDestination, ForwardPath, Resolution
from mailgate.outbound.suppression import tells_of_the_address
from mailgate.policy.stage import Request, Stage
from mailgate.policy.suppression import SuppressionPolicy
from mailgate.policy.verdict import Continue, Reject, Verdict
from mailgate.storage.suppressions import INTERVAL_SECONDS, SuppressionStore, SuppressionWriter
from tests.support.messages import session
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase

DAY = 86_400.0
NO_SUCH_USER = "550 5.1.1 No such user"


class SuppressionTests(WritingTestCase):
    async def store(self) -> SuppressionStore:
        self.now = 1_795_000_000.0
        return SuppressionStore(await self.settled(), days=14, threshold=3, time=lambda: self.now)

    async def note(self, store: SuppressionStore, times: int, address: str = "bob@example.net") -> None:
        for _ in range(times):
            await store.failed([(address, NO_SUCH_USER)])

    async def test_the_third_failure_suppresses_for_the_days_of_config(self) -> None:
        store = await self.store()
        await self.note(store, 2)
        assert await store.find("bob@example.net") is None
        await self.note(store, 1)
        found = await store.find("bob@Example.NET")
        assert found is not None
        assert found.until == self.now + 14 * DAY
        assert "5.1.1" in found.reply().text()
        assert NO_SUCH_USER in found.reply().text()
        assert await store.find("carol@example.net") is None
        self.now += 14 * DAY
        assert await store.find("bob@example.net") is None

    async def test_failures_far_apart_do_not_add_up(self) -> None:
        store = await self.store()
        for _ in range(5):
            await self.note(store, 1)
            self.now += 15 * DAY
        assert await store.find("bob@example.net") is None

    async def test_what_is_long_past_is_removed(self) -> None:
        store = await self.store()
        await self.note(store, 3)
        await self.note(store, 1, "carol@example.net")
        self.now += 13 * DAY
        await store.forget()
        assert self.count("suppression") == 2
        self.now += 2 * DAY
        await store.forget()
        assert self.count("suppression") == 0

    async def test_addresses_with_quotes_are_addresses(self) -> None:
        store = await self.store()
        await self.note(store, 3, '"o\'brien\\\\ {x}"@example.net')
        assert await store.find('"o\'brien\\\\ {x}"@example.net') is not None

    async def test_only_what_tells_of_the_address_counts(self) -> None:
        """RFC 3463 section 3.2; a refused message or a full mailbox says nothing of the address."""
        for status, counts in (
            ("5.1.1", True),
            ("5.1.2", True),
            ("5.1.10", True),
            ("5.2.1", True),
            ("5.2.2", False),
            ("5.7.1", False),
            ("5.0.0", False),
            ("4.1.1", False),
        ):
            assert tells_of_the_address(status) is counts

    async def test_failures_are_written_a_little_later(self) -> None:
        store = await self.store()
        clock = Clock()
        writer = SuppressionWriter(clock, store)
        writer.start()
        writer.failed("bob@example.net", "5.1.1", NO_SUCH_USER)
        writer.failed("carol@example.net", "5.7.1", "550 5.7.1 No")
        clock.advance(INTERVAL_SECONDS)
        await until(reactor, lambda: self.count("suppression") == 1, what="the failure is written")
        writer.failed("dave@example.net", "5.1.1", NO_SUCH_USER)
        await writer.stop()
        assert self.query("SELECT address FROM suppression ORDER BY 1") == [("bob@example.net",), ("dave@example.net",)]

    async def test_a_submitting_client_hears_why_an_address_is_refused(self) -> None:
        """550 5.1.1 at RCPT; other clients, and other addresses, are not concerned."""
        store = await self.store()
        await self.note(store, 3)
        policy = SuppressionPolicy(store)

        async def verdict(address: str, account: str | None) -> Verdict:
            return await policy.decide(self.request(address, account))

        refused = await verdict("bob@example.net", "alice@example.test")
        assert isinstance(refused, Reject)
        assert refused.reply.text().startswith("550 5.1.1 Mail to this address has failed for good several times")
        assert await verdict("bob@example.net", None) == Continue()
        assert await verdict("carol@example.net", "alice@example.test") == Continue()

    async def test_without_the_database_nobody_is_refused(self) -> None:
        """Suppression is a courtesy, not a duty."""
        connection = await self.settled()
        store = SuppressionStore(connection, days=14, threshold=3, time=lambda: 0.0)
        await connection.stop()
        request = self.request("bob@example.net", "alice@example.test")
        assert await SuppressionPolicy(store).decide(request) == Continue()

    def request(self, address: str, account: str | None) -> Request:
        """RCPT for an address elsewhere."""
        local, _, domain = address.partition("@")
        return Request(
            Stage.RCPT,
            replace(session(), authenticated=account),
            forward_path=ForwardPath(Address(local, domain)),
            notes=(Resolution((ForwardDestination(address),)),),
        )
