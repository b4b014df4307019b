"""What holds for every reply of ours, whatever it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailgate.smtp.reply import MAX_LINE_OCTETS

_LINE = re.compile(rb"([2-5][0-9][0-9])([ -])([ -~]*)\r\n")
_STATUS = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3} ")
_REFERENCE = re.compile(rb" \[[0-9a-hjkmnp-tv-z]{13}\]$")


@dataclass(frozen=True, slots=True)
class Heard:
    """A reply as the client hears it: the texts of its lines come without the code."""

    code: int
    lines: tuple[bytes, ...]


def split_replies(octets: bytes) -> list[Heard]:
    """The replies in the server's output, which must hold nothing else and end with a whole one."""
    replies: list[Heard] = []
    lines: list[bytes] = []
    code: int | None = None
    place = 0
    while place < len(octets):
        match = _LINE.match(octets, place)
        assert match is not None, f"no line of a reply: {octets[place : place + 80]!r}"
        assert len(match[0]) <= MAX_LINE_OCTETS, f"RFC 5321 section 4.5.3.1.5: {match[0]!r}"
        assert code is None or code == int(match[1]), f"another code within a reply: {match[0]!r}"
        place, code = match.end(), int(match[1])
        lines.append(match[3])
        if match[2] == b" ":
            replies.append(Heard(code, tuple(lines)))
            lines, code = [], None
    assert not lines, f"an unfinished reply: {lines!r}"
    return replies


def check_shape(heard: Heard, *, is_greeting: bool = False, answers_greeting: bool = False) -> None:
    """Every line bears a status code of the reply's class (RFC 2034 section 4); 4xx and 5xx end with an id.

    Without a status code are: the greeting and the answer to EHLO and HELO (RFC 2034 section 4), 354, and 334, whose
    text is a challenge (RFC 4954 section 4).
    """
    if heard.code in (334, 354):
        assert len(heard.lines) == 1
        return
    if heard.code < 400 and (is_greeting or answers_greeting):
        return
    for line in heard.lines:
        match = _STATUS.match(line)
        assert match is not None, f"no status code: {heard}"
        assert int(match[1]) == heard.code // 100, f"RFC 3463 section 2, class: {heard}"
    assert (_REFERENCE.search(heard.lines[-1]) is not None) == (heard.code >= 400), f"the id: {heard}"
