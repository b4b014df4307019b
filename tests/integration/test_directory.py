"""The directory on a real database: every rule of `mailgate.resolve`, and that changes take effect at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.envelope import Address, ForwardDestination
from mailgate.smtp.grammar import parse_mailbox
from mailgate.storage.directory import Answer, Directory, Outcome
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.pool import Connection, Pool
from tests.support import postgres
from tests.support.waiting import reactor, until

if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = """
INSERT INTO mailgate.domain (name, catch_all, plus_separator, is_enabled) OVERRIDING SYSTEM VALUE VALUES
    ('example.test', NULL, '+', true),
    ('dash.test', NULL, '-', true),
    ('plain.test', NULL, '', true),
    ('all.test', 'carol@example.test', '+', true),
    ('round.test', 'nobody@round.test', '+', true),
    ('away.test', 'all@elsewhere.example', '+', true),
    ('off.test', NULL, '+', false),
    ('xn--bcher-kva.test', NULL, '+', true),
    ('[192.0.2.25]', NULL, '+', true),
    ('[IPv6:2001:db8::19]', NULL, '+', true);
INSERT INTO mailgate.mailbox (domain_id, local_part, is_enabled, quota_octets)
SELECT d.id, n.local_part, n.is_enabled, n.quota_octets
FROM mailgate.domain d JOIN (VALUES
    ('example.test', 'alice', true, NULL),
    ('example.test', 'bob', true, 1000),
    ('example.test', 'carol', true, NULL),
    ('example.test', 'gone', false, NULL),
    ('example.test', 'full', true, 10),
    ('example.test', '50%off', true, NULL),
    ('example.test', 'exact+one', true, NULL),
    ('example.test', 'grüsse', true, NULL),  -- as local_key folds it
    ('example.test', 'two words', true, NULL),
    ('dash.test', 'dave', true, NULL),
    ('plain.test', 'erin', true, NULL),
    ('xn--bcher-kva.test', 'leser', true, NULL),
    ('off.test', 'frank', true, NULL),
    ('[192.0.2.25]', 'root', true, NULL),
    ('[IPv6:2001:db8::19]', 'root', true, NULL)
) AS n (domain, local_part, is_enabled, quota_octets) ON n.domain = d.name
ORDER BY n.local_part;
UPDATE mailgate.mailbox_usage SET octets = 10
WHERE mailbox_id = (SELECT id FROM mailgate.mailbox WHERE local_part = 'full');
INSERT INTO mailgate.alias (domain_id, local_part, target)
SELECT d.id, n.local_part, n.target
FROM mailgate.domain d JOIN (VALUES
    ('team', 'alice@example.test'),
    ('team', 'Bob@EXAMPLE.test'),
    ('team', 'Carl@elsewhere.example'),
    ('everyone', 'team@example.test'),
    ('everyone', 'alice@example.test'),
    ('everyone', 'carol@example.test'),
    ('news', 'alice+lists@example.test'),
    ('quoted', '"two words"@example.test'),
    ('quoted', '"a\\"b"@elsewhere.example'),
    ('carol', 'carol@example.test'),
    ('carol', 'carol@elsewhere.example'),
    ('loop', 'pool@example.test'),
    ('pool', 'loop@example.test'),
    ('self', 'self@example.test'),
    ('mixed', 'alice@example.test'),
    ('mixed', 'gone@example.test'),
    ('mixed', 'missing@example.test'),
    ('closed', 'gone@example.test'),
    ('stale', 'missing@example.test'),
    ('crowd', 'alice@example.test'),
    ('crowd', 'full@example.test'),
    ('reader', 'leser@xn--bcher-kva.test'),
    ('boss', 'postmaster@example.test'),
    ('held', 'frank@off.test'),
    ('folded', 'Grüße@example.test')
) AS n (local_part, target) ON d.name = 'example.test';
INSERT INTO mailgate.alias (domain_id, local_part, target)
SELECT d.id, 'chain' || n, CASE n WHEN 17 THEN 'alice' ELSE 'chain' || n + 1 END || '@example.test'
FROM mailgate.domain d, generate_series(1, 17) n WHERE d.name = 'example.test';
"""


class DirectoryTestCase(TestCase):
    sql = DIRECTORY

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)
        postgres.query(self.dsn, self.sql)
        self.pool = Pool(reactor, self.dsn, size=1, name="test")
        self.listener = Connection(reactor, self.dsn, name="listener")
        for connection in (self.pool, self.listener):
            self.addCleanup(self.stop, connection)
        self.directory = Directory(reactor, self.pool, self.listener)
        self.pool.start()
        self.listener.start()
        await self.pool.connected(10)
        await self.listener.connected(10)

    def stop(self, connection: Connection | Pool) -> Deferred[None]:
        return Deferred.fromCoroutine(connection.stop())

    async def resolve(self, text: str) -> Answer:
        address = parse_mailbox(text) if "@" in text else Address(text, "")
        found = self.directory.resolve(address)
        return found if isinstance(found, Answer) else await found

    async def outcome(self, text: str) -> Outcome:
        return (await self.resolve(text)).outcome

    async def leads_to(self, text: str) -> list[str]:
        """The addresses that it leads to, elsewhere in angle brackets, details in parentheses."""
        answer = await self.resolve(text)
        assert answer.outcome is Outcome.DELIVERABLE, (text, answer)
        found = []
        for destination in answer.resolution.destinations:
            if isinstance(destination, ForwardDestination):
                found.append(f"<{destination.address}>")
            else:
                found.append(destination.address + (f"({destination.detail})" if destination.detail else ""))
        return found

    async def assert_leads(self, table: Sequence[tuple[str, list[str]]]) -> None:
        for text, expected in table:
            found = await self.leads_to(text)
            assert sorted(found) == sorted(expected), (text, found)


class RuleTests(DirectoryTestCase):
    async def test_a_mailbox_is_found_whatever_its_case(self) -> None:
        """RFC 5321 section 2.4 lets local parts be case-sensitive, and discourages it."""
        await self.assert_leads(
            [
                ("alice@example.test", ["alice@example.test"]),
                ("ALICE@Example.TEST", ["alice@example.test"]),
                ('"alice"@example.test.', ["alice@example.test"]),
                ("GRÜSSE@example.test", ["grüsse@example.test"]),
                ("folded@example.test", ["grüsse@example.test"]),
                ("gru\u0308ße@example.test", ["grüsse@example.test"]),
                ('"two words"@example.test', ['"two words"@example.test']),
            ]
        )

    async def test_domains_are_found_in_a_and_u_form_and_as_literals(self) -> None:
        await self.assert_leads(
            [
                ("leser@xn--bcher-kva.test", ["leser@xn--bcher-kva.test"]),
                ("leser@XN--BCHER-KVA.test", ["leser@xn--bcher-kva.test"]),
                ("leser@BÜCHER.test", ["leser@xn--bcher-kva.test"]),
                ("reader@example.test", ["leser@xn--bcher-kva.test"]),
                ("root@[192.0.2.25]", ["root@[192.0.2.25]"]),
                ("root@[IPv6:::ffff:192.0.2.25]", ["root@[192.0.2.25]"]),
                ("root@[IPv6:2001:DB8:0:0:0:0:0:19]", ["root@[IPv6:2001:db8::19]"]),
            ]
        )

    async def test_what_is_not_ours_is_not_ours(self) -> None:
        for text in (
            "alice@elsewhere.example",
            "alice@sub.example.test",
            "alice@test",
            "alice@elsewhere.example.",
            "root@[192.0.2.26]",
            '"alice@example.test"@elsewhere.example',
        ):
            assert await self.outcome(text) is Outcome.NOT_OURS, text

    async def test_unknown_disabled_full_and_held_recipients_are_told_apart(self) -> None:
        for text, outcome in (
            ("nobody@example.test", Outcome.UNKNOWN),
            ("nobody+alice@example.test", Outcome.UNKNOWN),
            ("+alice@example.test", Outcome.UNKNOWN),
            ("gone@example.test", Outcome.DISABLED),
            ("gone+x@example.test", Outcome.DISABLED),
            ("closed@example.test", Outcome.DISABLED),
            ("full@example.test", Outcome.OVER_QUOTA),
            ("frank@off.test", Outcome.SUSPENDED),
            ("nobody@off.test", Outcome.SUSPENDED),
            ("held@example.test", Outcome.SUSPENDED),
        ):
            assert await self.outcome(text) is outcome, text

    async def test_what_is_left_of_a_quota_is_known(self) -> None:
        assert (await self.resolve("bob@example.test")).quota_free_octets == 1000
        assert (await self.resolve("team@example.test")).quota_free_octets == 1000
        assert (await self.resolve("alice@example.test")).quota_free_octets is None

    async def test_detail_behind_the_separator_is_kept_as_sent(self) -> None:
        """RFC 5233. The separator is the domain's; a mailbox of exactly that name goes first."""
        await self.assert_leads(
            [
                ("alice+Shop@example.test", ["alice@example.test(Shop)"]),
                ("Alice+a+b@example.test", ["alice@example.test(a+b)"]),
                ("alice+@example.test", ["alice@example.test"]),
                ("exact+one@example.test", ["exact+one@example.test"]),
                ("dave-Shop@dash.test", ["dave@dash.test(Shop)"]),
                ("news@example.test", ["alice@example.test(lists)"]),
                ("news+Own@example.test", ["alice@example.test(lists)"]),
                ("mixed+Own@example.test", ["alice@example.test(Own)"]),
            ]
        )
        assert await self.outcome("dave+x@dash.test") is Outcome.UNKNOWN
        assert await self.outcome("erin+x@plain.test") is Outcome.UNKNOWN

    async def test_an_alias_leads_to_all_its_targets_and_to_none_twice(self) -> None:
        team = ["alice@example.test", "bob@example.test", "<Carl@elsewhere.example>"]
        await self.assert_leads(
            [
                ("team@example.test", team),
                ("everyone@example.test", [*team, "carol@example.test", "<carol@elsewhere.example>"]),
                ("quoted@example.test", ['"two words"@example.test', '<"a\\"b"@elsewhere.example>']),
            ]
        )

    async def test_an_alias_that_names_itself_means_the_mailbox_of_that_name(self) -> None:
        await self.assert_leads([("carol@example.test", ["carol@example.test", "<carol@elsewhere.example>"])])

    async def test_of_an_alias_only_those_who_take_mail_get_it(self) -> None:
        await self.assert_leads([("mixed@example.test", ["alice@example.test"])])

    async def test_one_full_mailbox_of_an_alias_asks_the_client_to_wait(self) -> None:
        assert await self.outcome("crowd@example.test") is Outcome.OVER_QUOTA

    async def test_aliases_that_lead_nowhere_are_our_fault(self) -> None:
        """So they are no reason for a 5xx."""
        for text in ("loop@example.test", "pool@example.test", "self@example.test", "stale@example.test"):
            assert await self.outcome(text) is Outcome.MISCONFIGURED, text

    async def test_aliases_of_aliases_have_a_bound(self) -> None:
        await self.assert_leads([("chain2@example.test", ["alice@example.test"])])
        assert await self.outcome("chain1@example.test") is Outcome.MISCONFIGURED

    async def test_a_catch_all_takes_what_nobody_else_does(self) -> None:
        await self.assert_leads(
            [
                ("anything@all.test", ["carol@example.test", "<carol@elsewhere.example>"]),
                ("any+thing@all.test", ["carol@example.test", "<carol@elsewhere.example>"]),
                ("anything@away.test", ["<all@elsewhere.example>"]),
            ]
        )
        assert await self.outcome("anything@round.test") is Outcome.MISCONFIGURED

    async def test_what_asks_for_relaying_is_found_by_its_exact_name_alone(self) -> None:
        """Percent hack, bang path, quoted at-sign: neither detail nor a catch-all makes them ours."""
        await self.assert_leads([("50%off@example.test", ["50%off@example.test"])])
        for text in (
            "x%elsewhere.example@all.test",
            "elsewhere.example!x@all.test",
            '"x@elsewhere.example"@all.test',
            "alice+x%elsewhere.example@example.test",
            "50%off+x@example.test",
        ):
            assert await self.outcome(text) is Outcome.UNKNOWN, text


class PostmasterTests(DirectoryTestCase):
    """postmaster (RFC 5321 section 4.5.1) and abuse (RFC 2142) always lead somewhere."""

    sql = """
    INSERT INTO mailgate.domain (name, catch_all, is_enabled) VALUES
        ('empty.test', NULL, true), ('first.test', NULL, true), ('all.test', 'bob@first.test', true),
        ('named.test', NULL, true), ('[192.0.2.25]', NULL, true),
        ('broken.test', 'nobody@broken.test', true), ('off.test', NULL, false);
    INSERT INTO mailgate.mailbox (domain_id, local_part, is_enabled, quota_octets)
    SELECT d.id, n.local_part, n.is_enabled, n.quota_octets
    FROM mailgate.domain d JOIN (VALUES
        (1, 'first.test', 'zoe', false, NULL), (2, 'first.test', 'bob', true, NULL),
        (3, 'first.test', 'alice', true, NULL), (4, 'named.test', 'postmaster', true, 0),
        (5, 'named.test', 'abuse', false, NULL), (6, 'broken.test', 'carol', true, NULL),
        (7, 'off.test', 'dave', true, NULL)
    ) AS n (place, domain, local_part, is_enabled, quota_octets) ON n.domain = d.name ORDER BY n.place;
    """

    async def test_they_lead_to_who_is_named_so_else_along_the_fallbacks(self) -> None:
        await self.assert_leads(
            [
                ("postmaster@named.test", ["postmaster@named.test"]),  # full, and still
                ("POSTMASTER@named.test", ["postmaster@named.test"]),
                ("abuse@named.test", ["postmaster@named.test"]),  # its own mailbox is switched off
                ("postmaster@all.test", ["bob@first.test"]),  # the catch-all
                ("postmaster@first.test", ["bob@first.test"]),  # the first that takes mail
                ("abuse@broken.test", ["carol@broken.test"]),  # a catch-all that leads nowhere
                ("postmaster@empty.test", ["bob@first.test"]),  # the first of all
                ("postmaster@[192.0.2.25]", ["bob@first.test"]),  # a literal of ours
                ("postmaster@off.test", ["dave@off.test"]),  # a domain that is not enabled
            ]
        )

    async def test_the_bare_postmaster_is_that_of_the_first_domain_that_has_one(self) -> None:
        await self.assert_leads([("Postmaster", ["postmaster@named.test"]), ("postmaster", ["postmaster@named.test"])])
        postgres.query(self.dsn, "DELETE FROM mailgate.mailbox WHERE local_part = 'postmaster'")
        await until(reactor, lambda: not self.directory._entries)
        await self.assert_leads([("Postmaster", ["bob@first.test"])])

    async def test_the_configured_postmaster_goes_before_a_mailbox_of_anybody(self) -> None:
        self.directory = Directory(reactor, self.pool, self.listener, postmaster="alice@first.test")
        await self.assert_leads(
            [
                ("postmaster@empty.test", ["alice@first.test"]),
                ("postmaster@all.test", ["bob@first.test"]),
                ("postmaster@named.test", ["postmaster@named.test"]),
            ]
        )
        self.directory = Directory(reactor, self.pool, self.listener, postmaster="root@elsewhere.example")
        await self.assert_leads([("abuse@empty.test", ["<root@elsewhere.example>"])])

    async def test_an_alias_of_that_name_is_followed(self) -> None:
        postgres.query(
            self.dsn,
            "INSERT INTO mailgate.alias SELECT id, 'abuse', 'alice@first.test' FROM mailgate.domain"
            " WHERE name = 'empty.test'",
        )
        await self.assert_leads([("abuse@empty.test", ["alice@first.test"])])

    async def test_where_every_mailbox_is_disabled_the_first_one_gets_it(self) -> None:
        postgres.query(self.dsn, "UPDATE mailgate.mailbox SET is_enabled = false")
        await self.assert_leads([("postmaster@empty.test", ["zoe@first.test"])])

    async def test_without_any_mailbox_it_is_no_reason_for_a_5xx(self) -> None:
        postgres.query(self.dsn, "DELETE FROM mailgate.mailbox")
        assert await self.outcome("Postmaster") is Outcome.MISCONFIGURED
        assert await self.outcome("postmaster@empty.test") is Outcome.MISCONFIGURED
        assert await self.outcome("postmaster@elsewhere.example") is Outcome.NOT_OURS


class ChangeTests(DirectoryTestCase):
    async def test_every_kind_of_change_takes_effect_at_once(self) -> None:
        """Well before the 60 seconds, and made on another connection, as the command line does."""
        for text, sql, outcome in (
            ("alice@example.test", "UPDATE mailgate.mailbox SET is_enabled = false", Outcome.DISABLED),
            ("new@example.test", "INSERT INTO mailgate.mailbox (domain_id, local_part) VALUES (1, 'new')", None),
            ("new@example.test", "DELETE FROM mailgate.mailbox WHERE local_part = 'new'", Outcome.UNKNOWN),
            ("new@new.test", "INSERT INTO mailgate.domain (name) VALUES ('new.test')", Outcome.UNKNOWN),
            ("new@new.test", "UPDATE mailgate.domain SET catch_all = 'x@y.example'", Outcome.DELIVERABLE),
            ("new@new.test", "DELETE FROM mailgate.domain WHERE name = 'new.test'", Outcome.NOT_OURS),
            ("who@example.test", "INSERT INTO mailgate.alias VALUES (1, 'who', 'x@y.example')", Outcome.DELIVERABLE),
        ):
            before = await self.outcome(text)
            postgres.query(self.dsn, sql)
            await until(reactor, lambda: not self.directory._entries, what=sql)
            after = await self.outcome(text)
            assert after is outcome if outcome else after is not before, sql

    async def test_without_a_database_nobody_is_unknown(self) -> None:
        await self.pool.stop()
        try:
            await self.resolve("nobody@example.test")
        except StorageUnavailable:
            return
        raise AssertionError("StorageUnavailable was not raised")

    async def test_a_change_during_an_outage_of_the_listener_is_not_missed(self) -> None:
        assert await self.outcome("alice@example.test") is Outcome.DELIVERABLE
        lost: list[None] = []
        self.listener.on_lost(lambda: lost.append(None))
        postgres.query(
            self.dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'listener'",
        )
        postgres.query(self.dsn, "UPDATE mailgate.mailbox SET is_enabled = false")
        await until(reactor, lambda: lost and self.listener.is_connected)
        assert await self.outcome("alice@example.test") is Outcome.DISABLED
