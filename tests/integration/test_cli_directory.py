"""`mailgate domain`, `mailbox` and `alias` on a real database."""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query
from tests.support.stored_mail import deliver


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


def test_a_domain_is_kept_in_a_form_and_shown_in_u_form(mailgate: Command) -> None:
    """RFC 5890; both forms name the same domain."""
    assert mailgate.ok("domain", "add", "Bücher.example") == "added bücher.example\n"
    assert query(mailgate.dsn, "SELECT name FROM mailgate.domain") == [("xn--bcher-kva.example",)]
    assert "is there already" in mailgate.fails("domain", "add", "xn--bcher-kva.example")
    (record,) = mailgate.json("domain", "list")
    assert (record["domain"], record["a_form"]) == ("bücher.example", "xn--bcher-kva.example")


def test_an_address_literal_can_be_ours(mailgate: Command) -> None:
    """RFC 5321 section 4.1.3."""
    mailgate.ok("domain", "add", "[ipv6:2001:DB8::0001]")
    assert [record["domain"] for record in mailgate.json("domain", "list")] == ["[IPv6:2001:db8::1]"]


def test_setting_a_domain_changes_what_is_named_and_nothing_else(mailgate: Command) -> None:
    """Each option on its own."""
    mailgate.ok("domain", "add", "example.test", "--catch-all", "Rest@Example.test", "--plus-separator", "-")
    mailgate.ok("domain", "set", "example.test", "--disable")
    (record,) = mailgate.json("domain", "list")
    assert (record["enabled"], record["catch_all"], record["plus_separator"]) == (False, "rest@example.test", "-")
    mailgate.ok("domain", "set", "example.test", "--enable", "--no-catch-all", "--plus-separator", "")
    (record,) = mailgate.json("domain", "list")
    assert (record["enabled"], record["catch_all"], record["plus_separator"]) == (True, None, "")


def test_a_domain_with_mailboxes_stays(mailgate: Command) -> None:
    """What to do about it is said."""
    mailgate.ok("domain", "add", "example.test")
    mailgate.ok("mailbox", "add", "alice@example.test")
    assert "mailgate mailbox remove" in mailgate.fails("domain", "remove", "example.test")
    mailgate.ok("mailbox", "remove", "alice@example.test")
    mailgate.ok("alias", "add", "team@example.test", "bob@example.org")
    assert mailgate.ok("domain", "remove", "example.test") == "removed example.test\n"
    assert mailgate.json("alias", "list") == []


def test_a_mailbox_is_known_by_its_folded_address(mailgate: Command) -> None:
    """RFC 5321 section 2.4: nobody means two people by a local part's case."""
    mailgate.ok("domain", "add", "example.test")
    mailgate.ok("mailbox", "add", "Alice@EXAMPLE.test", "--quota", "2GiB")
    assert "is there already" in mailgate.fails("mailbox", "add", "aLICE@example.test")
    (record,) = mailgate.json("mailbox", "list", "example.test")
    assert (record["address"], record["quota_octets"], record["messages"]) == ("alice@example.test", 2 * 1024**3, 0)


def test_a_quota_can_be_changed_and_lifted(mailgate: Command) -> None:
    """What is not named stays."""
    mailgate.ok("domain", "add", "example.test")
    mailgate.ok("mailbox", "add", "alice@example.test", "--quota", "1MB")
    mailgate.ok("mailbox", "set", "alice@example.test", "--disable")
    mailgate.ok("mailbox", "set", "alice@example.test", "--quota", "2MB")
    (record,) = mailgate.json("mailbox", "list")
    assert (record["quota_octets"], record["enabled"]) == (2_000_000, False)
    mailgate.ok("mailbox", "set", "alice@example.test", "--no-quota", "--enable")
    (record,) = mailgate.json("mailbox", "list")
    assert (record["quota_octets"], record["enabled"]) == (None, True)


def test_a_mailbox_needs_its_domain(mailgate: Command) -> None:
    """The remedy is in the message."""
    assert "mailgate domain add example.test" in mailgate.fails("mailbox", "add", "alice@example.test")


def test_a_mailbox_with_mail_is_removed_only_on_demand(mailgate: Command) -> None:
    """And then the messages that nobody else has go with it; others stay."""
    mailgate.ok("domain", "add", "example.test")
    for name in ("alice", "bob"):
        mailgate.ok("mailbox", "add", f"{name}@example.test")
    alice, bob = (row[0] for row in query(mailgate.dsn, "SELECT id FROM mailgate.mailbox ORDER BY local_part"))
    assert isinstance(alice, int)
    mine = deliver(mailgate.dsn, alice, b"Subject: mine\r\n\r\n", piece_octets=5)
    shared = deliver(mailgate.dsn, alice, b"Subject: shared\r\n\r\n")
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.delivery (mailbox_id, uid, message_id, delivered_at) VALUES (%s, 1, %s, now())",
        (bob, shared),
    )
    assert "2 messages" in mailgate.fails("mailbox", "remove", "alice@example.test")
    assert mailgate.ok("mailbox", "remove", "alice@example.test", "--with-mail") == (
        "removed alice@example.test and 2 messages\n"
    )
    assert query(mailgate.dsn, "SELECT id FROM mailgate.message") == [(shared,)]
    assert query(mailgate.dsn, "SELECT 1 FROM mailgate.message_piece WHERE message_id = %s", (mine,)) == []


def test_an_alias_leads_to_several_here_and_elsewhere(mailgate: Command) -> None:
    """One to many; targets elsewhere keep their case."""
    mailgate.ok("domain", "add", "bücher.example")
    mailgate.ok("alias", "add", "Team@bücher.example", "alice@bücher.example", "Bob@Example.ORG")
    (record,) = mailgate.json("alias", "list")
    assert record["address"] == "team@bücher.example"
    assert sorted(record["targets"]) == ["Bob@example.org", "alice@bücher.example"]
    assert query(mailgate.dsn, 'SELECT target FROM mailgate.alias ORDER BY target COLLATE "C"') == [
        ("Bob@example.org",),
        ("alice@xn--bcher-kva.example",),
    ]


def test_targets_of_an_alias_come_and_go(mailgate: Command) -> None:
    """Added, replaced, removed one by one or all."""
    mailgate.ok("domain", "add", "example.test")
    mailgate.ok("alias", "add", "team@example.test", "a@example.org")
    mailgate.ok("alias", "add", "team@example.test", "a@example.org", "b@example.org")
    assert mailgate.json("alias", "list")[0]["targets"] == ["a@example.org", "b@example.org"]
    assert "leads there already" in mailgate.fails("alias", "add", "team@example.test", "b@example.org")
    mailgate.ok("alias", "remove", "team@example.test", "a@example.org")
    assert mailgate.json("alias", "list")[0]["targets"] == ["b@example.org"]
    mailgate.ok("alias", "set", "team@example.test", "c@example.org")
    assert mailgate.json("alias", "list")[0]["targets"] == ["c@example.org"]
    mailgate.ok("alias", "remove", "team@example.test")
    assert "no alias" in mailgate.fails("alias", "remove", "team@example.test")


def test_a_failed_command_has_changed_nothing(mailgate: Command) -> None:
    """Removing two targets of which one is not there removes none."""
    mailgate.ok("domain", "add", "example.test")
    mailgate.ok("alias", "add", "team@example.test", "a@example.org")
    mailgate.fails("alias", "remove", "team@example.test", "a@example.org", "b@example.org")
    assert mailgate.json("alias", "list")[0]["targets"] == ["a@example.org"]


def test_an_alias_over_a_mailbox_is_told_of(mailgate: Command) -> None:
    """An alias goes before a mailbox of the same name, unless it names it as a target."""
    mailgate.ok("domain", "add", "example.test")
    mailgate.ok("mailbox", "add", "alice@example.test")
    added = mailgate.run("alias", "add", "alice@example.test", "a@example.org")
    assert "gets no mail any more" in added.stderr
    added = mailgate.run("alias", "add", "alice@example.test", "Alice@example.test")
    assert (added.exit_code, added.stderr) == (0, "")
    assert "still leading there: alice@example.test" in mailgate.run("mailbox", "remove", "alice@example.test").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("domain", "add", "example.org"),
        ("domain", "set", "example.test", "--disable"),
        ("domain", "remove", "example.test"),
        ("mailbox", "add", "bob@example.test"),
        ("alias", "add", "team@example.test", "a@example.org"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_running_nodes_hear_of_a_change(mailgate: Command, arguments: tuple[str, ...]) -> None:
    """Effective at once: a notification on `directory`."""
    mailgate.ok("domain", "add", "example.test")
    with closing(psycopg2.connect(mailgate.dsn)) as node:
        node.autocommit = True
        node.cursor().execute("LISTEN directory")
        mailgate.ok(*arguments)
        if not node.notifies:
            assert select.select([node], [], [], 10)[0]
            node.poll()
        assert node.notifies


@pytest.mark.parametrize(
    "arguments",
    [
        ("domain", "set", "example.test"),
        ("domain", "set", "example.test", "--catch-all", "a@b.example", "--no-catch-all"),
        ("domain", "add", "exa_mple.test"),
        ("domain", "set", "example.test", "--plus-separator", "ab"),
        ("mailbox", "set", "alice@example.test"),
        ("mailbox", "set", "alice@example.test", "--quota", "1MB", "--no-quota"),
        ("mailbox", "add", "alice@example.test", "--quota", "much"),
        ("mailbox", "add", "alice"),
        ("alias", "add", "team@example.test"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_exit_status_2(mailgate: Command, arguments: tuple[str, ...]) -> None:
    """Told apart from failures, which are 1."""
    result = mailgate.run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_lists_of_nothing_are_an_empty_array(mailgate: Command) -> None:
    """For scripts; people get a hint."""
    for topic in ("domain", "mailbox", "alias"):
        assert json.loads(mailgate.ok(topic, "list", "--json")) == []
        assert f"mailgate {topic} add" in mailgate.run(topic, "list").stderr
