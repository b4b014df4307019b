"""Accounts on a real database: who is let in, what it costs, and what failures lead to, on one node and on two."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from threading import Event

import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.accounts.authenticator import MALFORMED, REFUSED, UNAVAILABLE
from mailgate.accounts.bans import ACCOUNT_BANNED, NETWORK_BANNED, delay_seconds
from mailgate.accounts.checker import DatabaseChecker
from mailgate.accounts.hashing import Overloaded, PasswordThreads
from mailgate.cli.main import main
from mailgate.sasl.scram import ITERATIONS
from mailgate.storage.credentials import Bounds, Credentials, Failures
from tests.support import postgres
from tests.support.accounts import CHEAP, TLS, USUAL, Node, add_account, set_password, view
from tests.support.command import command_for
from tests.support.scram_client import ScramClient
from tests.support.waiting import reactor, until

ALICE, BOB = "alice@example.test", "bob@example.test"
HOME, OFFICE, STRANGER = view("192.0.2.7"), view("2001:db8::7"), view("198.51.100.9")


class AccountsTestCase(TestCase):
    """A database with two accounts, and as many nodes on it as a test wants."""

    def setUp(self) -> None:
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)
        add_account(self.dsn, ALICE, "correct horse")
        set_password(self.dsn, ALICE, "app-password-of-a-phone", "phone")

    async def node(self, bounds: Bounds = USUAL, *, remembers: bool = False) -> Node:
        node = Node(self.dsn, bounds=bounds, remembers=remembers)
        self.addCleanup(lambda: Deferred.fromCoroutine(node.stop()))
        await node.start()
        return node

    def folder(self) -> Path:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        return folder

    def query(self, sql: str) -> list[tuple[object, ...]]:
        return postgres.query(self.dsn, sql)


class PasswordTests(AccountsTestCase):
    async def test_an_account_is_let_in_by_its_own_password_and_by_an_app_password(self) -> None:
        """Under the name of its mailbox, whatever capitals the client uses (RFC 5321 section 2.4)."""
        node = await self.node()
        assert await node.plain(ALICE, "correct horse") == ALICE
        assert await node.plain("Alice@EXAMPLE.test", "app-password-of-a-phone") == ALICE
        assert await node.exchange("LOGIN", [None, ALICE.encode(), b"correct horse"], view()) == ALICE

    async def test_whoever_is_not_let_in_hears_the_same_after_the_same_work(self) -> None:
        """RFC 4954 section 6; neither reply nor work tells a stranger which accounts exist."""
        add_account(self.dsn, BOB, "battery staple", is_enabled=False)
        add_account(self.dsn, "carol@example.test")
        set_password(self.dsn, "carol@example.test", "app-password-of-a-desk", "desk")
        add_account(self.dsn, "dave@off.test", "battery staple")
        self.query("UPDATE mailgate.domain SET is_enabled = false WHERE name = 'off.test'")
        node = await self.node()
        hashed: list[str | None] = []
        verify = node.threads.verify

        def counted(argon2: str | None, password: bytes) -> Deferred[bool]:
            hashed.append(argon2)
            return verify(argon2, password)

        self.patch(node.threads, "verify", counted)  # type: ignore[no-untyped-call]  # trial has no types
        work = set()
        for name, password in (
            (ALICE, "wrong"),
            ("nobody@example.test", "wrong"),
            ("nobody@elsewhere.test", "wrong"),
            ("nobody", "wrong"),
            (BOB, "battery staple"),
            ("carol@example.test", "wrong"),
            ("dave@off.test", "battery staple"),
        ):
            hashed.clear()
            node.statements = 0
            assert await node.plain(name, password) is REFUSED
            work.add((len(hashed), node.statements))
        assert work == {(1, 3)}

    async def test_the_use_of_a_password_is_noted(self) -> None:
        """So that a person sees which program still uses which."""
        node = await self.node()
        await node.plain(ALICE, "app-password-of-a-phone", OFFICE)
        rows = self.query("SELECT name, host(last_used_from) FROM mailgate.credential WHERE last_used_at IS NOT NULL")
        assert rows == [("phone", "2001:db8::7")]

    async def test_what_is_kept_by_older_parameters_is_hashed_again(self) -> None:
        """At the next use, because only then the password is known."""
        node = await self.node()
        newer = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
        checker = DatabaseChecker(Credentials(node.execute), node.threads, newer)
        upgraded = Node(self.dsn, checker=checker)
        self.addCleanup(lambda: Deferred.fromCoroutine(upgraded.stop()))
        await upgraded.start()
        assert await upgraded.plain(ALICE, "correct horse") == ALICE
        ((argon2,),) = self.query("SELECT argon2 FROM mailgate.credential WHERE name = ''")
        assert not newer.check_needs_rehash(str(argon2))
        assert await node.plain(ALICE, "correct horse") == ALICE

    async def test_a_response_that_is_no_response_counts_against_nobody(self) -> None:
        """RFC 4954 section 4: 501; there was nothing to guess with."""
        node = await self.node()
        assert await node.exchange("PLAIN", [b"nonsense"], view()) is MALFORMED
        assert self.query("SELECT * FROM mailgate.ban") == []


class ScramTests(AccountsTestCase):
    async def scram(self, node: Node, name: str, password: str, *, plus: bool = False) -> object:
        """What comes of SCRAM; the salt and the count that were told are left in `told`."""
        binding = TLS.channel_binding or b""
        client = (
            ScramClient(name, password, gs2="p=tls-exporter,,", binding=binding)
            if plus
            else ScramClient(name, password)
        )
        exchange = node.authenticator.begin("SCRAM-SHA-256-PLUS" if plus else "SCRAM-SHA-256", view())
        server_first = await node.settled(exchange.step(client.first()))
        assert isinstance(server_first, bytes)
        self.told = server_first.partition(b",")[2]
        server_final = await node.settled(exchange.step(client.final(server_first)))
        if not isinstance(server_final, bytes):
            return server_final
        assert client.accepts(server_final)
        return await node.settled(exchange.step(b""))

    async def test_every_password_of_an_account_works_with_scram(self) -> None:
        """RFC 5802: one salt is told before it is known which password the client has."""
        node = await self.node()
        assert await self.scram(node, ALICE, "correct horse") == ALICE
        assert await self.scram(node, "ALICE@example.test", "app-password-of-a-phone", plus=True) == ALICE
        assert await self.scram(node, ALICE, "wrong") is REFUSED
        assert len(self.query("SELECT * FROM mailgate.credential WHERE last_used_at IS NOT NULL")) == 2

    async def test_an_unknown_account_has_the_same_salt_each_time_and_everywhere(self) -> None:
        """RFC 5802 section 9: else asking twice would tell."""
        first, second = await self.node(), await self.node()
        told = set()
        for node, name in (
            (first, "nobody@example.test"),
            (second, "Nobody@example.test"),
            (first, "nobody@EXAMPLE.test"),
        ):
            assert await self.scram(node, name, "wrong") is REFUSED
            told.add(self.told)
        assert len(told) == 1
        assert await self.scram(first, "somebody@example.test", "wrong") is REFUSED
        assert self.told not in told
        assert self.told.endswith(b",i=%d" % ITERATIONS)

    async def test_a_ban_ends_scram_before_it_begins(self) -> None:
        node = await self.node(Bounds(failures_per_network=1))
        await node.plain(ALICE, "wrong")
        assert await node.exchange("SCRAM-SHA-256", [b"n,,n=a,r=b"], view()) is NETWORK_BANNED


class CommandLineTests(AccountsTestCase):
    async def test_what_the_command_line_sets_is_what_a_node_checks(self) -> None:
        """By PLAIN and by SCRAM, the account's own password and an app password, prepared alike (RFC 4013)."""
        command = command_for(self.dsn, self.folder())
        command.ok("mailbox", "add", "bob@example.test")
        typed = "Stra\u00dfe\u00a0nach \u2168"
        arguments = ["--config", str(command.config_path), "mailbox", "set", BOB, "--password"]
        assert CliRunner().invoke(main, arguments, input=typed + "\n").exit_code == 0
        app_password = command.ok("mailbox", "app-password", "add", BOB, "phone").strip()
        node = await self.node()
        for password in (typed, "Stra\u00dfe nach IX", app_password):
            assert await node.plain(BOB, password) == BOB
        for password in ("Stra\u00dfe nach IX", app_password):
            client = ScramClient(BOB, password)
            exchange = node.authenticator.begin("SCRAM-SHA-256", view())
            server_first = await node.settled(exchange.step(client.first()))
            assert isinstance(server_first, bytes)
            server_final = await node.settled(exchange.step(client.final(server_first)))
            assert isinstance(server_final, bytes)
            assert client.accepts(server_final)


class BanTests(AccountsTestCase):
    async def test_a_network_that_failed_too_often_is_not_listened_to_by_any_node(self) -> None:
        """The right password does not help then; other networks are not concerned."""
        first, second = await self.node(Bounds(failures_per_network=3)), await self.node(Bounds(failures_per_network=3))
        for node, name in ((first, "a@example.test"), (second, "b@example.test"), (first, "c@example.test")):
            assert await node.plain(name, "wrong", STRANGER) is REFUSED
        for node in (first, second):
            assert await node.plain(ALICE, "correct horse", STRANGER) is NETWORK_BANNED
            assert await node.plain(ALICE, "correct horse", HOME) == ALICE

    async def test_a_stranger_can_not_lock_an_owner_out_of_known_networks(self) -> None:
        """Guesses from many networks ban the account for all but those that it was used from."""
        bounds = Bounds(failures_per_account=3)
        first, second = await self.node(bounds), await self.node(bounds)
        assert await first.plain(ALICE, "correct horse", HOME) == ALICE
        for number in range(3):
            assert await second.plain(ALICE, "wrong", view(f"198.51.100.{number}")) is REFUSED
        assert await second.plain(ALICE, "correct horse", HOME) == ALICE
        assert await first.plain(ALICE, "correct horse", OFFICE) is ACCOUNT_BANNED
        assert await first.plain("other@example.test", "wrong", OFFICE) is REFUSED

    async def test_a_network_that_is_banned_counts_against_no_account_any_more(self) -> None:
        """What can't be right is not checked, and not counted either: one stranger alone can't ban an account."""
        node = await self.node(Bounds(failures_per_network=2, failures_per_account=4))
        as_another = [b"bob@example.test\0alice@example.test\0wrong"]
        for _ in range(2):
            assert await node.exchange("PLAIN", as_another, STRANGER) is REFUSED
        for _ in range(3):
            assert await node.exchange("PLAIN", as_another, STRANGER) is NETWORK_BANNED
        assert await node.plain(ALICE, "correct horse", OFFICE) == ALICE
        assert self.query("SELECT failures FROM mailgate.ban WHERE kind = 'account'") == [(2,)]

    async def test_a_burst_of_one_network_does_not_ban_an_account(self) -> None:
        """What was under way when the network was banned counts against the network alone."""
        bounds = Bounds(failures_per_network=3, failures_per_account=5)
        node = await self.node(bounds)
        failures = Failures(node.execute)
        counts = [await failures.count(STRANGER.client_network, ALICE, bounds) for _ in range(9)]
        assert [count.is_network_banned for count in counts] == [False, False, True] * 3
        assert not any(count.is_account_banned for count in counts)
        assert self.query("SELECT kind, failures, bans FROM mailgate.ban ORDER BY kind") == [
            ("account", 3, 0),
            ("network", 0, 3),
        ]

    async def test_a_ban_by_the_operator_holds_for_known_networks_too(self) -> None:
        """And for every client in the network that it names."""
        node = await self.node()
        assert await node.plain(ALICE, "correct horse", HOME) == ALICE
        self.query(
            "INSERT INTO mailgate.ban (kind, subject, banned_until, reason) VALUES"
            f" ('account', '{ALICE}', 'infinity', 'stolen'), ('network', '198.51.100.0/24', 'infinity', 'guesses')"
        )
        assert await node.plain(ALICE, "correct horse", HOME) is ACCOUNT_BANNED
        assert await node.plain(BOB, "wrong", STRANGER) is NETWORK_BANNED

    async def test_a_ban_ends_and_the_next_one_is_longer(self) -> None:
        """Up to the maximum."""
        node = await self.node(Bounds(failures_per_network=1, ban_seconds=60, maximum_ban_seconds=200))
        lengths = []
        for _ in range(4):
            assert await node.plain(ALICE, "wrong") is REFUSED
            assert await node.plain(ALICE, "correct horse") is NETWORK_BANNED
            ((seconds,),) = self.query(
                "SELECT round(extract(epoch FROM banned_until - now())) FROM mailgate.ban WHERE kind = 'network'"
            )
            lengths.append(round(float(str(seconds)), -1))
            self.query("UPDATE mailgate.ban SET banned_until = now() - interval '1 second'")
            assert await node.plain(ALICE, "correct horse") == ALICE
        assert lengths == [60, 120, 200, 200]

    async def test_failures_of_long_ago_do_not_count(self) -> None:
        node = await self.node(Bounds(failures_per_network=2, counted_seconds=600))
        await node.plain(ALICE, "wrong")
        self.query("UPDATE mailgate.ban SET counted_since = now() - interval '601 seconds'")
        await node.plain(ALICE, "wrong")
        assert await node.plain(ALICE, "correct horse") == ALICE

    async def test_names_that_strangers_made_up_are_forgotten_after_a_day(self) -> None:
        """The table is bounded by what happens in a day."""
        node = await self.node()
        self.query(
            "INSERT INTO mailgate.ban (kind, subject, failures, counted_since)"
            " SELECT 'account', 'x' || n, 1, now() - interval '25 hours' FROM generate_series(1, 15) AS n"
        )
        await node.plain("a@example.test", "wrong")
        await node.plain("b@example.test", "wrong")
        assert self.query("SELECT count(*) FROM mailgate.ban WHERE subject LIKE 'x%'") == [(0,)]

    async def test_a_name_of_any_octets_is_counted(self) -> None:
        """NUL, quotes and lone surrogates come from strangers."""
        node = await self.node()
        for name in ("' OR 1=1 --", "%s%(name)s", "\\", "x" * 1000, '"a\\"b"@example.test'):
            assert await node.plain(name, "wrong") is REFUSED
        assert self.query("SELECT max(length(subject)) FROM mailgate.ban") == [(320,)]


class DelayTests(AccountsTestCase):
    async def test_each_failure_of_a_network_waits_longer_for_its_answer(self) -> None:
        """By a clock, and not in a thread."""
        node = await self.node(Bounds(failures_per_network=100))
        waited = []
        for _ in range(6):
            before = node.clock.seconds()
            assert await node.plain(ALICE, "wrong") is REFUSED
            waited.append(node.clock.seconds() - before)
        assert waited == [1, 2, 4, 8, 16, 16]
        assert [delay_seconds(failures) for failures in (0, 1, 2, 1000)] == [1, 1, 2, 16]

    async def test_a_client_that_leaves_takes_its_delay_along_and_is_counted(self) -> None:
        """Whoever hangs up at once has guessed all the same."""
        node = await self.node()
        answer = node.authenticator.begin("PLAIN", view()).step(b"\0alice@example.test\0wrong")
        assert isinstance(answer, Deferred)
        await until(reactor, lambda: [call for call in node.clock.getDelayedCalls() if call.getTime() <= 1.0])
        answer.addErrback(lambda _failure: None)
        answer.cancel()
        assert node.clock.getDelayedCalls() == []
        assert self.query("SELECT failures FROM mailgate.ban WHERE kind = 'network'") == [(1,)]


class RememberedTests(AccountsTestCase):
    async def test_a_check_is_not_made_again_until_a_password_changes_on_any_node(self) -> None:
        """LISTEN tells; a new password counts at once."""
        node = await self.node(remembers=True)
        assert await node.plain(ALICE, "correct horse") == ALICE
        node.statements = 0
        assert await node.plain(ALICE, "correct horse") == ALICE
        assert node.statements == 0
        generation = node.remembered.generation
        set_password(self.dsn, ALICE, "battery staple")
        await until(reactor, lambda: node.remembered.generation > generation)
        assert await node.plain(ALICE, "correct horse") is REFUSED
        assert await node.plain(ALICE, "battery staple") == ALICE

    async def test_the_same_wrong_password_again_is_slowed_and_not_counted(self) -> None:
        """A program that was left with an old password must not get its office banned."""
        node = await self.node(Bounds(failures_per_network=3), remembers=True)
        for _ in range(10):
            assert await node.plain(ALICE, "old password") is REFUSED
        assert self.query("SELECT failures FROM mailgate.ban WHERE kind = 'network'") == [(1,)]
        assert node.clock.seconds() == 10
        assert await node.plain(ALICE, "correct horse") == ALICE

    async def test_a_ban_that_somebody_makes_counts_at_once(self) -> None:
        node = await self.node(remembers=True)
        assert await node.plain(ALICE, "correct horse") == ALICE
        generation = node.remembered.generation
        self.query(
            "INSERT INTO mailgate.ban (kind, subject, banned_until, reason)"
            " VALUES ('network', '192.0.2.0/24', 'infinity', 'x')"
        )
        await until(reactor, lambda: node.remembered.generation > generation)
        assert await node.plain(ALICE, "correct horse") is NETWORK_BANNED


class TroubleTests(AccountsTestCase):
    async def test_without_the_database_nobody_is_refused_for_good(self) -> None:
        """RFC 4954 section 6: 454 4.7.0."""
        node = await self.node()
        await node.pool.stop()
        assert await node.plain(ALICE, "correct horse") is UNAVAILABLE
        assert await node.exchange("SCRAM-SHA-256", [b"n,,n=a,r=b"], view()) is UNAVAILABLE

    async def test_a_queue_for_hashing_that_is_too_long_puts_clients_off(self) -> None:
        """454 4.7.0, and no failure is counted; it works again when the queue is shorter."""
        node = await self.node()
        threads = PasswordThreads(reactor, threads=1, waiting=0, hasher=CHEAP)
        self.addCleanup(threads.abandon)
        checker = DatabaseChecker(Credentials(node.execute), threads, CHEAP)
        busy = Node(self.dsn, checker=checker)
        self.addCleanup(lambda: Deferred.fromCoroutine(busy.stop()))
        await busy.start()
        release = Event()
        running = threads.run(lambda: release.wait(20))
        with pytest.raises(Overloaded):
            threads.run(release.wait)
        assert await busy.plain(ALICE, "correct horse") is UNAVAILABLE
        release.set()
        assert await running
        assert await busy.plain(ALICE, "correct horse") == ALICE
        assert self.query("SELECT * FROM mailgate.ban") == []
