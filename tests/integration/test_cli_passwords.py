"""`mailgate mailbox set --password`, `app-password` and `mailgate ban` on a real database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mailgate.accounts.passwords import verify
from mailgate.cli.main import main
from mailgate.sasl.scram import ITERATIONS, make_verifier, parse_verifier
from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query

ALICE = "alice@example.test"


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    command = command_for(dsn, tmp_path)
    command.ok("domain", "add", "example.test")
    command.ok("mailbox", "add", ALICE)
    yield command
    drop_database(dsn)


def set_password(mailgate: Command, text: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        main, ["--config", str(mailgate.config_path), "mailbox", "set", ALICE, "--password"], input=text
    )
    return result.exit_code, result.output


def credentials(mailgate: Command) -> list[tuple[object, ...]]:
    return query(mailgate.dsn, "SELECT name, argon2, scram_sha256, selector FROM mailgate.credential ORDER BY name")


def test_a_password_is_read_from_standard_input_and_kept_as_what_checks_it(mailgate: Command) -> None:
    """It stands nowhere: neither in arguments nor in the database."""
    assert set_password(mailgate, "correct horse\nanother line\n") == (0, f"changed {ALICE}\n")
    ((name, argon2, scram, selector),) = credentials(mailgate)
    assert (name, selector) == ("", None)
    assert isinstance(argon2, str)
    assert argon2.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert verify(argon2, b"correct horse")
    assert isinstance(scram, str)
    verifier = parse_verifier(scram)
    assert verifier == make_verifier(b"correct horse", verifier.salt, ITERATIONS)


def test_a_new_password_replaces_the_old_one_with_the_same_salt(mailgate: Command) -> None:
    """The salt belongs to the account: all its passwords have to have the one that a client is told."""
    set_password(mailgate, "correct horse\n")
    ((_, _, before, _),) = credentials(mailgate)
    set_password(mailgate, "battery staple\n")
    mailgate.ok("mailbox", "app-password", "add", ALICE, "phone")
    after = [parse_verifier(str(scram)) for _, _, scram, _ in credentials(mailgate)]
    assert {verifier.salt for verifier in after} == {parse_verifier(str(before)).salt}
    assert len({verifier.stored_key for verifier in after}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "a password can't be empty"),
        ("short\n", "a password has 8 characters at least"),
        ("with a \x07 bell\n", "a control character"),
    ],
)
def test_what_can_be_no_password_is_refused(mailgate: Command, text: str, message: str) -> None:
    """RFC 4013 section 2.3: what mail programs would not agree on is not taken."""
    status, output = set_password(mailgate, text)
    assert status == 1
    assert message in output
    assert credentials(mailgate) == []


def test_a_password_is_no_argument(mailgate: Command) -> None:
    """It would stand in the shell's history and in the list of processes."""
    assert mailgate.run("mailbox", "set", ALICE, "--password", "correct horse").exit_code == 2


def test_a_password_can_be_taken_away(mailgate: Command) -> None:
    set_password(mailgate, "correct horse\n")
    mailgate.ok("mailbox", "set", ALICE, "--no-password")
    assert credentials(mailgate) == []
    assert "has no password of its own" in mailgate.fails("mailbox", "set", ALICE, "--no-password")


def test_an_app_password_is_shown_once_and_can_be_checked(mailgate: Command) -> None:
    shown = mailgate.ok("mailbox", "app-password", "add", ALICE, "phone").strip()
    assert re.fullmatch(r"(?:[2-9a-z]{4}-){5}[2-9a-z]{4}", shown)
    ((name, argon2, _, selector),) = credentials(mailgate)
    assert (name, selector is None) == ("phone", False)
    assert verify(str(argon2), shown.encode())
    (record,) = mailgate.json("mailbox", "app-password", "list", ALICE)
    assert (record["name"], record["last_used_at"], record["last_used_from"]) == ("phone", None, None)
    assert shown not in mailgate.ok("mailbox", "app-password", "list", ALICE)
    made = json.loads(mailgate.ok("mailbox", "app-password", "add", ALICE, "laptop", "--json"))
    assert (made["address"], made["name"], len(made["password"])) == (ALICE, "laptop", 29)


def test_an_app_password_is_named_and_removed_by_its_name(mailgate: Command) -> None:
    mailgate.ok("mailbox", "app-password", "add", ALICE, "phone")
    assert "already" in mailgate.fails("mailbox", "app-password", "add", ALICE, "phone")
    assert mailgate.ok("mailbox", "app-password", "remove", ALICE, "phone") == f"removed phone of {ALICE}\n"
    assert "no app password" in mailgate.fails("mailbox", "app-password", "remove", ALICE, "phone")
    assert "no app password" in mailgate.fails("mailbox", "app-password", "remove", ALICE, "")
    assert mailgate.run("mailbox", "app-password", "add", ALICE, "\x1b[31m").exit_code == 2


def test_bans_are_listed_added_and_lifted(mailgate: Command) -> None:
    """A ban of a network is found by any address in it."""
    assert mailgate.json("ban", "list") == []
    mailgate.ok("ban", "add", "192.0.2.0/24", "--for", "2h", "--reason", "guesses")
    mailgate.ok("ban", "add", "Alice@EXAMPLE.test")
    bans = mailgate.json("ban", "list")
    assert [(ban["kind"], ban["subject"], ban["banned"], ban["reason"]) for ban in bans] == [
        ("network", "192.0.2.0/24", True, "guesses"),
        ("account", ALICE, True, "by the operator"),
    ]
    assert bans[0]["banned_until"] is not None
    assert bans[1]["banned_until"] is None
    assert "192.0.2.0/24" in mailgate.ok("ban", "list")
    mailgate.ok("ban", "lift", "192.0.2.7")
    mailgate.ok("ban", "lift", ALICE)
    assert mailgate.json("ban", "list") == []
    assert "nothing counts against 192.0.2.7" in mailgate.fails("ban", "lift", "192.0.2.7")


def test_failures_without_a_ban_are_listed_where_they_are_asked_for(mailgate: Command) -> None:
    query(mailgate.dsn, "INSERT INTO mailgate.ban (kind, subject, failures) VALUES ('network', '2001:db8::/64', 3)")
    assert mailgate.json("ban", "list") == []
    (record,) = mailgate.json("ban", "list", "--all")
    assert (record["subject"], record["failures"], record["banned"]) == ("2001:db8::/64", 3, False)
    mailgate.ok("ban", "lift", "2001:db8::1")
    assert mailgate.json("ban", "list", "--all") == []


@pytest.mark.parametrize("arguments", [("add", "nobody"), ("lift", "192.0.2.300"), ("add", "192.0.2.1", "--for", "0h")])
def test_a_ban_of_nobody_is_a_wrong_call(mailgate: Command, arguments: tuple[str, ...]) -> None:
    assert mailgate.run("ban", *arguments).exit_code == 2
