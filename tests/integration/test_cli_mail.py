"""`mailgate inbox`, `show`, `sessions` and `refusals` on a real database."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailgate.ids import encode_id
from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query
from tests.support.stored_mail import TRACE, add_mailbox, deliver, record_session, record_transaction

CONTENT = b"From: Carol <carol@example.org>\r\nTo: alice@example.test\r\nSubject: Hello\r\n\r\nGood \x1b[31mday\r\n"


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


@pytest.fixture
def alice(mailgate: Command) -> int:
    return add_mailbox(mailgate.dsn, "alice")


def test_the_inbox_lists_the_newest_last(mailgate: Command, alice: int) -> None:
    """As a terminal is read."""
    ids = [encode_id(deliver(mailgate.dsn, alice, CONTENT, subject=f"number {number}")) for number in range(3)]
    assert [record["id"] for record in mailgate.json("inbox", "alice@example.test")] == ids
    assert [record["id"] for record in mailgate.json("inbox", "alice@example.test", "--limit", "2")] == ids[1:]
    title, *rows = mailgate.ok("inbox", "Alice@example.test").splitlines()
    assert title.split() == ["ID", "WHEN", "FROM", "SUBJECT", "SIZE", "FLAGS", "FOLDER"]
    assert [row.split()[0] for row in rows] == ids


def test_a_folder_can_be_chosen(mailgate: Command, alice: int) -> None:
    """Quarantined mail is in Junk."""
    deliver(mailgate.dsn, alice, CONTENT)
    junk = deliver(mailgate.dsn, alice, CONTENT, folder="Junk", flags=["\\Seen", "\\Flagged"])
    (record,) = mailgate.json("inbox", "alice@example.test", "--folder", "Junk")
    assert (record["id"], record["flags"], record["folder"]) == (encode_id(junk), ["\\Seen", "\\Flagged"], "Junk")


def test_a_hostile_subject_does_not_reach_the_terminal(mailgate: Command, alice: int) -> None:
    """Escape sequences and rich's markup are text, and a line break makes no row."""
    deliver(mailgate.dsn, alice, CONTENT, subject="a\x1b]0;x\x07[red]b[/red]\n\u202ec", header_from="\x9b31m\x7f")
    output = mailgate.ok("inbox", "alice@example.test")
    assert "a]0;x[red]b[/red] c" in output
    assert len(output.splitlines()) == 2
    for character in "\x1b\x07\x9b\x7f\u202e":
        assert character not in output
        assert character not in mailgate.ok("inbox", "alice@example.test", "--json")


def test_a_hostile_header_is_shown_without_its_controls(mailgate: Command, alice: int) -> None:
    """All that can be read of it is there, as in the inbox."""
    header = b"From: Eve \x1b[31m<eve@example.org>\r\nSubject: a\x07b\r\nMessage-ID: <\x1b[31mx@example.org>\r\n"
    id_ = encode_id(deliver(mailgate.dsn, alice, header + b"\r\nGood day\r\n"))
    lines = [line.split(maxsplit=1) for line in mailgate.ok("show", id_).splitlines()]
    assert ["From", "Eve [31m<eve@example.org>"] in lines
    assert ["Subject", "ab"] in lines
    assert ["Message-ID", "<[31mx@example.org>"] in lines


def test_an_address_that_is_no_mailbox_says_what_it_is(mailgate: Command, alice: int) -> None:
    """An alias, an unknown one, or not ours."""
    mailgate.ok("alias", "add", "team@example.test", "alice@example.test")
    assert "an alias of alice@example.test" in mailgate.fails("inbox", "team@example.test")
    assert "no mailbox nobody@example.test" in mailgate.fails("inbox", "nobody@example.test")
    assert "not one of our domains" in mailgate.fails("inbox", "alice@example.org")


class _Following:
    """`mailgate inbox --follow` in a process of its own."""

    def __init__(self, mailgate: Command, *arguments: str) -> None:
        command, environment = mailgate.in_process("inbox", "alice@example.test", "--follow", *arguments)
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def line(self) -> str:
        """The next line; fails where none comes in time."""
        return self._lines.get(timeout=20)

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C: the exit status, and what was said on standard error."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        status = self.process.wait(20)
        self._reader.join(20)
        self.process.stderr.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status, said


def test_following_shows_what_comes_until_ctrl_c(mailgate: Command, alice: int) -> None:
    """The title, what there is, what comes; leaving by Ctrl-C is no failure."""
    first = deliver(mailgate.dsn, alice, CONTENT)
    following = _Following(mailgate)
    assert following.line().startswith("ID")
    assert following.line().startswith(encode_id(first))
    later = [deliver(mailgate.dsn, alice, CONTENT) for _ in range(3)]
    assert [following.line().split()[0] for _ in later] == [encode_id(id_) for id_ in later]
    status, said = following.interrupt()
    assert (status, said.strip()) == (0, "")


def test_following_in_json_prints_an_object_a_line(mailgate: Command, alice: int) -> None:
    """An array that never ends would be no JSON."""
    first = deliver(mailgate.dsn, alice, CONTENT)
    following = _Following(mailgate, "--json")
    assert json.loads(following.line())["id"] == encode_id(first)
    second = deliver(mailgate.dsn, alice, CONTENT)
    assert json.loads(following.line())["id"] == encode_id(second)
    following.interrupt()


def test_a_lost_notification_delays_a_message_and_no_more(mailgate: Command, alice: int) -> None:
    """Followers look by themselves every few seconds."""
    following = _Following(mailgate)
    assert following.line().startswith("ID")
    id_ = deliver(mailgate.dsn, alice, CONTENT, with_notification=False)
    assert following.line().startswith(encode_id(id_))
    following.interrupt()


def test_following_survives_a_lost_connection(mailgate: Command, alice: int) -> None:
    """mailgate, and with it an embedded database, may be restarted meanwhile."""
    deliver(mailgate.dsn, alice, CONTENT)
    following = _Following(mailgate)
    following.line()
    following.line()
    ended = query(
        mailgate.dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'mailgate command'",
    )
    assert ended == [(True,)]
    second = deliver(mailgate.dsn, alice, CONTENT)
    assert following.line().startswith(encode_id(second))
    status, said = following.interrupt()
    assert status == 0
    assert "trying again" in said


def test_a_message_is_shown_with_envelope_and_way(mailgate: Command, alice: int) -> None:
    """What a person asks: who, to whom, how, and what it says."""
    id_ = encode_id(deliver(mailgate.dsn, alice, CONTENT))
    output = mailgate.ok("show", id_)
    for line in (
        "From           Carol <carol@example.org>",
        "Subject        Hello",
        "Envelope from  carol@example.org",
        "Envelope to    alice@example.test",
        "In             alice@example.test, INBOX",
        "Became         accepted",
        "Client         192.0.2.7 (client.example.org)",
        "TLS            TLSv1.3 TLS_AES_256_GCM_SHA384",
    ):
        assert line in output.splitlines()
    assert output.endswith("\n\nGood [31mday\n")


def test_a_message_in_json_is_an_object(mailgate: Command, alice: int) -> None:
    """With what was sent as it was sent."""
    id_ = encode_id(deliver(mailgate.dsn, alice, CONTENT))
    record = mailgate.json("show", id_)
    assert (record["id"], record["reverse_path"], record["size_octets"]) == (id_, "carol@example.org", len(CONTENT))
    assert record["deliveries"] == [{"mailbox": "alice@example.test", "folder": "INBOX", "uid": 1, "flags": []}]
    assert record["transaction"]["tls_version"] == "TLSv1.3"
    assert record["text"] == "Good \x1b[31mday\r\n"


@pytest.mark.parametrize("piece_octets", [None, 7, 1024])
@pytest.mark.parametrize("content", [CONTENT, b"\x00\x80\xff\r\n" * 1000, b""], ids=["text", "binary", "empty"])
def test_raw_is_the_octets_and_nothing_else(
    mailgate: Command, alice: int, content: bytes, piece_octets: int | None
) -> None:
    """Our trace fields, then the content as received, whichever way it is kept."""
    id_ = encode_id(deliver(mailgate.dsn, alice, content, piece_octets=piece_octets))
    result = mailgate.run("show", id_, "--raw")
    assert result.stdout_bytes == TRACE + content


def test_raw_is_read_in_parts(mailgate: Command, alice: int) -> None:
    """A message in one piece that is larger than what is read at once."""
    content = b"Subject: x\r\n\r\n" + bytes(range(256)) * 5000
    id_ = encode_id(deliver(mailgate.dsn, alice, content))
    assert mailgate.run("show", id_, "--raw").stdout_bytes == TRACE + content


def test_a_message_without_a_transaction_is_shown(mailgate: Command, alice: int) -> None:
    """An imported one has none; the record of an old one has been dropped."""
    id_ = encode_id(deliver(mailgate.dsn, alice, CONTENT, with_transaction=False))
    assert "Subject        Hello" in mailgate.ok("show", id_)
    assert mailgate.json("show", id_)["transaction"] is None


def test_the_id_of_a_refusal_shows_what_became_of_it(mailgate: Command) -> None:
    """It is what a client that was refused quotes."""
    id_ = record_transaction(
        mailgate.dsn,
        disposition="refused",
        stage="rcpt",
        reply="550 5.1.1 No such mailbox here",
        recipients=[("nobody@example.test", False, "550 5.1.1 No such mailbox here")],
    )
    output = mailgate.ok("show", f"[{encode_id(id_)}]")
    assert "Became         refused at rcpt" in output
    assert "nobody@example.test (refused: 550 5.1.1 No such mailbox here)" in output
    assert "It brought no message." in output
    assert "no message" in mailgate.fails("show", encode_id(id_), "--raw")


def test_sessions_and_refusals_are_listed(mailgate: Command, alice: int) -> None:
    """The newest last, since a time."""
    deliver(mailgate.dsn, alice, CONTENT)
    id_ = record_transaction(
        mailgate.dsn,
        disposition="refused",
        stage="rcpt",
        reply="550 5.7.1 We do not relay",
        recipients=[
            ("bob@example.org", False, "550 5.7.1 We do not relay"),
            ("alice@example.test", True, "250 2.1.5 Recipient ok"),
        ],
        client="2001:db8::7",
    )
    record_transaction(mailgate.dsn, disposition="deferred", stage="end_of_data", reply="451 4.3.0 Later")
    refusals = mailgate.json("refusals")
    assert [(record["forward_path"], record["stage"], record["reply"][:3]) for record in refusals] == [
        ("bob@example.org", "rcpt", "550"),
        (None, "end_of_data", "451"),
    ]
    assert refusals[0]["id"] == encode_id(id_)
    assert "2001:db8::7" in mailgate.ok("refusals")
    sessions = mailgate.json("sessions")
    assert len(sessions) == 3
    assert sessions[0]["dialogue"][0] == "C: EHLO client.example.org"
    assert "S: 250 mx.example.test" in mailgate.ok("show", sessions[0]["id"])
    assert len(mailgate.json("sessions", "--limit", "1")) == 1
    assert mailgate.json("refusals", "--since", "0s") == []
    assert mailgate.json("sessions", "--since", "0s") == []


def test_refusals_are_those_of_the_view(mailgate: Command) -> None:
    """`recent_refusals` is what a person in psql sees; the command asks the same, with a bound."""
    for stage in ("mail", "rcpt", "end_of_data"):
        record_transaction(
            mailgate.dsn,
            disposition="refused",
            stage=stage,
            reply="550 5.7.1 No",
            recipients=[("a@example.test", False, "550 5.1.1 No"), ("b@example.test", True, "250 2.1.5 Ok")],
        )
    query(mailgate.dsn, "UPDATE mailgate.recipient SET policy = 'recipients' WHERE NOT is_accepted")
    verdict = {"stage": "connect", "policy": "limits", "verdict": "defer", "reason": "421 4.3.2 Too many"}
    record_session(mailgate.dsn, ending="refused", dialogue="S: 421 4.3.2 Too many [x]", verdicts=[verdict])
    record_session(mailgate.dsn, ending="limit", dialogue="C: FOO\nS: 421 4.7.0 Too many errors; closing [x]")
    record_session(mailgate.dsn, verdicts=[verdict | {"reason": "550 5.7.1 Postponed", "verdict": "reject"}])
    columns = ("id", "helo", "reverse_path", "forward_path", "stage", "reply", "policy", "reason")
    view = query(mailgate.dsn, f"SELECT {', '.join(columns)} FROM mailgate.recent_refusals")
    listed = [tuple(record[column] for column in columns) for record in mailgate.json("refusals")]
    assert sorted(map(str, listed)) == sorted(map(str, view))
    assert {record["stage"] for record in mailgate.json("refusals")} == {
        *("connect", "session", "mail", "rcpt", "end_of_data")
    }
    for limit in ("0", "2", "4"):
        shown = mailgate.json("refusals", "--limit", limit)
        assert [record["id"] for record in shown] == [each[0] for each in listed][len(listed) - int(limit) :]
    assert mailgate.ok("refusals").count("<>") == 0


def test_a_terminal_without_unicode_gets_what_it_can_show(mailgate: Command, alice: int) -> None:
    """Rather than a traceback."""
    deliver(mailgate.dsn, alice, CONTENT, subject="Grüße")
    command, environment = mailgate.in_process("inbox", "alice@example.test")
    done = subprocess.run(
        command, env=environment | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True, timeout=60
    )
    assert b"Gr??e" in done.stdout


def test_an_unknown_id_is_a_failure(mailgate: Command) -> None:
    """Exit status 1; what is no id at all is 2."""
    assert "there is no message" in mailgate.fails("show", encode_id(1))
    assert mailgate.run("show", "x").exit_code == 2
