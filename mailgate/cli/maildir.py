"""Maildir: a file a message, flags in its name, a folder a directory.

Folders are laid out as Maildir++ does: the inbox on top, `Work/Plans` as `.Work.Plans` in it. Where a folder's name
holds what such a name can't, it is written with `%` and two hexadecimal digits. Flags beyond the six that have a
letter are kept as Dovecot does, in `dovecot-keywords`.

The name of an exported message follows from its id and UID, so that a second export finds what the first one wrote:
it writes nothing twice, and renames where flags or the folder have changed.

Standards: https://cr.yp.to/proto/maildir.html, https://www.courier-mta.org/maildir.html (Maildir++),
https://doc.dovecot.org/ (dovecot-keywords), RFC 3501 section 5.1.3 (modified UTF-7, read only).
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from mailgate.cli.foreign import INBOX, ForeignMessage, FormatError, time_of_file

_LETTERS = {
    "\\Draft": "D",
    "\\Flagged": "F",
    "$Forwarded": "P",
    "\\Answered": "R",
    "\\Seen": "S",
    "\\Deleted": "T",
}
_FLAGS = {letter: flag for flag, letter in _LETTERS.items()}
_KEYWORDS_FILE = "dovecot-keywords"
_MAX_KEYWORDS = 26
_INFO = re.compile(r"(.+?)[:;!]2,([A-Za-z]*)$", re.DOTALL)
_NOT_IN_NAMES = re.compile(r"[%&.\\:;!~\x00-\x1f\x7f]")
_MODIFIED_UTF_7 = re.compile(r"&([A-Za-z0-9+,]*)-")
_READ_OCTETS = 256 * 1024


def directory_of(folder: str) -> str:
    """The name of a folder's directory, "" for the inbox: `Work/Plans` is `.Work.Plans`."""
    if folder == INBOX:
        return ""
    return "." + ".".join(_NOT_IN_NAMES.sub(_percent, part) for part in folder.split("/"))


def folder_of(directory: str) -> str:
    """The folder whose directory has that name."""
    parts = (_MODIFIED_UTF_7.sub(_from_utf_7, part) for part in directory[1:].split("."))
    return "/".join(unquote(part, errors="replace") for part in parts)


def _from_utf_7(found: re.Match[str]) -> str:
    """What IMAP servers write in a maildir for what is not ASCII (RFC 3501 section 5.1.3)."""
    if not found[1]:
        return "&"
    encoded = found[1].replace(",", "/")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4)).decode("utf-16-be")
    except ValueError:
        return found[0]


def _percent(found: re.Match[str]) -> str:
    return f"%{ord(found.group()):02X}"


class MaildirWriter:
    """A maildir that messages are put into."""

    def __init__(self, root: Path) -> None:
        """@raises OSError: the maildir can't be made or read."""
        self._root = root
        self._keywords: dict[Path, list[str]] = {}
        self._made: set[Path] = set()
        _make(root)
        self._known = {_base(path.name): path for directory in _directories(root) for path in _files(directory)}

    def put(self, base: str, folder: str, flags: Sequence[str], received_at: datetime, pieces: Iterable[bytes]) -> bool:
        """Keep the message under that base name; False if it is there already (`pieces` is not touched then)."""
        directory = self._root / directory_of(folder)
        if directory not in self._made:
            _make(directory)
            if directory != self._root:
                (directory / "maildirfolder").touch()
            self._made.add(directory)
        letters = self._letters(directory, flags)
        # `new` is for what nobody has looked at; names there have no flags.
        final = directory / "cur" / f"{base}:2,{letters}" if letters else directory / "new" / base
        known = self._known.get(base)
        if known is not None:
            is_untouched = not letters and known.parent.parent == directory and not _flags_in(known)
            if known != final and not is_untouched:
                known.rename(final)
                self._known[base] = final
            return False
        temporary = directory / "tmp" / base
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            # A name in new or cur promises a whole file, after a crash too.
            os.fsync(file.fileno())
        seconds = received_at.timestamp()
        os.utime(temporary, (seconds, seconds))
        temporary.rename(final)
        self._known[base] = final
        return True

    def _letters(self, directory: Path, flags: Sequence[str]) -> str:
        letters = {_LETTERS[flag] for flag in flags if flag in _LETTERS}
        for keyword in sorted(flag for flag in flags if flag not in _LETTERS):
            known = self._keywords.setdefault(directory, _keywords_of(directory))
            if keyword not in known:
                if len(known) >= _MAX_KEYWORDS:
                    continue
                known.append(keyword)
                _write_keywords(directory, known)
            letters.add(chr(ord("a") + known.index(keyword)))
        return "".join(sorted(letters))


def count_messages(root: Path) -> int:
    """How many messages there are in all folders."""
    return sum(len(_files(directory)) for directory in _directories(root))


def read_maildir(root: Path) -> Iterator[ForeignMessage]:
    """Every message in every folder, folder by folder in the order of file names.

    @raises FormatError: this is no maildir.
    """
    if not (root / "cur").is_dir():
        raise FormatError(f"{root} is no maildir: it has no folder `cur`")
    for directory in _directories(root):
        folder = INBOX if directory == root else folder_of(directory.name)
        keywords = _keywords_of(directory)
        for path in sorted(_files(directory), key=lambda path: path.name):
            yield from _read(path, folder, keywords)


def _read(path: Path, folder: str, keywords: Sequence[str]) -> Iterator[ForeignMessage]:
    flags = []
    for letter in _flags_in(path):
        place = ord(letter) - ord("a")
        if letter in _FLAGS:
            flags.append(_FLAGS[letter])
        elif 0 <= place < len(keywords):
            flags.append(keywords[place])
    with suppress(FileNotFoundError):  # a mail reader has moved it meanwhile
        yield ForeignMessage(str(path), folder, tuple(flags), time_of_file(path), lambda: read_pieces(path))


def read_pieces(path: Path) -> Iterator[bytes]:
    """The octets of a regular file, in pieces; links are not followed.

    @raises OSError: it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FormatError(f"{path} is no regular file")
        while piece := file.read(_READ_OCTETS):
            yield piece


def _make(directory: Path) -> None:
    for name in ("tmp", "new", "cur"):
        (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)


def _directories(root: Path) -> list[Path]:
    found = [path for path in root.iterdir() if path.name.startswith(".") and (path / "cur").is_dir()]
    return [root, *sorted(found)]


def _files(directory: Path) -> list[Path]:
    return [
        path
        for name in ("new", "cur")
        if (directory / name).is_dir()
        for path in (directory / name).iterdir()
        if not path.name.startswith(".")
    ]


def _base(name: str) -> str:
    match = _INFO.match(name)
    return match[1] if match else name


def _flags_in(path: Path) -> str:
    match = _INFO.match(path.name)
    return match[2] if match and path.parent.name == "cur" else ""


def _keywords_of(directory: Path) -> list[str]:
    """The names of the keywords a, b and so on."""
    found: dict[int, str] = {}
    with suppress(OSError):
        for line in (directory / _KEYWORDS_FILE).read_text("utf-8", "replace").splitlines():
            number, _, keyword = line.partition(" ")
            if number.isdecimal() and number.isascii() and int(number) < _MAX_KEYWORDS and keyword:
                found[int(number)] = keyword
    return [found.get(number, f"keyword-{number}") for number in range(max(found, default=-1) + 1)]


def _write_keywords(directory: Path, keywords: Sequence[str]) -> None:
    temporary = directory / f"{_KEYWORDS_FILE}.lock"  # the name that Dovecot locks it by
    temporary.write_text("".join(f"{number} {keyword}\n" for number, keyword in enumerate(keywords)), "utf-8")
    temporary.replace(directory / _KEYWORDS_FILE)
