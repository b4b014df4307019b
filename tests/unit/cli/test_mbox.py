"""mbox files, written and read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.cli.foreign import FormatError
from mailgate.cli.mbox import MboxWriter, file_of, files_of, folder_of, read_mbox

WHEN = datetime(2026, 11, 23, 13, 0, 5, tzinfo=UTC)

Stored = tuple[list[bytes], tuple[str, ...]]


def _write(path: Path, messages: list[Stored], reverse_path: str = "carol@example.org") -> None:
    writer = MboxWriter(path)
    for pieces, flags in messages:
        writer.put(reverse_path, flags, WHEN, pieces)
    writer.finish()


def _read(path: Path) -> list[tuple[bytes, set[str]]]:
    return [(b"".join(message.pieces()), set(message.flags)) for message, _ in read_mbox(path)]


LONG = b"@"  # stands for more than the reader takes at once, so that failures can be read

LINES = st.sampled_from(
    [
        b"Subject: x\n",
        b"\n",
        b"From here\n",
        b">From there\n",
        b">>From afar\n",
        b"Status: RO\n",
        b"X-Status: A\n",
        b"X-Keywords: b c\n",
        b" folded\n",
        b"text\n",
        b"From\n",
        LONG + b"\n",
        LONG + b"bcde\n",
        LONG + b"bcdeFrom x\n",
        LONG + b"bcdefFrom x\n",
        LONG + b"bcdefg>From x\n",
    ]
)
FLAGS = st.sets(st.sampled_from(["\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", "$Forwarded", "later"]))


@settings(deadline=None)  # it writes files
@given(st.lists(st.tuples(st.lists(LINES, max_size=8), FLAGS), max_size=4), st.integers(1, 20))
def test_messages_come_back_as_they_were(messages: list[tuple[list[bytes], set[str]]], cut: int) -> None:
    """Whatever lines they hold, ours and others' status fields included, and however they come in pieces."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.mbox"
        stored: list[Stored] = []
        for lines, flags in messages:
            octets = b"".join(lines)
            # Cut first, so that the long line is in one piece or in a few.
            pieces = [octets[at : at + cut] for at in range(0, len(octets), cut)]
            stored.append(([piece.replace(LONG, LONG * 65_530) for piece in pieces], tuple(flags)))
        _write(path, stored)
        read = [(octets.replace(LONG * 65_530, LONG), flags) for octets, flags in _read(path)]
        assert read == [(b"".join(lines), flags) for lines, flags in messages]


def test_a_message_without_a_last_line_end_gets_one(tmp_path: Path) -> None:
    """mbox can't do without: the next message begins at the beginning of a line."""
    _write(tmp_path / "x.mbox", [([b"Subject: x\n\nbody"], ()), ([b"Subject: y\n\n"], ())])
    assert _read(tmp_path / "x.mbox") == [(b"Subject: x\n\nbody\n", set()), (b"Subject: y\n\n", set())]


def test_the_first_line_is_as_rfc_4155_has_it(tmp_path: Path) -> None:
    """RFC 4155: addr-spec, then the time in UTC as asctime writes it."""
    _write(tmp_path / "x.mbox", [([b"a\n"], ())])
    assert (tmp_path / "x.mbox").read_bytes().startswith(b"From carol@example.org Mon Nov 23 13:00:05 2026\n")


@pytest.mark.parametrize("reverse_path", ["", '"a b"@example.org'])
def test_a_sender_that_would_break_the_first_line_is_not_in_it(tmp_path: Path, reverse_path: str) -> None:
    """A blank ends the address there; the null path has none."""
    _write(tmp_path / "x.mbox", [([b"a\n"], ())], reverse_path)
    assert (tmp_path / "x.mbox").read_bytes().startswith(b"From MAILER-DAEMON Mon Nov 23")


def test_the_time_comes_back(tmp_path: Path) -> None:
    """To the second, which is all that the format has."""
    _write(tmp_path / "x.mbox", [([b"a\n"], ())])
    ((message, _),) = read_mbox(tmp_path / "x.mbox")
    assert message.received_at == WHEN


def test_a_first_line_without_a_time_is_taken(tmp_path: Path) -> None:
    """What programs write there differs; the message counts."""
    (tmp_path / "x.mbox").write_bytes(b"From somebody\nSubject: x\n\nbody\n")
    messages = read_mbox(tmp_path / "x.mbox")
    message, _ = next(messages)
    assert message.received_at is None
    assert b"".join(message.pieces()) == b"Subject: x\n\nbody\n"


def test_status_fields_of_other_programs_are_taken_wherever_they_stand(tmp_path: Path) -> None:
    """Mail readers add them at the end of the header, folded where they are long."""
    (tmp_path / "x.mbox").write_bytes(
        b"From a Mon Nov 23 13:00:05 2026\r\nSubject: x\r\nStatus: RO\r\nX-Status: AF\r\nX-Keywords: one\r\n two\r\n"
        b"\r\nStatus: body\r\n"
    )
    assert _read(tmp_path / "x.mbox") == [
        (b"Subject: x\r\n\r\nStatus: body\r\n", {"\\Seen", "\\Answered", "\\Flagged", "one", "two"})
    ]


def test_messages_that_nobody_reads_are_passed_over(tmp_path: Path) -> None:
    """The reader goes on to the next message by itself."""
    _write(tmp_path / "x.mbox", [([b"Subject: x\n\n" + b"line\n" * 100_000], ()), ([b"y\n"], ())])
    messages = [message.name for message, _ in read_mbox(tmp_path / "x.mbox")]
    assert messages == [f"message {number} in {tmp_path / 'x.mbox'}" for number in (1, 2)]


def test_what_is_no_mbox_is_refused(tmp_path: Path) -> None:
    """The first line says so."""
    (tmp_path / "x.mbox").write_bytes(b"Subject: x\n\nbody\n")
    with pytest.raises(FormatError):
        list(read_mbox(tmp_path / "x.mbox"))


def test_an_empty_file_holds_no_messages(tmp_path: Path) -> None:
    """As mail readers leave it."""
    (tmp_path / "x.mbox").write_bytes(b"")
    assert _read(tmp_path / "x.mbox") == []


def test_an_abandoned_file_leaves_the_old_one(tmp_path: Path) -> None:
    """An export that was interrupted has changed nothing."""
    _write(tmp_path / "x.mbox", [([b"a\n"], ())])
    writer = MboxWriter(tmp_path / "x.mbox")
    writer.put("", (), WHEN, [b"b\n"])
    writer.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["x.mbox"]
    assert _read(tmp_path / "x.mbox") == [(b"a\n", set())]


@pytest.mark.parametrize("folder", ["INBOX", "Work/Plans", "..", "a%b", "Entwürfe"])
def test_folder_names_survive_as_file_names(folder: str) -> None:
    """One file a folder, all in one place, none hidden."""
    name = file_of(folder)
    assert "/" not in name
    assert not name.startswith(".")
    assert folder_of(Path(name)) == folder


def test_a_folder_without_mbox_files_is_refused(tmp_path: Path) -> None:
    """Rather than reported as an import of nothing."""
    with pytest.raises(FormatError):
        files_of(tmp_path)
