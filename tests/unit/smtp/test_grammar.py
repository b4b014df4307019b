"""Addresses, and the keys that they are compared by."""

# ruff: noqa: RUF001  (look-alikes are what some cases are about)
from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.envelope import Address
from mailgate.smtp.grammar import (
    GrammarError,
    check_domain,
    decode_utf_8_address,
    decode_xtext,
    domain_key,
    encode_xtext,
    has_routing,
    local_key,
    parse_mailbox,
    parse_path,
)
from tests.support.addresses import ADDRESSES, DOMAINS, LOCAL_PARTS, QUOTED_STRINGS

MAILBOXES = [
    # RFC 5321 section 2.3.11, appendix D and elsewhere.
    ("Smith@bar.com", Address("Smith", "bar.com")),
    ("userc@d.bar.org", Address("userc", "d.bar.org")),
    ("SAM@HOSTY.ARPA", Address("SAM", "HOSTY.ARPA")),
    ("hostmaster@xyz.com", Address("hostmaster", "xyz.com")),
    ("a@b", Address("a", "b")),
    ("a!b%c@example.test", Address("a!b%c", "example.test")),
    ("!#$%&'*+-/=?^_`{|}~0@example.test", Address("!#$%&'*+-/=?^_`{|}~0", "example.test")),
    ("a.b.c@example.test", Address("a.b.c", "example.test")),
    # Section 4.1.2: a quoted form denotes the same local part as the form without quotes.
    ('"Joe.\\,Jones"@example.test', Address("Joe.,Jones", "example.test")),
    ('"alice"@example.test', Address("alice", "example.test")),
    ('"\\a\\l"@example.test', Address("al", "example.test")),
    ('"a b"@example.test', Address("a b", "example.test")),
    ('"a@b"@example.test', Address("a@b", "example.test")),
    ('"a>b"@example.test', Address("a>b", "example.test")),
    ('"a\\"b\\\\c"@example.test', Address('a"b\\c', "example.test")),
    ('""@example.test', Address("", "example.test")),
    ('"."@example.test', Address(".", "example.test")),
    # Section 4.1.3.
    ("a@[123.255.37.2]", Address("a", "[123.255.37.2]")),
    ("a@[IPv6:2001:db8::1]", Address("a", "[IPv6:2001:db8::1]")),
    ("a@[ipv6:::1]", Address("a", "[ipv6:::1]")),
    ("a@[IPv6:::ffff:192.0.2.1]", Address("a", "[IPv6:::ffff:192.0.2.1]")),
    # RFC 6531 section 3.3.
    ("jörg@bücher.example", Address("jörg", "bücher.example")),
    ('"jörg müller"@example.test', Address("jörg müller", "example.test")),
    ("用户@例え.テスト", Address("用户", "例え.テスト")),
    ("a@xn--bcher-kva.example", Address("a", "xn--bcher-kva.example")),
    ("😀@example.test", Address("😀", "example.test")),
    # Limits, RFC 5321 section 4.5.3.1.
    ("a" * 64 + "@example.test", Address("a" * 64, "example.test")),
    ("ö" * 32 + "@example.test", Address("ö" * 32, "example.test")),
    ("a@" + "b" * 63 + ".test", Address("a", "b" * 63 + ".test")),
    ("a@" + ("b" * 63 + ".") * 3 + "c" * 63, Address("a", ("b" * 63 + ".") * 3 + "c" * 63)),
    # One dot behind the domain means the same domain; see _LDH_DOMAIN.
    ("a@example.test.", Address("a", "example.test.")),
    ("a@1.2.3.4", Address("a", "1.2.3.4")),
    ("a@b--c.test", Address("a", "b--c.test")),
]


@pytest.mark.parametrize(("text", "address"), MAILBOXES)
def test_a_mailbox_is_understood(text: str, address: Address) -> None:
    """RFC 5321 section 4.1.2, RFC 6531 section 3.3."""
    assert parse_mailbox(text) == address


NO_MAILBOXES = [
    "",
    "@",
    "a",
    "a@",
    "@example.test",
    "a@b@example.test",
    "a b@example.test",
    " a@example.test",
    "a@example.test ",
    "a @example.test",
    "<a@example.test>",
    "a@x..test",
    "a@.test",
    "a@test..",
    "a@.",
    "a@-test",
    "a@test-",
    "a@a-.test",
    "a@ex ample.test",
    "a@ex_ample.test",
    "a@example.test(comment)",
    "a(comment)@example.test",
    "a(b@example.test",
    "a)b@example.test",
    ".a@example.test",
    "a.@example.test",
    "a..b@example.test",
    "a,b@example.test",
    "a:b@example.test",
    "a;b@example.test",
    "a\\b@example.test",
    "a[b]@example.test",
    '"a@example.test',
    'a"@example.test',
    'a"b"@example.test',
    '"a"b@example.test',
    '"a"."b"@example.test',
    '"a"b"@example.test',
    '"a\\"@example.test',
    '"ab\\ö"@example.test',
    '"a\x00b"@example.test',
    '"a\rb"@example.test',
    '"a\nb"@example.test',
    '"a\r\nb"@example.test',
    '"a\\\nb"@example.test',
    '"a\tb"@example.test',
    '"a\x7fb"@example.test',
    '"a\x85b"@example.test',
    '"a\u2028b"@example.test',
    "a\x00b@example.test",
    "a\nb@example.test",
    "a@example.test\n",
    "a@exam\nple.test",
    "a\x9b@example.test",
    "a\u2029@example.test",
    "a\ud800@example.test",
    "a@\ud800.test",
    "a@[192.0.2.1",
    "a@192.0.2.1]",
    "a@[]",
    "a@[192.0.2]",
    "a@[192.0.2.256]",
    "a@[192.0.02.1]",
    "a@[192.0.2.1/24]",
    "a@[2001:db8::1]",
    "a@[IPv6:]",
    "a@[IPv6:2001:db8::g]",
    "a@[IPv6:fe80::1%eth0]",
    "a@[IPv6:192.0.2.1]",
    "a@[IPv4:192.0.2.1]",
    "a@[tag:content]",
    "a@[192.0.2.1].test",
    "a@[192.0.2.1].",
    # RFC 5890 and UTS #46: no domains, or no longer ones once they are mapped.
    "a@☃..test",
    "a@x。。test",
    "a@℀.test",
    "a@-ö.test",
    "a@\u0301ö.test",
    "a@\u202eö.test",
    "a@" + "ö" * 60 + ".test",
    # Too long.
    "a" * 65 + "@example.test",
    "ö" * 33 + "@example.test",
    '"' + "a" * 63 + '"@example.test',
    "a@" + "b" * 64 + ".test",
    "a@" + ("b" * 63 + ".") * 3 + "c" * 63 + ".d",
    "a@" + "b." * 5000 + "test",
    "a@" + "ö" * 100_000,
]


@pytest.mark.parametrize("text", NO_MAILBOXES)
def test_what_is_no_mailbox_is_refused(text: str) -> None:
    """Nothing is repaired: who repairs an address delivers to another one than the next host does."""
    with pytest.raises(GrammarError):
        parse_mailbox(text)


@given(ADDRESSES)
def test_every_address_round_trips_through_its_text(address: Address) -> None:
    assert parse_mailbox(str(address)) == address


@given(LOCAL_PARTS, QUOTED_STRINGS, DOMAINS)
def test_every_valid_mailbox_comes_back_from_its_shortest_form(local: str, quoted: str, domain: str) -> None:
    """Quoted where that was not needed, with pairs where none were: the Address is the same as of its shortest form."""
    for text in (f"{local}@{domain}", f"{quoted}@{domain}"):
        address = parse_mailbox(text)
        assert parse_mailbox(str(address)) == address
        assert len(str(address)) <= len(text)


@given(st.text(max_size=80) | st.text('ab@.<>[]"\\: \n\0ö-', max_size=20))
def test_any_text_gives_an_address_or_a_grammar_error(text: str) -> None:
    """And what is understood round-trips, and has nothing in it that could break a line."""
    try:
        address = parse_mailbox(text)
    except GrammarError:
        return
    assert parse_mailbox(str(address)) == address
    assert str(address).isprintable() or not str(address).isascii()
    assert not {unicodedata.category(char) for char in str(address)} & {"Cc", "Cs", "Zl", "Zp"}


PATHS = [
    ("<a@b.test>", Address("a", "b.test")),
    ("<>", None),
    ('<"a>b"@b.test>', Address("a>b", "b.test")),
    # RFC 5321 section 4.1.1.3 and appendix C: a source route is ignored.
    ("<@hosta.int,@jkl.org:userc@d.bar.org>", Address("userc", "d.bar.org")),
    ("<@hosta.int:a@b.test>", Address("a", "b.test")),
    ("<@[192.0.2.1],@[IPv6:::1]:a@b.test>", Address("a", "b.test")),
]


@pytest.mark.parametrize(("path", "address"), PATHS)
def test_a_path_is_understood_and_its_end_is_told(path: str, address: Address | None) -> None:
    assert parse_path(path) == (address, len(path))
    assert parse_path(f"FROM:{path} SIZE=1>", 5) == (address, 5 + len(path))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "<",
        "< >",
        "<a@b.test",
        "a@b.test>",
        "<a@b.test >",
        "< a@b.test>",
        "<<a@b.test>>",
        "<a>",
        "<@a.test>",
        "<@a.test:>",
        "<@a.test,:a@b.test>",
        "<@a.test@c.test:a@b.test>",
        "<a.test:a@b.test>",
        "<@a.test,b.test:a@b.test>",
        "<" + "a" * 64 + "@" + "b." * 94 + "test>",  # 256 octets are the limit, with the brackets
        "<@" + "a." * 130 + "test:a@b.test>",
    ],
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(GrammarError):
        parse_path(path)


def test_a_path_has_256_octets_at_most() -> None:
    """RFC 5321 section 4.5.3.1.3, "including the punctuation and element separators"."""
    path = "<" + "a" * 64 + "@" + "b." * 93 + "test>"
    assert parse_path(path[:60] + path[61:])[1] == 256
    assert len(path) == 257
    with pytest.raises(GrammarError):
        parse_path(path)


KEYS = [
    ("example.test", "example.test"),
    ("EXAMPLE.Test", "example.test"),
    ("example.test.", "example.test"),
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.example.", "xn--bcher-kva.example"),
    ("bu\u0308cher.example", "xn--bcher-kva.example"),
    ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
    ("bücher。example", "xn--bcher-kva.example"),
    ("straße.example", "xn--strae-oqa.example"),  # IDNA 2008: no longer "strasse"
    ("ｅｘａｍｐｌｅ.test", "example.test"),
    ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    ("[192.0.2.1]", "[192.0.2.1]"),
    ("[IPv6:2001:DB8:0:0::1]", "[IPv6:2001:db8::1]"),
    ("[ipv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
    ("[IPv6:::FFFF:192.0.2.1]", "[192.0.2.1]"),
    ("[IPv6:::ffff:c000:201]", "[192.0.2.1]"),
]


@pytest.mark.parametrize(("domain", "key"), KEYS)
def test_domains_that_mean_the_same_have_one_key(domain: str, key: str) -> None:
    """RFC 5321 section 2.3.5 (no case), RFC 6531 section 3.7.1 (A- and U-form are one), RFC 5952 (IPv6)."""
    assert domain_key(domain) == key
    assert domain_key(key) == key


@pytest.mark.parametrize(
    "domain",
    ["", ".", "a..b", "a b", "a_b.test", "[", "[]", "[a]", "[IPv6:fe80::1%eth0]", "☃☃.\u202e", "a" * 64, "a." * 200],
)
def test_what_is_no_domain_has_no_key(domain: str) -> None:
    with pytest.raises(GrammarError):
        domain_key(domain)
    with pytest.raises(GrammarError):
        check_domain(domain)


@given(DOMAINS)
def test_a_key_is_its_own_key_whatever_the_case(domain: str) -> None:
    key = domain_key(domain)
    assert domain_key(key) == key
    assert domain_key(domain.upper()) == key or not domain.isascii()
    assert key.isascii()


@given(st.text(max_size=300))
def test_any_text_has_a_domain_key_or_a_grammar_error(text: str) -> None:
    try:
        key = domain_key(text)
    except GrammarError:
        return
    assert domain_key(key) == key
    assert len(key) <= 255


@pytest.mark.parametrize(
    ("local", "key"),
    [
        ("Alice", "alice"),
        ("ÄÖ", "äö"),
        ("a\u0308", "ä"),
        ("A\u0308", "ä"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\u1fb2", "\u1f70\u03b9"),
        ("\u1fb3\u0300", "\u1f70\u03b9"),
    ],
)
def test_local_parts_are_compared_without_case_and_composed_alike(local: str, key: str) -> None:
    """RFC 6532 section 3.1 asks for NFC."""
    assert local_key(local) == key


@given(st.text())
def test_a_local_key_is_its_own_key(text: str) -> None:
    key = local_key(text)
    assert local_key(key) == key
    assert local_key(unicodedata.normalize("NFD", text)) == key


@pytest.mark.parametrize(
    ("local", "expected"), [("a", False), ("a+b", False), ("a%b", True), ("b!a", True), ("a@b", True)]
)
def test_local_parts_that_ask_for_routing_are_told(local: str, expected: bool) -> None:
    """RFC 5321 appendix F.2: `a%b` and `b!a` were once passed on to b."""
    assert has_routing(local) is expected


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ("", ""),
        ("QQ314159", "QQ314159"),
        ("a+2Bb+3Dc@example.test", "a+b=c@example.test"),
        ("a+20b", "a b"),
        ("+C3+B6", "ö"),
    ],
)
def test_xtext_is_decoded(encoded: str, text: str) -> None:
    """RFC 3461 section 4."""
    assert decode_xtext(encoded) == text
    assert encode_xtext(text) == encoded


@pytest.mark.parametrize(
    "encoded", ["a=b", "a+", "a+2", "a+2b", "a+GG", "a b", "a\x00", "ö", "+C3", "+0D+0A", "+7F", "+C2+85"]
)
def test_what_is_no_xtext_is_refused(encoded: str) -> None:
    """Upper-case digits only; and once decoded, nothing that could break a line of a delivery status notification."""
    with pytest.raises(GrammarError):
        decode_xtext(encoded)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])))
def test_text_round_trips_through_xtext(text: str) -> None:
    encoded = encode_xtext(text)
    assert encoded.isascii()
    assert decode_xtext(encoded) == text


@pytest.mark.parametrize(
    ("encoded", "address"),
    [
        ("jörg@bücher.example", "jörg@bücher.example"),
        (r"j\x{F6}rg@example.test", "jörg@example.test"),
        (r"a\x{2B}b\x{3D}c\x{5C}@example.test", "a+b=c\\@example.test"),
        (r"\x{1F600}@example.test", "😀@example.test"),
    ],
)
def test_utf_8_addresses_of_orcpt_are_decoded(encoded: str, address: str) -> None:
    """RFC 6533 section 3."""
    assert decode_utf_8_address(encoded) == address


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "a+b",
        "a=b",
        "a b",
        "a\\b",
        r"\x{}",
        r"\x{f6}",
        r"\x{F6",
        r"\x{0A}",
        r"\x{D800}",
        r"\x{110000}",
        r"\x{0000000A}",
        "\x85",
    ],
)
def test_what_is_no_utf_8_address_is_refused(encoded: str) -> None:
    with pytest.raises(GrammarError):
        decode_utf_8_address(encoded)
