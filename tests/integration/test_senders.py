"""Who may send as whom, and how much, on a real database: every rule of `sender_rights`, and the shared count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from mailgate.smtp.grammar import parse_mailbox
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.pool import Connection, Pool
from mailgate.storage.senders import Rights, Senders, SendingLimits, Sent
from tests.support import postgres
from tests.support.waiting import reactor, until

if TYPE_CHECKING:
    from mailgate.envelope import Address

DIRECTORY = """
INSERT INTO mailgate.domain (name, catch_all, plus_separator, is_enabled) VALUES
    ('example.test', NULL, '+', true),
    ('all.test', 'alice@example.test', '+', true),
    ('dash.test', NULL, '-', true),
    ('off.test', NULL, '+', false);
INSERT INTO mailgate.mailbox (domain_id, local_part, is_enabled, sending_limit)
SELECT d.id, n.local_part, n.is_enabled, n.sending_limit
FROM mailgate.domain d JOIN (VALUES
    ('example.test', 'alice', true, NULL),
    ('example.test', 'bob', true, 3),
    ('example.test', 'alice+private', true, NULL),
    ('example.test', 'gone', false, NULL),
    ('example.test', 'boss', true, NULL),
    ('dash.test', 'dora', true, NULL),
    ('off.test', 'frank', true, NULL)
) AS n (domain, local_part, is_enabled, sending_limit) ON n.domain = d.name;
INSERT INTO mailgate.alias (domain_id, local_part, target)
SELECT d.id, n.local_part, n.target
FROM mailgate.domain d JOIN (VALUES
    ('example.test', 'team', 'Alice@EXAMPLE.test'),
    ('example.test', 'team', 'bob@example.test'),
    ('example.test', 'boss', 'boss@example.test'),
    ('example.test', 'boss', 'bob@example.test'),
    ('example.test', 'office', 'boss@example.test'),
    ('example.test', 'everyone', 'team@example.test'),
    ('example.test', 'lists', 'alice+lists@example.test'),
    ('example.test', 'out', 'alice@elsewhere.example'),
    ('example.test', 'round', 'about@example.test'),
    ('example.test', 'about', 'round@example.test'),
    ('example.test', 'about', 'everyone@example.test'),
    ('dash.test', 'sales', 'everyone@example.test'),
    ('off.test', 'sales', 'alice@example.test')
) AS n (domain, local_part, target) ON n.domain = d.name;
INSERT INTO mailgate.send_grant (mailbox_id, address)
SELECT m.id, n.address
FROM mailgate.mailbox m JOIN (VALUES ('bob', 'ceo@example.test'), ('bob', '@shop.example')) AS n (local_part, address)
ON n.local_part = m.local_part;
"""

OWN = [
    ("alice@example.test", "alice@example.test"),
    ("alice@example.test", "Alice@EXAMPLE.test"),
    ("ALICE@example.test", "alice@example.test"),
    ("alice@example.test", "alice+any.detail@example.test"),
    ("alice@example.test", "team@example.test"),
    ("alice@example.test", "team+detail@example.test"),
    ("alice@example.test", "everyone@example.test"),
    ("alice@example.test", "lists@example.test"),
    ("alice@example.test", "round@example.test"),
    ("alice@example.test", "sales@dash.test"),
    ("alice@example.test", "sales-detail@dash.test"),
    ("bob@example.test", "team@example.test"),
    ("bob@example.test", "ceo@example.test"),
    ("bob@example.test", "CEO@Example.test"),
    ("bob@example.test", "anybody@shop.example"),
    ("dora@dash.test", "dora-detail@dash.test"),
    ("boss@example.test", "boss@example.test"),
    ("boss@example.test", "office@example.test"),
]
NOT_OWN = [
    ("alice@example.test", "bob@example.test"),
    ("alice@example.test", "alice+private@example.test"),  # a mailbox of its own, whoever's
    ("alice@example.test", "alice-detail@example.test"),
    ("alice@example.test", "out@example.test"),
    ("alice@example.test", "ceo@example.test"),
    ("alice@example.test", "anybody@all.test"),  # a catch-all is no name
    ("alice@example.test", "postmaster@example.test"),
    ("alice@example.test", "nobody@example.test"),
    ("alice@example.test", "alice@elsewhere.example"),
    ("alice@example.test", "sales@off.test"),
    ("alice@example.test", "alice@[192.0.2.1]"),
    ("bob@example.test", "ceo+detail@example.test"),
    ("bob@example.test", "boss@example.test"),  # who gets copies of somebody's mail is not that one
    ("bob@example.test", "boss+detail@example.test"),
    ("bob@example.test", "office@example.test"),
    ("bob@example.test", "anybody@sub.shop.example"),
    ("dora@dash.test", "dora+detail@dash.test"),
]


class SendersTestCase(TestCase):
    """A database with accounts, and Senders on it."""

    def setUp(self) -> None:
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)
        postgres.query(self.dsn, DIRECTORY)
        self.now = 1_790_000_000.0

    async def senders(self, limits: SendingLimits = SendingLimits(4, 6)) -> Senders:  # noqa: B008  # frozen
        pool = Pool(reactor, self.dsn, size=2, name="test-pool")
        listener = Connection(reactor, self.dsn, name="test-listener")
        for connections in (pool, listener):
            self.addCleanup(_stop, connections)
            connections.start()
            await connections.connected(10)
        return Senders(pool, listener, limits, lambda: self.now)


def _stop(connections: Connection | Pool) -> Deferred[None]:
    return Deferred.fromCoroutine(connections.stop())


async def rights(senders: Senders, account: str, address: Address | str | None) -> Rights | None:
    asked = senders.rights(account, parse_mailbox(address) if isinstance(address, str) else address)
    return await asked if isinstance(asked, Deferred) else asked


class OwnershipTests(SendersTestCase):
    async def test_an_account_owns_its_names_and_grants_and_nothing_else(self) -> None:
        """The tables above; RFC 6409 section 6.1."""
        senders = await self.senders()
        for pairs, expected in ((OWN, True), (NOT_OWN, False)):
            for account, address in pairs:
                found = await rights(senders, account, address)
                assert found is not None
                assert found.is_own is expected, (account, address)

    async def test_an_account_that_is_not_there_or_not_in_use_is_told_so(self) -> None:
        """An authenticator may know more names than the directory has mailboxes."""
        senders = await self.senders()
        assert await rights(senders, "nobody@example.test", None) is None
        assert await rights(senders, "no address", None) is None
        for account in ("gone@example.test", "frank@off.test"):
            found = await rights(senders, account, None)
            assert found is not None
            assert not found.is_enabled

    async def test_an_answer_is_remembered_until_something_changes(self) -> None:
        """A grant holds at once on every node, and so does its end."""
        senders = await self.senders()
        address = parse_mailbox("ceo@example.test")
        assert (await rights(senders, "alice@example.test", address)).is_own is False  # type: ignore[union-attr]  # there
        assert isinstance(senders.rights("alice@example.test", address), Rights)
        postgres.query(
            self.dsn,
            "INSERT INTO mailgate.send_grant (mailbox_id, address)"
            " SELECT id, 'ceo@example.test' FROM mailgate.mailbox WHERE local_part = 'alice'",
        )
        await until(reactor, lambda: not senders._known, what="the node has heard of it")
        assert (await rights(senders, "alice@example.test", address)).is_own is True  # type: ignore[union-attr]  # there
        self.now += 61
        asked = senders.rights("alice@example.test", address)
        assert isinstance(asked, Deferred)
        await asked

    async def test_a_database_that_is_away_is_doubt(self) -> None:
        """Nothing is remembered of it."""
        senders = await self.senders()
        await senders._pool.stop()
        try:
            await rights(senders, "alice@example.test", None)
        except StorageUnavailable:
            return
        raise AssertionError("it was answered")


class CountingTests(SendersTestCase):
    async def test_a_day_is_counted_up_to_its_limits_for_all_nodes(self) -> None:
        """Two nodes at once never let more through than one would."""
        one, other = await self.senders(), await self.senders()
        alice = await rights(one, "alice@example.test", None)
        assert alice is not None
        answers = await gatherResults(
            [Deferred.fromCoroutine((one, other)[number % 2].count(alice, 2)) for number in range(8)]
        )
        assert sorted(answers) == [False] * 5 + [True] * 3  # 6 recipients are 3 messages to 2
        assert await one.count(alice, 1) is False
        assert max(senders.sent_today(alice.mailbox_id).recipients for senders in (one, other)) == 6

    async def test_messages_are_limited_too(self) -> None:
        """Four a day."""
        senders = await self.senders(SendingLimits(4, 1000))
        alice = await rights(senders, "alice@example.test", None)
        assert alice is not None
        assert [await senders.count(alice, 1) for _ in range(5)] == [True] * 4 + [False]

    async def test_a_limit_of_its_own_goes_before_the_configured_one(self) -> None:
        """`mailgate mailbox set --sending-limit`."""
        senders = await self.senders()
        bob = await rights(senders, "bob@example.test", None)
        assert bob is not None
        assert bob.limits == SendingLimits(3, 3)
        assert await senders.count(bob, 4) is False
        assert await senders.count(bob, 3) is True

    async def test_another_day_begins_anew(self) -> None:
        """What was sent on days before does not count, and is not kept for ever."""
        senders = await self.senders()
        postgres.query(
            self.dsn,
            "INSERT INTO mailgate.sending_usage (mailbox_id, day, messages, recipients)"
            " SELECT id, (now() AT TIME ZONE 'UTC')::date - ago, 4, 6 FROM mailgate.mailbox, (VALUES (1), (40)) d (ago)"
            " WHERE local_part = 'alice'",
        )
        alice = await rights(senders, "alice@example.test", None)
        assert alice is not None
        assert await senders.count(alice, 6) is True
        assert postgres.query(self.dsn, "SELECT recipients FROM mailgate.sending_usage ORDER BY day") == [(6,), (6,)]

    async def test_what_is_remembered_of_another_day_does_not_refuse(self) -> None:
        """Midnight passes while an answer is remembered."""
        senders = await self.senders()
        alice = await rights(senders, "alice@example.test", None)
        assert alice is not None
        assert await senders.count(alice, 2)
        sent = senders.sent_today(alice.mailbox_id)
        assert (sent.messages, sent.recipients) == (1, 2)
        self.now = (sent.day.toordinal() - 719_163 + 1) * 86_400.0
        tomorrow = senders.sent_today(alice.mailbox_id)
        assert tomorrow == Sent(tomorrow.day, 0, 0)
