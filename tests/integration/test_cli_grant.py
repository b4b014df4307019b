"""`mailgate grant` and `mailgate mailbox set --sending-limit` on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    command = command_for(dsn, tmp_path)
    command.ok("domain", "add", "example.test")
    command.ok("mailbox", "add", "alice@example.test")
    yield command
    drop_database(dsn)


def test_a_grant_is_added_listed_and_removed(mailgate: Command) -> None:
    """An address, or all of a domain; folded as addresses are compared."""
    assert (
        mailgate.ok("grant", "add", "Alice@example.test", "CEO@Example.test")
        == "alice@example.test may send as ceo@example.test\n"
    )
    mailgate.ok("grant", "add", "alice@example.test", "@Bücher.example")
    assert query(mailgate.dsn, "SELECT address FROM mailgate.send_grant ORDER BY address") == [
        ("@xn--bcher-kva.example",),
        ("ceo@example.test",),
    ]
    found = [(record["mailbox"], record["address"]) for record in mailgate.json("grant", "list")]
    assert found == [("alice@example.test", "@bücher.example"), ("alice@example.test", "ceo@example.test")]
    assert "ceo@example.test" in mailgate.ok("grant", "list", "alice@example.test")
    mailgate.ok("grant", "remove", "alice@example.test", "ceo@example.test")
    assert len(mailgate.json("grant", "list")) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "bob@example.test", "x@example.test"), "there is no mailbox bob@example.test"),
        (("add", "alice@example.test", "here@example.test"), "may send as here@example.test already"),
        (("remove", "alice@example.test", "x@example.test"), "was not granted x@example.test"),
        (("list", "bob@example.test"), "there is no mailbox bob@example.test"),
    ],
)
def test_what_can_not_be_is_told(mailgate: Command, arguments: tuple[str, ...], said: str) -> None:
    """With what would be right."""
    mailgate.ok("grant", "add", "alice@example.test", "here@example.test")
    assert said in mailgate.fails("grant", *arguments)


@pytest.mark.parametrize("address", ["", "@", "x", "a@b@c", "@x y"])
def test_what_is_no_address_is_refused(mailgate: Command, address: str) -> None:
    """Exit status 2: it was called wrongly."""
    assert mailgate.run("grant", "add", "alice@example.test", address).exit_code == 2


def test_a_mailbox_has_a_sending_limit_of_its_own(mailgate: Command) -> None:
    """Until it is taken back; what is not named stays."""
    mailgate.ok("mailbox", "set", "alice@example.test", "--quota", "1MiB", "--sending-limit", "5")
    mailgate.ok("mailbox", "set", "alice@example.test", "--disable")
    (record,) = mailgate.json("mailbox", "list")
    assert (record["sending_limit"], record["quota_octets"], record["enabled"]) == (5, 1_048_576, False)
    mailgate.ok("mailbox", "set", "alice@example.test", "--no-sending-limit")
    (record,) = mailgate.json("mailbox", "list")
    assert record["sending_limit"] is None
    assert mailgate.run("mailbox", "set", "alice@example.test", "--sending-limit", "-1").exit_code == 2
    both = ("--sending-limit", "1", "--no-sending-limit")
    assert mailgate.run("mailbox", "set", "alice@example.test", *both).exit_code == 2
