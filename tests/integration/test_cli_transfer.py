"""`mailgate export` and `import` on a real database."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psycopg2
import pytest

from mailgate.ids import decode_id
from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, fresh_database, query
from tests.support.stored_mail import add_mailbox, deliver

HELLO = b"From: Carol <carol@example.org>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1@x>\r\n\r\nHello\r\n"
TRICKY = (
    b"Status: RO\r\nX-Status: A\r\nX-Keywords: theirs\r\n\r\n\r\n"
    b"From me\r\n>From you\r\n.\r\n\r\nFrom a Mon\r\n\x00\xff\r\n\r\n"
)
MAIL = [
    (HELLO, "INBOX", ()),
    (HELLO, "INBOX", ("\\Seen",)),
    (TRICKY, "Junk", ("\\Seen", "\\Flagged")),
    (TRICKY * 3, "Work/Plans 2.0", ("\\Answered", "\\Deleted", "\\Draft", "$Forwarded", "later")),
]


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    (tmp_path / "config").mkdir()
    yield command_for(dsn, tmp_path / "config")
    drop_database(dsn)


@pytest.fixture
def alice(mailgate: Command) -> int:
    return add_mailbox(mailgate.dsn, "alice")


@pytest.fixture
def bob(mailgate: Command) -> int:
    return add_mailbox(mailgate.dsn, "bob")


def _mail_of(mailgate: Command, mailbox: int) -> list[tuple[str, list[str], bytes]]:
    """Folder, flags and octets of all that is in a mailbox."""
    rows = query(
        mailgate.dsn,
        "SELECT folder, ARRAY(SELECT unnest(flags) ORDER BY 1), mailgate.message_octets(message_id)"
        " FROM mailgate.delivery WHERE mailbox_id = %s",
        (mailbox,),
    )
    return sorted((str(folder), list(flags), bytes(octets)) for folder, flags, octets in rows)  # type: ignore[call-overload]  # rows of an unknown query


@pytest.mark.parametrize("format_", ["maildir", "mbox"])
def test_mail_comes_back_as_it_was(mailgate: Command, alice: int, bob: int, tmp_path: Path, format_: str) -> None:
    """Octets, folders and flags, by way of files whose lines end in LF."""
    for content, folder, flags in MAIL:
        deliver(mailgate.dsn, alice, content, folder=folder, flags=flags)
    deliver(mailgate.dsn, alice, HELLO, piece_octets=3)
    out = str(tmp_path / "out")
    assert mailgate.ok("export", "alice@example.test", "--format", format_, out).startswith("exported 5 messages")
    assert b"\r" not in b"".join(path.read_bytes() for path in Path(out).rglob("*") if path.is_file())
    assert mailgate.ok("import", "bob@example.test", "--format", format_, out) == (
        "imported 5 messages into bob@example.test\n"
    )
    assert _mail_of(mailgate, bob) == _mail_of(mailgate, alice)


@pytest.mark.parametrize("format_", ["maildir", "mbox"])
def test_a_second_export_doubles_nothing(mailgate: Command, alice: int, tmp_path: Path, format_: str) -> None:
    """It adds what came, and follows flags and folders."""
    out = tmp_path / "out"
    first = deliver(mailgate.dsn, alice, HELLO)
    mailgate.ok("export", "alice@example.test", "--format", format_, str(out))
    deliver(mailgate.dsn, alice, TRICKY)
    query(mailgate.dsn, "UPDATE mailgate.delivery SET flags = '{\\\\Seen}' WHERE message_id = %s", (first,))
    mailgate.ok("export", "alice@example.test", "--format", format_, str(out))
    mailgate.ok("export", "alice@example.test", "--format", format_, str(out))
    bob = add_mailbox(mailgate.dsn, "bob")
    mailgate.ok("import", "bob@example.test", "--format", format_, str(out))
    assert _mail_of(mailgate, bob) == _mail_of(mailgate, alice)


def test_an_imported_message_is_as_one_that_came(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """Header fields for the inbox, an id of its own that is in order, usage, UIDs, and the time of the file."""
    deliver(mailgate.dsn, alice, HELLO)
    path = tmp_path / "a.eml"
    path.write_bytes(b"Return-Path: <dave@example.org>\n" + HELLO.replace(b"\r\n", b"\n"))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    mailgate.ok("import", "alice@example.test", "--format", "eml", "--folder", "Old", str(path))
    before, record = mailgate.json("inbox", "alice@example.test")
    assert (record["uid"], record["from"], record["subject"]) == (2, "Carol <carol@example.org>", "Grüße")
    assert (record["folder"], record["received_at"]) == ("Old", "2023-11-14T22:13:20+00:00")
    assert decode_id(record["id"]) > 0
    assert record["id"] != before["id"]
    assert mailgate.json("show", record["id"])["reverse_path"] == "dave@example.org"
    octets = len(HELLO) + record["size_octets"]
    assert query(mailgate.dsn, "SELECT uid_next, messages, octets FROM mailgate.mailbox_usage") == [(3, 2, octets)]


@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
def test_line_ends_become_crlf(mailgate: Command, alice: int, tmp_path: Path, ends: bytes) -> None:
    """Stored messages hold CRLF lines only."""
    (tmp_path / "a.eml").write_bytes(HELLO.replace(b"\r\n", ends))
    mailgate.ok("import", "alice@example.test", "--format", "eml", str(tmp_path / "a.eml"))
    assert [octets for _, _, octets in _mail_of(mailgate, alice)] == [HELLO]


def test_many_messages_come_in_order(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """More than one batch; UIDs follow the order in the file."""
    lines = [f"From a Mon Nov 23 13:00:05 2026\nSubject: {number}\n\nbody\n\n" for number in range(250)]
    (tmp_path / "x.mbox").write_text("".join(lines))
    mailgate.ok("import", "alice@example.test", "--format", "mbox", str(tmp_path / "x.mbox"))
    listed = mailgate.json("inbox", "alice@example.test", "--limit", "1000")
    assert [(record["uid"], record["subject"]) for record in listed] == [
        (number + 1, str(number)) for number in range(250)
    ]


def test_a_full_mailbox_takes_what_fits(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """And the rest only when told to; what was imported is said."""
    mailgate.ok("mailbox", "set", "alice@example.test", "--quota", str(len(HELLO) * 2))
    for name in "abc":
        (tmp_path / f"{name}.eml").write_bytes(HELLO)
    said = mailgate.fails("import", "alice@example.test", "--format", "eml", str(tmp_path))
    assert "is full" in said
    assert "imported 2 messages" in said
    assert len(_mail_of(mailgate, alice)) == 2
    mailgate.ok("import", "alice@example.test", "--format", "eml", "--ignore-quota", str(tmp_path / "c.eml"))
    assert len(_mail_of(mailgate, alice)) == 3


def test_a_large_message_over_quota_leaves_nothing(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """Its pieces go with it."""
    mailgate.ok("mailbox", "set", "alice@example.test", "--quota", "1MB")
    (tmp_path / "a.eml").write_bytes(b"Subject: x\r\n\r\n" + b"0123456789\r\n" * 200_000)
    assert "imported 0 messages" in mailgate.fails(
        "import", "alice@example.test", "--format", "eml", str(tmp_path / "a.eml")
    )
    assert query(mailgate.dsn, "SELECT 1 FROM mailgate.message_piece UNION ALL SELECT 1 FROM mailgate.message") == []


def test_whoever_waits_hears_of_imported_mail(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """NOTIFY newmail, as for mail that came."""
    (tmp_path / "a.eml").write_bytes(HELLO)
    command, environment = mailgate.in_process("inbox", "alice@example.test", "--follow", "--json")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        _wait_for(mailgate, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%d.uid > %' AND state = 'idle'")
        mailgate.ok("import", "alice@example.test", "--format", "eml", str(tmp_path / "a.eml"))
        began = time.monotonic()
        assert "Grüße" in following.stdout.readline()
        assert time.monotonic() - began < 4  # its own poll would take 5
        following.terminate()


def _wait_for(mailgate: Command, sql: str) -> None:
    deadline = time.monotonic() + 20
    while not query(mailgate.dsn, sql):
        assert time.monotonic() < deadline, sql
        time.sleep(0.02)


def test_empty_files_are_passed_over(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """And said, since they were messages once perhaps."""
    (tmp_path / "a.eml").write_bytes(b"")
    (tmp_path / "b.eml").write_bytes(HELLO)
    assert mailgate.ok("import", "alice@example.test", "--format", "eml", str(tmp_path)) == (
        "imported 1 message into alice@example.test; skipped 1 empty file\n"
    )


def test_names_that_the_database_cannot_hold_are_made_to_fit(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """Folders are named by files, and flags by fields, of whoever made them."""
    folder = tmp_path / "maildir" / os.fsdecode(b".a%00b\xff")
    for name in (tmp_path / "maildir" / "cur", folder / "cur", folder / "new"):
        name.mkdir(parents=True)
    (folder / "new" / "1").write_bytes(HELLO)
    (tmp_path / "x.mbox").write_bytes(b"From a\nX-Keywords: a\0b \0 \xff a\0b\n\nbody\n")
    mailgate.ok("import", "alice@example.test", "--format", "maildir", str(tmp_path / "maildir"))
    mailgate.ok("import", "alice@example.test", "--format", "mbox", str(tmp_path / "x.mbox"))
    first, second = mailgate.json("inbox", "alice@example.test")
    assert first["folder"] == "ab?"
    assert second["flags"] == ["ab", "\ufffd"]


@pytest.mark.parametrize("year", ["1900", "1969", "2400", "9999", "10000"])
def test_an_implausible_time_is_now(mailgate: Command, alice: int, tmp_path: Path, year: str) -> None:
    """Else it would be a time that nothing on the way to the screen can hold."""
    (tmp_path / "x.mbox").write_bytes(f"From a Mon Nov 23 13:00:05 {year} +1400\nSubject: x\n\nbody\n".encode())
    mailgate.ok("import", "alice@example.test", "--format", "mbox", str(tmp_path / "x.mbox"))
    (record,) = mailgate.json("inbox", "alice@example.test")
    assert abs(datetime.fromisoformat(record["received_at"]).timestamp() - time.time()) < 60


@pytest.mark.parametrize("format_", ["maildir", "mbox", "eml"])
def test_what_is_not_of_that_format_is_refused(mailgate: Command, alice: int, tmp_path: Path, format_: str) -> None:
    """Nobody imports something else by accident."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.mbox").write_bytes(b"no mbox\n")
    mailgate.fails("import", "alice@example.test", "--format", format_, str(tmp_path / "out"))
    assert _mail_of(mailgate, alice) == []


def test_a_folder_that_cannot_be_written_is_a_failure(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """One line, no traceback."""
    (tmp_path / "file").touch()
    assert "file" in mailgate.fails(
        "export", "alice@example.test", "--format", "maildir", str(tmp_path / "file" / "below")
    )


def test_ids_of_an_import_are_nobody_elses(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """The instance in an id belongs to one living process: a number that one holds is passed over."""
    query(mailgate.dsn, "SELECT setval('mailgate.instance', 41)")
    holder = "SELECT pg_advisory_lock_shared(1836345701, 42)"
    (tmp_path / "a.eml").write_bytes(HELLO)
    connection = psycopg2.connect(mailgate.dsn)
    connection.cursor().execute(holder)
    mailgate.ok("import", "alice@example.test", "--format", "eml", str(tmp_path / "a.eml"))
    connection.close()
    (record,) = mailgate.json("inbox", "alice@example.test")
    assert decode_id(record["id"]) >> 10 & 0xFFF == 43


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_a_mailbox_is_never_in_memory(mailgate: Command, alice: int, tmp_path: Path) -> None:
    """40 MiB in 20 messages go in and out: no process grows by more than some messages would need."""
    (tmp_path / "small.eml").write_bytes(HELLO)
    with (tmp_path / "x.mbox").open("wb") as file:
        for number in range(20):
            file.write(b"From a Mon Nov 23 13:00:05 2026\nSubject: %d\n\n" % number)
            file.write(b"0123456789abcde\n" * 131_072 + b"\n")
    base = _peak_rss_kib(mailgate, "import", "alice@example.test", "--format", "eml", str(tmp_path / "small.eml"))
    for arguments in (
        ("import", "alice@example.test", "--format", "mbox", str(tmp_path / "x.mbox")),
        ("export", "alice@example.test", "--format", "maildir", str(tmp_path / "maildir")),
        ("export", "alice@example.test", "--format", "mbox", str(tmp_path / "mbox")),
    ):
        assert _peak_rss_kib(mailgate, *arguments) < base + 16 * 1024
    assert len(list((tmp_path / "maildir" / "new").iterdir())) == 21


def _peak_rss_kib(mailgate: Command, *arguments: str) -> int:
    """What such a command needed at most."""
    command, environment = mailgate.in_process(*arguments)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss
