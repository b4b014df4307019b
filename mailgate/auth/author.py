"""Who a message says it is from: the authors in its From field, by a strict parser.

DMARC rests on this: whatever we read differently from the program that shows the message to a person is a way round
it. So only what RFC 5322 allows is understood, everything else is a fault, and nothing is guessed. In particular there
are no groups (RFC 6854 allows them; no author's domain follows from one), no routes, no second From field, no encoded
word in an address, and no way for a comment or a quote to hide one. What RFC 5321 asks of a mailbox, and RFC 5322 does
not, is not asked here: nobody is going to send there.

The parser is a single pass over the characters; comments nest without recursion.

Standards: RFC 5322 sections 3.2 (tokens), 3.4 (addresses), 3.6.2 (From), 4.1 (obs-phrase, for "John Q. Public");
RFC 6532 (UTF-8 in header fields); RFC 2047 section 5 (no encoded word in an address); RFC 9989 section 5.3.1 (the
author's domain).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mailgate.auth.results import AuthorFault
from mailgate.auth.tag_list import MalformedTags, name_value
from mailgate.envelope import Address
from mailgate.message import fields_of
from mailgate.smtp.grammar import GrammarError, domain_key

MAX_FROM_OCTETS = 16_384
MAX_AUTHORS = 100

# atext of RFC 5322 section 3.2.3, with RFC 6532's UTF8-non-ascii.
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~\x80-\U0010ffff]++")
_WHITE = re.compile(r"[ \t]++")
_COMMENT_TEXT = re.compile(r"[^()\\]++")
_QUOTED_TEXT = re.compile(r'[^"\\]++')
_LITERAL = re.compile(r"\[[^\[\]\\]*+\]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x80-\x9f]")
_QUOTED_PAIR = re.compile(r"\\(.)")


# A field that some programs unfold into From. RFC 5322 lets no fold stand there, not even to be read (section 4.5.2).
_FOLDED_NAMES = {
    name: re.compile(rb"(?im)^%s[ \t]*+(?:\r\n[ \t][ \t]*+)++:" % name.encode("ascii")) for name in ("From", "Sender")
}


class _NotAMailboxList(Exception):
    """The field is no mailbox-list; the message says where."""


def authors_of(header: bytes) -> tuple[Address, ...] | AuthorFault:
    """The addresses in the From field of a header section, in order, or why there are none to rely on."""
    return _mailboxes_in(header, "From") or AuthorFault("no From field")


def sender_of(header: bytes) -> Address | AuthorFault | None:
    """The address in the Sender field of a header section; None without one (RFC 5322 section 3.6.2)."""
    found = _mailboxes_in(header, "Sender")
    if not isinstance(found, tuple):
        return found
    return found[0] if len(found) == 1 else AuthorFault("more than one address in the Sender field")


def _mailboxes_in(header: bytes, name: str) -> tuple[Address, ...] | AuthorFault | None:
    """The addresses in the one field of that name, or why there are none to rely on; None without such a field."""
    bodies = fields_of(header, name.encode("ascii"))
    if _FOLDED_NAMES[name].search(header):
        return AuthorFault(f"a {name} field has a fold before its colon")
    if not bodies:
        return None
    if len(bodies) > 1:
        return AuthorFault(f"more than one {name} field")
    if len(bodies[0]) > MAX_FROM_OCTETS:
        return AuthorFault(f"the {name} field is too long")
    try:
        text = bodies[0].decode("utf-8")
    except UnicodeDecodeError:
        return AuthorFault(f"the {name} field is neither ASCII nor UTF-8")
    if _CONTROL.search(text):
        return AuthorFault(f"the {name} field holds a control character")
    try:
        return tuple(_Parser(text).mailbox_list())
    except _NotAMailboxList as error:
        return AuthorFault(f"{name} is not a mailbox-list: {error}")


def author_domain(authors: tuple[Address, ...]) -> str | AuthorFault:
    """The one domain of all authors, in A-form and lower case."""
    try:
        domains = {_domain_name(author.domain) for author in authors}
    except (GrammarError, MalformedTags):
        return AuthorFault("the domain in From is no domain name")
    if len(domains) > 1:
        return AuthorFault("the authors in From are of several domains")
    (domain,) = domains
    if domain.startswith("["):
        return AuthorFault("the address in From has an IP address for a domain")
    return domain


def _domain_name(domain: str) -> str:
    # Host names with an underscore are none (RFC 1123), and send mail all the same.
    return domain_key(domain) if domain.startswith("[") else name_value(domain.encode())


class _Parser:
    """A position in the text, and what can stand there."""

    __slots__ = ("_position", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def mailbox_list(self) -> list[Address]:
        """mailbox-list = (mailbox *("," mailbox)); the empty elements of obs-mbox-list are not taken."""
        found = [self._mailbox()]
        while self._take(","):
            if len(found) >= MAX_AUTHORS:
                raise _NotAMailboxList("too many addresses")
            found.append(self._mailbox())
        if self._position < len(self._text):
            raise self._unexpected()
        return found

    def _mailbox(self) -> Address:
        """mailbox = name-addr / addr-spec: which of the two shows behind the words."""
        self._cfws()
        start = self._position
        is_begun = False
        # A dot belongs to a dot-atom, or to obs-phrase.
        while self._atom() or self._quoted_string() or (is_begun and self._take(".")):
            is_begun = True
            self._cfws()
        if self._take("<"):
            return self._angle_address()
        if self._peek() == "@":
            self._position = start
            return self._addr_spec()
        if not is_begun:
            raise self._unexpected()
        what = "a group, or a stray colon" if self._peek() == ":" else "words without an address"
        raise _NotAMailboxList(f"{what} at character {self._position + 1}")

    def _angle_address(self) -> Address:
        address = self._addr_spec()
        if not self._take(">"):
            raise self._unexpected()
        self._cfws()
        return address

    def _addr_spec(self) -> Address:
        """addr-spec = local-part "@" domain; comments and blanks may stand round each, but not inside."""
        self._cfws()
        local = self._span(self._dot_atom) or self._span(self._quoted_string)
        if not local:
            raise self._unexpected()
        self._cfws()
        if not self._take("@"):
            raise self._unexpected()
        self._cfws()
        domain = self._span(self._dot_atom) or self._span(self._literal)
        if not domain:
            raise self._unexpected()
        self._cfws()
        if local.startswith('"'):
            local = _QUOTED_PAIR.sub(r"\1", local[1:-1])
        if "=?" in local + domain:
            raise _NotAMailboxList("an encoded word in an address")
        return Address(local, domain)

    def _span(self, token: Callable[[], bool]) -> str:
        start = self._position
        return self._text[start : self._position] if token() else ""

    def _dot_atom(self) -> bool:
        if not self._atom():
            return False
        while self._peek() == ".":
            self._position += 1
            if not self._atom():
                raise self._unexpected()
        return True

    def _atom(self) -> bool:
        return self._match(_ATOM)

    def _literal(self) -> bool:
        return self._match(_LITERAL)

    def _quoted_string(self) -> bool:
        if self._peek() != '"':
            return False
        self._position += 1
        while True:
            self._match(_QUOTED_TEXT)
            match self._next():
                case '"':
                    return True
                case "\\" if self._next():
                    continue
                case _:
                    raise _NotAMailboxList("a quoted string has no end")

    def _cfws(self) -> None:
        """[CFWS]: blanks and comments."""
        while True:
            self._match(_WHITE)
            if self._peek() != "(":
                return
            self._position += 1
            depth = 1
            while depth:
                self._match(_COMMENT_TEXT)
                match self._next():
                    case "(":
                        depth += 1
                    case ")":
                        depth -= 1
                    case "\\" if self._next():
                        continue
                    case _:
                        raise _NotAMailboxList("a comment has no end")

    def _match(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self._text, self._position)
        if found is None:
            return False
        self._position = found.end()
        return True

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _next(self) -> str:
        char = self._peek()
        self._position += len(char)
        return char

    def _take(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._position += 1
        return True

    def _unexpected(self) -> _NotAMailboxList:
        char = self._peek()
        where = f"{char!r} at character {self._position + 1}" if char else "its end"
        return _NotAMailboxList(f"unexpected {where}")
