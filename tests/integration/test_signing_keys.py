"""Keys on a real database: who signs for whom, that changes take effect at once, and what a wrong master key says."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import dkim
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from mailgate.auth.private_key import PrivateKey, generate_key
from mailgate.message import MessageContent
from mailgate.policy.signing import Signed, Signing
from mailgate.sealing import MasterKey, UnusableKey
from mailgate.storage.pool import Connection, Pool
from mailgate.storage.secret import shared_secret
from mailgate.storage.signing_keys import SigningKeys, purpose_of
from tests.support import postgres
from tests.support.waiting import reactor

if TYPE_CHECKING:
    from mailgate.auth.private_key import KeyType

MASTER = MasterKey(bytes(range(32)), "a test")
MESSAGE = b"From: Alice <alice@example.test>\r\nTo: bob@example.org\r\nSubject: Hi\r\n\r\nHello.\r\n"


def add_key(dsn: str, domain: str, selector: str, key_type: KeyType = "ed25519", state: str = "active") -> PrivateKey:
    key = generate_key(domain, selector, key_type)
    postgres.query(
        dsn,
        "INSERT INTO mailgate.dkim_key (domain, selector, algorithm, state, sealed_key, master_key_id, public_key,"
        " activated_at) VALUES (%s, %s, %s, %s, %s, %s, '', now())",
        (domain, selector, key.type, state, MASTER.seal(key.octets, purpose_of(domain, selector)), MASTER.id),
    )
    return key


class SigningKeysTest(TestCase):
    timeout = 60

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.dsn = postgres.fresh_database()
        self.pool = Pool(reactor, self.dsn, size=1, name="test-keys")
        self.listener = Connection(reactor, self.dsn, name="test-listener")
        self.keys = SigningKeys(self.pool, self.listener, MASTER)
        for each in (self.pool, self.listener):
            each.start()
            await each.connected(10)

    async def tearDown(self) -> None:  # type: ignore[override]  # trial awaits it
        await self.listener.stop()
        await self.pool.stop()
        postgres.drop_database(self.dsn)

    async def selectors(self, domain: str) -> list[str]:
        await self.listener.execute("SELECT 1")  # behind which no notification is under way
        keys = self.keys.keys_for(domain)
        return [key.selector for key in (await keys if isinstance(keys, Deferred) else keys)]

    async def test_a_domain_has_the_keys_that_are_active_those_for_rsa_first(self) -> None:
        add_key(self.dsn, "example.test", "e1")
        add_key(self.dsn, "example.test", "r1", "rsa")
        add_key(self.dsn, "example.test", "next", state="pending")
        add_key(self.dsn, "example.test", "last", state="retired")
        assert await self.selectors("example.test") == ["r1", "e1"]
        assert not isinstance(self.keys.keys_for("example.test"), Deferred)

    async def test_the_nearest_domain_above_signs_where_there_is_no_key(self) -> None:
        """RFC 9989 section 4.4: in relaxed mode the organizational domain aligns."""
        add_key(self.dsn, "example.test", "e1")
        add_key(self.dsn, "sub.example.test", "e2")
        add_key(self.dsn, "test", "e3")
        assert await self.selectors("news.example.test") == ["e1"]
        assert await self.selectors("a.sub.example.test") == ["e2"]
        assert await self.selectors("example.org") == []
        assert await self.selectors("other.test") == []

    async def test_a_change_takes_effect_at_once(self) -> None:
        """By NOTIFY, on every node."""
        assert await self.selectors("example.test") == []
        add_key(self.dsn, "example.test", "e1")
        assert await self.selectors("example.test") == ["e1"]

    async def test_those_who_ask_at_the_same_time_share_a_question(self) -> None:
        add_key(self.dsn, "example.test", "e1")
        first, second = self.keys.keys_for("example.test"), self.keys.keys_for("example.test")
        assert isinstance(first, Deferred)
        assert isinstance(second, Deferred)
        assert (await first)[0] is (await second)[0]

    async def test_another_master_key_is_told_from_the_start(self) -> None:
        """What was sealed with one key is of no use with another: the message names both and the file."""
        await self.keys.check()
        add_key(self.dsn, "example.test", "e1")
        await self.keys.check()
        for master, says in ((MasterKey(bytes(32), "other.key"), "other.key holds"), (None, "signing.master_key_file")):
            wrong = SigningKeys(self.pool, self.listener, master)
            for failing in (wrong.check(), wrong.keys_for("example.test")):
                try:
                    await failing  # type: ignore[misc]  # nothing is known yet: it waits
                except UnusableKey as error:
                    assert "e1._domainkey.example.test" in str(error)
                    assert MASTER.id in str(error)
                    assert says in str(error)
                else:
                    self.fail("a wrong master key was taken")

    async def test_a_sealed_key_opens_in_its_own_row_only(self) -> None:
        """Who may write to the table still can't give one domain the key of another."""
        add_key(self.dsn, "example.test", "e1")
        postgres.query(self.dsn, "UPDATE mailgate.dkim_key SET domain = 'example.org'")
        failing = self.keys.keys_for("example.org")
        assert isinstance(failing, Deferred)
        await self.assertFailure(failing, UnusableKey)

    async def test_a_message_is_signed_for_its_authors_domain(self) -> None:
        """The whole way: From, keys, hash, fields; dkimpy takes them."""
        made = [add_key(self.dsn, "example.test", "e1"), add_key(self.dsn, "example.test", "r1", "rsa")]
        records = {key.record_name: key.record.encode() for key in made}
        signing = Signing(self.keys, reactor)
        for message in (MESSAGE, MESSAGE + b"A line of a long message.\r\n" * 50_000):
            signed = signing.sign(MessageContent([message], len(message), b""))
            signed = await signed if isinstance(signed, Deferred) else signed
            assert (signed.domain, signed.problem) == ("example.test", "")
            for position in (0, 1):
                assert dkim.DKIM(signed.fields + message).verify(
                    position, dnsfunc=lambda name, timeout=5: records.get(name.decode().rstrip("."))
                )

    async def test_a_large_message_leaves_the_reactor_to_others(self) -> None:
        """No turn takes 100 ms; of this thread's time, so that nothing else on the machine counts."""
        add_key(self.dsn, "example.test", "e1")
        add_key(self.dsn, "example.test", "r1", "rsa")
        await self.keys.keys_for("example.test")  # type: ignore[misc]  # nothing is known yet: it waits
        message = MESSAGE + b"A line of  a long message, with blanks to be removed. \r\n" * 500_000
        content = MessageContent([message], len(message), b"")
        moments = [time.thread_time()]
        turns: LoopingCall = LoopingCall(lambda: moments.append(time.thread_time()))
        turns.clock = reactor
        signing = Signing(self.keys, reactor).sign(content)
        assert isinstance(signing, Deferred)
        turns.start(0)
        signed = await signing
        turns.stop()
        assert signed.fields.count(b"DKIM-Signature:") == 2
        moments.append(time.thread_time())
        assert len(moments) > 50
        assert max(after - before for before, after in pairwise(moments)) < 0.1

    async def test_a_message_that_nobody_can_sign_says_why(self) -> None:
        """RFC 6376 section 8.15: two authors' fields are none."""
        signing = Signing(self.keys, reactor)
        message = b"From: alice@example.test\r\n" + MESSAGE
        assert signing.sign(MessageContent([message], len(message), b"")) == Signed(
            b"", problem="more than one From field"
        )
        unsigned = signing.sign(MessageContent([MESSAGE], len(MESSAGE), b""))
        assert isinstance(unsigned, Deferred)
        assert await unsigned == Signed(b"")

    async def test_all_nodes_share_a_secret(self) -> None:
        """The first that needs it makes it."""
        first = await shared_secret(self.pool.execute, "srs")
        assert len(first) == 32
        assert await shared_secret(self.listener.execute, "srs") == first
        assert await shared_secret(self.pool.execute, "other") != first
