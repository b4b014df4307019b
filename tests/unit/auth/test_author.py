"""The author of a message: what RFC 5322 allows is understood, and nothing else."""

from __future__ import annotations

import time
from email.headerregistry import Address as LibraryAddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.auth.author import MAX_AUTHORS, MAX_FROM_OCTETS, author_domain, authors_of
from mailgate.auth.results import AuthorFault
from mailgate.envelope import Address


def authors(body: bytes) -> tuple[Address, ...] | AuthorFault:
    return authors_of(b"Subject: x\r\nFrom:" + body + b"\r\nTo: y@example.net\r\n")


def domain(body: bytes) -> str | AuthorFault:
    found = authors(body)
    return found if isinstance(found, AuthorFault) else author_domain(found)


# ---------------------------------------------------------------- what is a mailbox-list


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b" alice@example.org", "alice@example.org"),
        (b"alice@example.org", "alice@example.org"),
        (b" <alice@example.org>", "alice@example.org"),
        (b" Alice <alice@example.org>", "alice@example.org"),
        (b' "Alice, of Wonderland" <alice@example.org>', "alice@example.org"),
        (b" Alice P. Liddell <alice@example.org>", "alice@example.org"),
        (b" Alice.Liddell <alice@example.org>", "alice@example.org"),
        (b" alice@example.org (Alice)", "alice@example.org"),
        (b" (the one) Alice (Liddell) <(here)alice@example.org(there)> (end)", "alice@example.org"),
        (b" (nested (comments (are)) fine) alice@example.org", "alice@example.org"),
        (b" (a \\) in a comment) alice@example.org", "alice@example.org"),
        (b" Alice\r\n\t<alice@example.org>", "alice@example.org"),
        (b" alice @ example.org", "alice@example.org"),
        (b" =?utf-8?q?Alice_in_W=C3=BCrzburg?= <alice@example.org>", "alice@example.org"),
        ("  Älice <alice@example.org>".encode(), "alice@example.org"),
        (b' "alice smith"@example.org', "alice smith@example.org"),
        (b' "bob@evil.test" <alice@example.org>', "alice@example.org"),
        (b' "bob@evil.test"@example.org', "bob@evil.test@example.org"),
        (b" bob%evil.test@example.org", "bob%evil.test@example.org"),
        (b" a/b=c+d@example.org", "a/b=c+d@example.org"),
        (b" " + b"x" * 200 + b"@example.org", "x" * 200 + "@example.org"),
        ("  jürgen@bücher.example".encode(), "jürgen@bücher.example"),
    ],
)
def test_the_author_is_read(body: bytes, expected: str) -> None:
    """RFC 5322 section 3.4, with RFC 6532 and obs-phrase."""
    found = authors(body)
    assert isinstance(found, tuple), found
    (address,) = found
    assert f"{address.local}@{address.domain}" == expected


def test_authors_may_be_several() -> None:
    """RFC 5322 section 3.6.2: a mailbox-list."""
    found = authors(b" Alice <alice@example.org>, (and) bob@example.org , \r\n carol@EXAMPLE.org")
    assert isinstance(found, tuple)
    assert [address.local for address in found] == ["alice", "bob", "carol"]
    assert author_domain(found) == "example.org"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b" alice@EXAMPLE.Org", "example.org"),
        ("  alice@Bücher.example".encode(), "xn--bcher-kva.example"),
        (b" alice@xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b" root@my_host.example.org", "my_host.example.org"),
        (b" root@localhost", "localhost"),
    ],
)
def test_the_domain_is_given_as_it_is_looked_up(body: bytes, expected: str) -> None:
    """RFC 9989 section 5.3.1: in A-form."""
    assert domain(body) == expected


# ---------------------------------------------------------------- forgeries

FORGERIES = {
    "no From": b"X-From: alice@example.org\r\n",
    "an empty From": b"From:\r\n",
    "two From fields": b"From: alice@example.org\r\nSubject: x\r\nFrom: bob@evil.test\r\n",
    "two equal From fields": b"From: alice@example.org\r\nFrom: alice@example.org\r\n",
    "two From fields, however written": b"FROM: alice@example.org\r\nfrom: bob@evil.test\r\n",
    "a second From with a blank before the colon": b"From : bob@evil.test\r\nFrom: alice@example.org\r\n",
    "a second From with a tab before the colon": b"From: alice@example.org\r\nFrom\t: bob@evil.test\r\n",
    "a second From with a fold before the colon": b"From\r\n : bob@evil.test\r\nFrom: alice@example.org\r\n",
    "a second From with folds before the colon": b"From: alice@example.org\r\nFROM \r\n\t\r\n : bob@evil.test\r\n",
    "a From with a fold before the colon": b"From\r\n : alice@example.org\r\n",
    "a second From that is empty": b"From: alice@example.org\r\nFrom:\r\n",
    "what parseaddr cuts short": b"From: alice@example.org)bob@evil.test\r\n",
    "a closing comment in front": b"From: )alice@example.org\r\n",
    "a comment without an end": b"From: alice@example.org (bob@evil.test\r\n",
    "a domain that ends in a comment without an end": b"From: alice@evil.test(.example.org\r\n",
    "a quote without an end": b'From: "alice@example.org <bob@evil.test>\r\n',
    "a quote that ends in an escape": b'From: "alice\\\r\n',
    "two angle addresses": b"From: <alice@example.org><bob@evil.test>\r\n",
    "an address behind an angle address": b"From: <alice@example.org> bob@evil.test\r\n",
    "an address in front of an angle address": b"From: alice@example.org <bob@evil.test>\r\n",
    "two addresses with a blank between": b"From: alice@example.org bob@evil.test\r\n",
    "two addresses with a semicolon between": b"From: alice@example.org; bob@evil.test\r\n",
    "two at-signs": b"From: alice@example.org@evil.test\r\n",
    "an address in angles in angles": b"From: <<alice@example.org>>\r\n",
    "no end of the angle": b"From: <alice@example.org\r\n",
    "an empty angle": b"From: Alice <>\r\n",
    "a source route": b"From: <@evil.test,@other.test:alice@example.org>\r\n",
    "a source route of one": b"From: <@evil.test:alice@example.org>\r\n",
    "a group": b"From: Friends: alice@example.org, bob@evil.test;\r\n",
    "an empty group": b"From: undisclosed-recipients:;\r\n",
    "a group with an angle": b"From: Alice: <alice@example.org>;\r\n",
    "a comma without an address": b"From: alice@example.org,\r\n",
    "two commas": b"From: alice@example.org,,alice@example.org\r\n",
    "an escape outside quotes": b"From: alice@example.org\\,bob@evil.test\r\n",
    "words and no address": b"From: Alice\r\n",
    "an encoded address": b"From: =?utf-8?q?alice=40example.org?=\r\n",
    "an encoded address in front of another": b"From: =?utf-8?q?=3Calice=40example.org=3E?=,bob@evil.test\r\n",
    "an encoded word as a local part": b"From: =?utf-8?q?alice=40example.org=00?=@evil.test\r\n",
    "an encoded word in an angle": b"From: <=?utf-8?b?YWxpY2VAZXhhbXBsZS5vcmc=?=@evil.test>\r\n",
    "an encoded word in a quoted local part": b'From: "=?utf-8?q?alice=40example.org=00?="@evil.test\r\n',
    "an encoded word in a domain": b"From: alice@=?utf-8?q?example.org?=\r\n",
    "a NUL": b"From: alice@example.org\x00@evil.test\r\n",
    "a bare CR": b"From: alice@example.org\rFrom: bob@evil.test\r\n",
    "a bare LF": b"From: alice@example.org\nFrom: bob@evil.test\r\n",
    "another control": b"From: alice@example.org\x0b\r\n",
    "a control of C1": "From: alice@example.org\u0085\r\n".encode(),
    "an octet that is no UTF-8": b"From: Al\xefce <alice@example.org>\r\n",
    "two dots": b"From: alice@example..org\r\n",
    "a dot at the end": b"From: alice@example.org.\r\n",
    "a dot at the start": b"From: .alice@example.org\r\n",
    "no local part": b"From: @example.org\r\n",
    "no domain": b"From: alice@\r\n",
    "a domain in quotes": b'From: alice@"example.org"\r\n',
    "something too long": b"From: " + b"x" * MAX_FROM_OCTETS + b"@example.org\r\n",
    "too many authors": b"From: a@b.org" + b",a@b.org" * MAX_AUTHORS + b"\r\n",
}


@pytest.mark.parametrize("header", FORGERIES.values(), ids=FORGERIES.keys())
def test_who_might_be_another_to_somebody_else_is_nobody(header: bytes) -> None:
    """Each is read by some program as alice@example.org, and by some other as somebody else, or as nobody."""
    assert isinstance(authors_of(header), AuthorFault)


@pytest.mark.parametrize(
    "body",
    [
        b" alice@[192.0.2.1]",
        b" alice@[IPv6:2001:db8::1]",
        b" alice@[example.org]",
        b" alice@example.org, bob@evil.test",
        b" alice@ex!ample.org",
        b" alice@-example.org",
        b" alice@" + b"x" * 64 + b".org",
        b" alice@" + b"x." * 130 + b"org",
        "  alice@exa\u202emple.org".encode(),
        "  alice@\u2488com".encode(),
    ],
)
def test_one_domain_is_needed(body: bytes) -> None:
    """RFC 9989 section 5.3.1: "If zero or more than one domain is extracted"."""
    assert isinstance(domain(body), AuthorFault)


def test_what_is_called_otherwise_is_another_field() -> None:
    header = b"From: a@example.org\r\nX-From: b@evil.test\r\nFrom-Me: c@evil.test\r\nResent-From: d@evil.test\r\n"
    assert authors_of(header) == (Address("a", "example.org"),)


# ---------------------------------------------------------------- properties


@given(st.binary(max_size=200))
def test_whatever_stands_in_a_header_is_read(header: bytes) -> None:
    """It is a stranger's, and nothing in it may raise."""
    found = authors_of(header)
    if isinstance(found, tuple):
        author_domain(found)


@given(st.text('ab"\\()<>@.,;: \t[]=?é', max_size=60))
def test_whatever_stands_in_from_is_read(body: str) -> None:
    """The same, where it hurts."""
    found = domain(body.encode())
    assert isinstance(found, str | AuthorFault)


ATEXT = st.sampled_from("abcXYZ019!#$%&'*+-/=?^_`{|}~")
ATOMS = st.text(ATEXT, min_size=1, max_size=8).filter(lambda atom: "=?" not in atom)
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda label: label[2:4] != "--")
DOMAINS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PLAIN = st.text(st.sampled_from("abc @.,;:<>[]é!"), max_size=10)
QUOTED = PLAIN.map(lambda text: f'"{text}"') | st.just(r'"a \" quote and a \\"')
COMMENTS = PLAIN.map(lambda text: f"({text})") | st.just(r"(a (nested) one, and \) this)")
CFWS = st.lists(st.sampled_from([" ", "\t", "\r\n "]) | COMMENTS, max_size=2).map("".join)
# RFC 2047 section 5: no encoded word may stand in an address.
LOCAL_PARTS = st.lists(ATOMS, min_size=1, max_size=3).map(".".join) | QUOTED


@st.composite
def mailboxes(draw: st.DrawFn) -> tuple[str, str]:
    """A mailbox as RFC 5322 has it, and the domain in it."""
    domain_name = draw(DOMAINS)
    spec = f"{draw(CFWS)}{draw(LOCAL_PARTS)}{draw(CFWS)}@{draw(CFWS)}{domain_name}{draw(CFWS)}"
    if draw(st.booleans()):
        return spec, domain_name
    words = draw(st.lists(ATOMS | QUOTED, max_size=3))
    phrase = "".join(f"{word}{draw(CFWS)} " for word in words)
    return f"{draw(CFWS)}{phrase}<{spec}>{draw(CFWS)}", domain_name


@given(st.lists(mailboxes(), min_size=1, max_size=4))
def test_every_mailbox_list_is_understood(boxes: list[tuple[str, str]]) -> None:
    """The grammar of RFC 5322 section 3.4 run backwards: each domain comes out as it went in."""
    found = authors(",".join(text for text, _ in boxes).encode())
    assert isinstance(found, tuple), found
    assert [address.domain for address in found] == [domain_name for _, domain_name in boxes]


@given(ATOMS, DOMAINS, PLAIN)
def test_the_library_writes_what_we_read(local: str, domain_name: str, name: str) -> None:
    """As a well-behaved program would say it."""
    address = LibraryAddress(name.replace("é", "e"), local, domain_name)
    assert authors(f" {address}".encode()) == (Address(local, domain_name),)


@pytest.mark.parametrize("filler", [b"(", b"()", b'""', b"a ", b"a.", b"a@b.c,", b"\\", b'"\\', b" ", b"<", b"(a)"])
def test_the_longest_from_is_read_in_no_time(filler: bytes) -> None:
    """One pass: nothing in it is looked at again and again."""
    body = (filler * MAX_FROM_OCTETS)[: MAX_FROM_OCTETS - 1]
    began = time.process_time()
    assert isinstance(authors(body + b"a"), AuthorFault)
    assert time.process_time() - began < 0.5
