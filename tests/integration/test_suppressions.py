"""Suppression: an address that fails for good again and again is refused for a while, on all nodes."""

from __future__ import annotations

from mailgate.outbound.plan import RecipientOutcome, Result
from mailgate.outbound.suppression import tells_of_the_address
from mailgate.storage.suppressions import SuppressionStore
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

    async def test_a_delivery_forgets_what_was_counted(self) -> None:
        store = await self.store()
        await self.note(store, 2)
        await store.delivered(["BOB@example.net", "bob@EXAMPLE.net"])
        await self.note(store, 2)
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

    async def test_only_what_the_other_host_says_of_the_address_counts(self) -> None:
        """RFC 3463 section 3.2; a refused message or a full mailbox says nothing of the address."""
        for status, is_remote, result, counts in (
            ("5.1.1", True, Result.FAILED, True),
            ("5.1.10", True, Result.FAILED, True),
            ("5.1.1", False, Result.FAILED, False),
            ("5.2.2", True, Result.FAILED, False),
            ("5.7.1", True, Result.FAILED, False),
            ("5.1.1", True, Result.DEFERRED, False),
        ):
            assert tells_of_the_address(RecipientOutcome(1, result, "x", status, is_remote)) is counts
