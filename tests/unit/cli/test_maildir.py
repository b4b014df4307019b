"""Maildirs, written and read."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.cli.foreign import ForeignMessage, FormatError
from mailgate.cli.maildir import MaildirWriter, directory_of, folder_of, read_maildir, read_pieces

WHEN = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)


def _read(root: Path) -> list[tuple[str, tuple[str, ...], bytes]]:
    return sorted((message.folder, message.flags, _content(message)) for message in read_maildir(root))


def _content(message: ForeignMessage) -> bytes:
    return b"".join(message.pieces())


def _put(root: Path, base: str = "1.a_1.mailgate", folder: str = "INBOX", flags: tuple[str, ...] = ()) -> bool:
    return MaildirWriter(root).put(base, folder, flags, WHEN, [b"Subject: x\n", b"\nbody\n"])


@pytest.mark.parametrize(
    ("folder", "directory"),
    [
        ("INBOX", ""),
        ("Junk", ".Junk"),
        ("Work/Plans", ".Work.Plans"),
        ("a.b", ".a%2Eb"),
        ("Entwürfe", ".Entwürfe"),
        ("../../etc", ".%2E%2E.%2E%2E.etc"),
        ("50%", ".50%25"),
    ],
)
def test_folders_are_laid_out_as_maildir_plus_plus(folder: str, directory: str) -> None:
    """Maildir++: a dot sets off each level, and nothing leads out of the maildir."""
    assert directory_of(folder) == directory
    if directory:
        assert folder_of(directory) == folder


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(lambda folder: folder != "INBOX"))
def test_any_folder_name_survives(folder: str) -> None:
    """A folder's name is any text; a directory's is not."""
    directory = directory_of(folder)
    assert "/" not in directory
    assert "\0" not in directory
    assert folder_of(directory) == folder


def test_names_in_modified_utf_7_are_read() -> None:
    """RFC 3501 section 5.1.3, as other servers lay out their maildirs; what is no such name stays as it is."""
    assert folder_of(".Entw&APw-rfe") == "Entwürfe"
    assert folder_of(".a&-b.&!!") == "a&b/&!!"


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("\\Seen",),
        ("\\Draft", "\\Flagged", "$Forwarded", "\\Answered", "\\Seen", "\\Deleted"),
        ("\\Seen", "$Label1", "later"),
    ],
)
@pytest.mark.parametrize("folder", ["INBOX", "Junk", "Work/Plans"])
def test_a_message_comes_back_with_folder_and_flags(tmp_path: Path, folder: str, flags: tuple[str, ...]) -> None:
    """Six flags have letters; others are kept as Dovecot does."""
    assert _put(tmp_path, folder=folder, flags=flags)
    ((found_folder, found_flags, content),) = _read(tmp_path)
    assert (found_folder, set(found_flags), content) == (folder, set(flags), b"Subject: x\n\nbody\n")


def test_a_message_without_flags_is_new(tmp_path: Path) -> None:
    """https://cr.yp.to/proto/maildir.html: `new` is what no mail reader has looked at; names there have no info."""
    _put(tmp_path)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["1.a_1.mailgate"]


def test_the_time_of_the_file_is_when_it_came(tmp_path: Path) -> None:
    """Other programs take the time of delivery from there."""
    _put(tmp_path)
    assert next(read_maildir(tmp_path)).received_at == WHEN


def test_putting_again_writes_nothing(tmp_path: Path) -> None:
    """A second export adds what is new and doubles nothing."""
    assert _put(tmp_path)
    untouched = iter([b"other"])
    assert not MaildirWriter(tmp_path).put("1.a_1.mailgate", "INBOX", (), WHEN, untouched)
    assert list(untouched) == [b"other"]
    assert len(_read(tmp_path)) == 1


def test_putting_again_follows_flags_and_folder(tmp_path: Path) -> None:
    """The maildir becomes what the mailbox is."""
    _put(tmp_path)
    assert not _put(tmp_path, flags=("\\Seen",), folder="Junk")
    assert [(folder, flags) for folder, flags, _ in _read(tmp_path)] == [("Junk", ("\\Seen",))]
    assert not _put(tmp_path)
    assert [(folder, flags) for folder, flags, _ in _read(tmp_path)] == [("INBOX", ())]


def test_what_a_mail_reader_has_looked_at_stays_in_cur(tmp_path: Path) -> None:
    """A message without flags may stand in `new` or, once a reader has listed it, in `cur`."""
    _put(tmp_path)
    seen = tmp_path / "cur" / "1.a_1.mailgate:2,"
    (tmp_path / "new" / "1.a_1.mailgate").rename(seen)
    assert not _put(tmp_path)
    assert seen.exists()


def test_an_interrupted_message_is_not_there(tmp_path: Path) -> None:
    """A name in `new` or `cur` promises a whole file."""

    def pieces() -> list[bytes]:
        raise KeyboardInterrupt

    writer = MaildirWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        writer.put("1.a_1.mailgate", "INBOX", (), WHEN, (piece for _ in [1] for piece in pieces()))
    assert _read(tmp_path) == []
    assert _put(tmp_path)


def test_more_keywords_than_letters_are_left_out(tmp_path: Path) -> None:
    """There are 26 letters for keywords; the message matters more."""
    flags = tuple(f"keyword{number:02}" for number in range(30))
    _put(tmp_path, flags=flags)
    ((_, found, _),) = _read(tmp_path)
    assert found == flags[:26]


def test_a_folder_that_is_no_maildir_is_refused(tmp_path: Path) -> None:
    """Nobody imports a home directory by accident."""
    with pytest.raises(FormatError):
        list(read_maildir(tmp_path))


def test_links_and_devices_are_not_followed(tmp_path: Path) -> None:
    """Root may import a maildir that somebody else has made: what it reads must be in there."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="link"):
        list(read_pieces(tmp_path / "link"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError):
        list(read_pieces(tmp_path / "pipe"))
