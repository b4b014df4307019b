"""`mailgate queue` on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from mailgate.ids import encode_id
from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query

ROWS = """
WITH given (n, recipient, domain, sender) AS (VALUES
    (1, 'dora@elsewhere.test', 'elsewhere.test', 'alice@example.test'),
    (1, 'emil@elsewhere.test', 'elsewhere.test', 'alice@example.test'),
    (2, 'fritz@other.test', 'other.test', 'alias:lists@example.test')
), stored AS (
    INSERT INTO mailgate.message (id, received_at, reverse_path, trace, content, size_octets, sha256)
    SELECT DISTINCT mailgate.id_at('2026-11-23') + n, now(), 'carol@example.org', ''::bytea, 'x'::bytea, 1, sha256('x')
    FROM given RETURNING id
)
INSERT INTO mailgate.queue (message_id, recipient, domain, reverse_path, sender, size_octets, created_at, starts_at,
                            due_at, is_ready, attempts, last_status, last_reply)
SELECT mailgate.id_at('2026-11-23') + n, recipient, domain, 'carol@example.org', sender, 1, now(),
       now() - interval '1 hour', now() + interval '1 hour', false, 2, '4.2.2', '452 4.2.2 Full'
FROM given WHERE (SELECT count(*) FROM stored) > 0
ORDER BY recipient
"""


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    query(dsn, ROWS)
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


def ids(mailgate: Command) -> list[str]:
    rows = query(mailgate.dsn, "SELECT DISTINCT message_id FROM mailgate.queue ORDER BY 1")
    return [encode_id(int(str(row[0]))) for row in rows]


def recipients(mailgate: Command, where: str) -> list[str]:
    return [
        str(row[0]) for row in query(mailgate.dsn, f"SELECT recipient FROM mailgate.queue WHERE {where} ORDER BY 1")
    ]


def test_what_waits_is_listed_with_counts_next_attempt_and_last_reply(mailgate: Command) -> None:
    listed = mailgate.run("queue", "list")
    assert "452 4.2.2 Full" in listed.stdout
    assert listed.stderr == "3 recipients of 2 messages\n"
    records = mailgate.json("queue", "list")
    assert [record["recipient"] for record in records] == [
        *("dora@elsewhere.test", "emil@elsewhere.test", "fritz@other.test"),
    ]
    assert {record["state"] for record in records} == {"waiting"}
    assert records[0]["attempts"] == 2
    assert records[0]["last_reply"] == "452 4.2.2 Full"
    ((due_at,),) = query(mailgate.dsn, "SELECT DISTINCT due_at FROM mailgate.queue")
    assert {datetime.fromisoformat(record["next_attempt_at"]) for record in records} == {due_at}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--recipient", "Dora@elsewhere.test"), 1),
        (("--domain", "ELSEWHERE.test"), 2),
        (("--sender", "alice@example.test"), 2),
        (("--sender", "carol@example.org"), 3),
        (("--domain", "elsewhere.test", "--recipient", "emil@elsewhere.test"), 1),
    ],
)
def test_a_selection_is_what_meets_all_that_is_given(
    mailgate: Command, options: tuple[str, ...], expected: int
) -> None:
    assert len(mailgate.json("queue", "list", *options)) == expected
    # What changes something takes the same.
    plural = "recipient" if expected == 1 else "recipients"
    for command, said in (("hold", "held"), ("release", "released"), ("retry", "to be tried now")):
        assert mailgate.ok("queue", command, *options) == f"{said}: {expected} {plural}\n"
    assert mailgate.ok("queue", "remove", *options) == f"removed: {expected} {plural}\n"
    assert mailgate.json("queue", "list", *options) == []


def test_one_message_is_found_by_its_id(mailgate: Command) -> None:
    first, second = ids(mailgate)
    assert len(mailgate.json("queue", "list", first)) == 2
    assert "fritz@other.test" in mailgate.ok("queue", "show", second)
    assert "does not wait" in mailgate.fails("queue", "show", "0000000000000")


def test_a_retry_makes_it_due_and_ends_the_back_off(mailgate: Command) -> None:
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.destination (name, backed_off_until, failures)"
        " VALUES ('elsewhere.test', now() + interval '1 hour', 3)",
    )
    assert {record["state"] for record in mailgate.json("queue", "list", "--domain", "elsewhere.test")} == {
        "backed off"
    }
    assert mailgate.ok("queue", "retry", "--domain", "elsewhere.test") == "to be tried now: 2 recipients\n"
    assert recipients(mailgate, "is_ready AND due_at <= now()") == ["dora@elsewhere.test", "emil@elsewhere.test"]
    assert query(mailgate.dsn, "SELECT backed_off_until <= now() FROM mailgate.destination") == [(True,)]


def test_a_retry_of_all_ends_the_back_off_of_smarthosts_too(mailgate: Command) -> None:
    """No row names the smarthost that it goes to."""
    query(
        mailgate.dsn,
        "INSERT INTO mailgate.destination (name, backed_off_until, failures)"
        " VALUES ('relay.example.net:587', now() + interval '1 hour', 3)",
    )
    mailgate.ok("queue", "retry", "--domain", "elsewhere.test")
    assert query(mailgate.dsn, "SELECT backed_off_until <= now() FROM mailgate.destination") == [(False,)]
    mailgate.ok("queue", "retry", "--all")
    assert query(mailgate.dsn, "SELECT backed_off_until <= now() FROM mailgate.destination") == [(True,)]


def test_what_is_held_stays_until_it_is_released(mailgate: Command) -> None:
    mailgate.ok("queue", "hold", "--recipient", "dora@elsewhere.test")
    (record,) = mailgate.json("queue", "list", "--recipient", "dora@elsewhere.test")
    assert (record["state"], record["next_attempt_at"]) == ("held", None)
    assert "nothing in the queue" in mailgate.fails("queue", "hold", "--recipient", "dora@elsewhere.test")
    mailgate.ok("queue", "release", "--all")
    assert recipients(mailgate, "is_ready AND NOT is_held") == ["dora@elsewhere.test"]


def test_a_bounce_is_left_to_a_runner_whatever_the_destination(mailgate: Command) -> None:
    mailgate.ok("queue", "bounce", "--domain", "other.test", "--reason", "No more of that")
    rows = query(mailgate.dsn, "SELECT domain, done, is_ready, last_reply FROM mailgate.queue WHERE done IS NOT NULL")
    assert rows == [("-", "returned", True, "No more of that")]


def test_what_is_removed_is_gone_with_its_message(mailgate: Command) -> None:
    first, second = ids(mailgate)
    mailgate.ok("queue", "remove", second)
    mailgate.ok("queue", "remove", "--recipient", "dora@elsewhere.test")
    assert ids(mailgate) == [first]
    assert query(mailgate.dsn, "SELECT count(*) FROM mailgate.message") == [(1,)]


def test_what_is_under_way_is_not_removed(mailgate: Command) -> None:
    query(
        mailgate.dsn, "UPDATE mailgate.queue SET leased_by = 1, claim = 1, leased_until = now() + interval '1 minute'"
    )
    assert "nothing in the queue" in mailgate.fails("queue", "remove", "--all")
    assert {record["state"] for record in mailgate.json("queue", "list")} == {"sending"}


def test_the_whole_queue_is_only_meant_where_it_is_said(mailgate: Command) -> None:
    result = mailgate.run("queue", "remove")
    assert result.exit_code == 2
    assert "--all" in result.stderr
    assert mailgate.run("queue", "remove", "--all", "--domain", "other.test").exit_code == 2


def test_a_destination_is_paused_and_resumed(mailgate: Command) -> None:
    mailgate.ok("queue", "pause", "Elsewhere.test", "--reason", "They move")
    records = {record["name"]: record for record in mailgate.json("queue", "destinations")}
    assert (records["elsewhere.test"]["is_paused"], records["elsewhere.test"]["reason"]) == (True, "They move")
    assert (records["elsewhere.test"]["recipients"], records["elsewhere.test"]["messages"]) == (2, 1)
    assert "They move" in mailgate.ok("queue", "destinations")
    assert {record["state"] for record in mailgate.json("queue", "list", "--domain", "elsewhere.test")} == {"paused"}
    mailgate.ok("queue", "resume", "elsewhere.test")
    assert "neither paused" in mailgate.fails("queue", "resume", "elsewhere.test")
