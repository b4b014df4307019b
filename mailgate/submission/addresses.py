"""The addresses in a header field that a program wrote, and where they stand: for envelopes, and to complete them.

Programs leave out what people on one machine take for granted: `To: root` means root at this domain. So a local part
alone is understood here, and groups, comments and routes as well. What decides who a message is from is not this but
the strict parser `mailgate.auth.author`, once the server has the message.

Standards: RFC 5322 sections 3.4 (addresses, groups) and 4.4 (routes), RFC 6409 section 8.6 (completing addresses).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LITERAL = re.compile(r"\[[^\[\]]*+\]")
_SPECIAL = re.compile(r'[,;:<>"()\[]')
_ROUTE = re.compile(r"\s*+@[^:>]*+:")
_WHITE = " \t\r\n"


class NotAnAddress(ValueError):
    """The text holds something else; the message says what."""


@dataclass(frozen=True, slots=True)
class Found:
    """An address: its text, without blanks around its parts, and where it ends in the field's body."""

    text: str
    end: int

    @property
    def has_domain(self) -> bool:
        """Whether it has a domain."""
        return "@" in _QUOTED.sub("", self.text)


def addresses_in(body: str) -> list[Found]:
    """The addresses of an address-list, folded or not, in order; none for an empty one.

    @raises NotAnAddress: it is no address-list.
    """
    return list(_addresses(body))


def completed(body: str, domain: str) -> str:
    """The body of an address field, every address in it with a domain.

    @raises NotAnAddress: it is no address-list.
    """
    for found in reversed(addresses_in(body)):
        if not found.has_domain:
            body = f"{body[: found.end]}@{domain}{body[found.end :]}"
    return body


def with_domain(address: str, domain: str) -> str:
    """That one address, with the domain if it has none of its own.

    @raises NotAnAddress: it is none, or several.
    """
    found = addresses_in(address)
    if len(found) != 1:
        raise NotAnAddress(f"{address!r} is not one address")
    return found[0].text if found[0].has_domain else f"{found[0].text}@{domain}"


def _addresses(body: str) -> Iterator[Found]:
    position = 0
    words: list[tuple[int, int]] = []  # of the element so far, comments left out
    angle: Found | None = None
    while True:
        start = position
        special = _SPECIAL.search(body, position)
        position = special.start() if special is not None else len(body)
        words += _words(body, start, position)
        if special is None or special[0] in ",;":
            found = angle or _bare(body, words)
            if found is not None:
                yield found
            words, angle = [], None
            if special is None:
                return
            position += 1
        elif special[0] in '"[':
            token = (_QUOTED if special[0] == '"' else _LITERAL).match(body, position)
            if token is None:
                raise NotAnAddress(f"a {special[0]!r} has no end")
            words.append(token.span())
            position = token.end()
        elif special[0] == "(":
            position = _end_of_comment(body, position)
        elif special[0] == "<":
            if angle is not None:
                raise NotAnAddress("two addresses without a comma between them")
            angle, position = _angle(body, position)
        elif special[0] == ":" and angle is None and not any("@" in body[start:end] for start, end in words):
            words = []  # that was the name of a group
            position += 1
        else:
            raise NotAnAddress(f"a stray {special[0]!r}")


def _words(body: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"[^ \t\r\n]+", body[start:end]):
        yield start + match.start(), start + match.end()


def _bare(body: str, words: list[tuple[int, int]]) -> Found | None:
    """The address that an element without angle brackets is."""
    if not words:
        return None
    text = "".join(body[start:end] for start, end in words)
    for (_, end), (start, _) in pairwise(words):
        # Blanks may stand round "@" and ".", not between two words.
        if end != start and body[end - 1] not in "@." and body[start] not in "@.":
            raise NotAnAddress(f"{' '.join(body[s:e] for s, e in words)!r} is no address")
    return Found(_checked(text), words[-1][1])


def _angle(body: str, position: int) -> tuple[Found, int]:
    """The address in the angle brackets that open there, and where they have ended."""
    start = position + 1
    route = _ROUTE.match(body, start)
    if route is not None:
        start = route.end()
    position = start
    while position < len(body) and body[position] != ">":
        quoted = _QUOTED.match(body, position) if body[position] == '"' else None
        position = quoted.end() if quoted is not None else position + 1
    if position == len(body):
        raise NotAnAddress("an angle bracket has no end")
    inside = body[start:position]
    text = "".join(inside.split()) if '"' not in inside else inside.strip(_WHITE)
    return Found(_checked(text), start + len(inside.rstrip(_WHITE))), position + 1


def _checked(text: str) -> str:
    if not text or text.startswith("@") or text.endswith("@"):
        raise NotAnAddress(f"{text!r} is no address")
    return text


def _end_of_comment(body: str, position: int) -> int:
    depth = 0
    while position < len(body):
        char = body[position]
        position += 2 if char == "\\" else 1
        depth += (char == "(") - (char == ")")
        if not depth:
            return position
    raise NotAnAddress("a comment has no end")
