"""The grammar of addresses: text in, an `Address` out, or a GrammarError that says what is wrong.

Every pattern stands under the ABNF that it implements and uses possessive quantifiers, so that each character is looked
at a bounded number of times whatever the input. Nothing here looks anything up, and nothing decides whether an address
is ours; the two *keys* are what others compare addresses by.

Standards: RFC 5321 sections 4.1.2, 4.1.3 and 4.5.3.1 (mailboxes, literals, limits), RFC 6531 section 3.3 (UTF-8
addresses), RFC 5890 to 5894 with UTS #46 (IDNA), RFC 3461 section 4 (xtext), RFC 6533 section 3 (utf-8-addr-xtext).
"""

# ruff: noqa: ERA001  (ABNF looks like code)
from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

import idna

from mailgate.envelope import Address

MAX_LOCAL_PART_OCTETS = 64  # RFC 5321 section 4.5.3.1.1
MAX_DOMAIN_OCTETS = 255  # RFC 5321 section 4.5.3.1.2
MAX_PATH_OCTETS = 256  # RFC 5321 section 4.5.3.1.3, with the brackets
MAX_LABEL_OCTETS = 63  # RFC 1035 section 2.3.4


class GrammarError(ValueError):
    """The text is not what it should be. The message is for people and repeats nothing of the text."""


# RFC 6531 section 3.3 adds UTF8-non-ascii to atext and to qtextSMTP. Of that we leave out what can't be printed on one
# line: the C1 controls, and the line and paragraph separators. Surrogates are no characters.
_NOT_TEXT = "\x80-\x9f\u2028\u2029\ud800-\udfff"

#   Dot-string = Atom *("." Atom)
#   Atom       = 1*atext
#   atext      = ALPHA / DIGIT / "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "/" / "=" / "?" / "^" / "_" /
#                "`" / "{" / "|" / "}" / "~"        ; that is: printable, and none of RFC 5322's specials
# Python before 3.11.5 goes on at the wrong place when the last round of a possessive group fails behind a repetition
# (cpython issue 106052); so in such a group nothing stands behind one, here and below.
_ATEXT = rf"""[^\x00-\x20()<>\[\]:;@\\,."\x7f{_NOT_TEXT}]"""
_DOT_STRING = rf"{_ATEXT}++(?:\.{_ATEXT}{_ATEXT}*+)*+"

#   Quoted-string   = DQUOTE *QcontentSMTP DQUOTE
#   QcontentSMTP    = qtextSMTP / quoted-pairSMTP
#   quoted-pairSMTP = %d92 %d32-126
#   qtextSMTP       = %d32-33 / %d35-91 / %d93-126
_QUOTED_CONTENT = rf"""(?:[^\x00-\x1f"\\\x7f{_NOT_TEXT}]++|\\[\x20-\x7e])*+"""

#   Domain          = sub-domain *("." sub-domain)
#   sub-domain      = Let-dig [Ldh-str]             ; RFC 6531: or a U-label
#   address-literal = "[" ( IPv4-address-literal / IPv6-address-literal / General-address-literal ) "]"
# What looks like a domain, up to what can't belong to one; `_check_domain` has the last word.
_DOMAIN_LIKE = rf"[^\x00-\x2c/:-@\[-`{{-\x7f{_NOT_TEXT}]++"
_LITERAL_LIKE = r"\[[0-9A-Za-z:.\-]++\]"
_DOMAIN = rf"(?:{_DOMAIN_LIKE}|{_LITERAL_LIKE})"

#   Mailbox = Local-part "@" ( Domain / address-literal )
#   Local-part = Dot-string / Quoted-string
_MAILBOX_TEXT = rf"""(?:(?P<dot>{_DOT_STRING})|"(?P<quoted>{_QUOTED_CONTENT})")@(?P<domain>{_DOMAIN})"""
_MAILBOX = re.compile(_MAILBOX_TEXT)

#   Path = "<" [ A-d-l ":" ] Mailbox ">"
#   A-d-l = At-domain *( "," At-domain )
#   At-domain = "@" Domain
#   Reverse-path = Path / "<>"
_PATH = re.compile(rf"<(?:(?:@{_DOMAIN}(?:,@{_DOMAIN}){{0,40}}:)?{_MAILBOX_TEXT})?>")

#   Let-dig = ALPHA / DIGIT
#   Ldh-str = *( ALPHA / DIGIT / "-" ) Let-dig
# One dot may stand behind the last label. RFC 5321 does not have it; people and scripts write it, and it means the
# same domain, so that refusing it would only hide that from the check for relaying.
# Put so that each round is safe: behind a dot or a hyphen stands a Let-dig, or behind a hyphen another one.
_LDH_DOMAIN = re.compile(r"[A-Za-z0-9]++(?:[.\-][A-Za-z0-9][A-Za-z0-9]*+|(?=--)-)*+\.?+")

_QUOTED_PAIR = re.compile(r"\\(.)")


def parse_mailbox(text: str) -> Address:
    """The Address that this Mailbox denotes.

    @raises GrammarError: it is no Mailbox, or a part of it is too long.
    """
    match = _MAILBOX.fullmatch(text)
    if match is None:
        raise GrammarError("not an address of the form local-part@domain")
    return _address_of(match)


def parse_path(text: str, start: int = 0) -> tuple[Address | None, int]:
    """The Address of the Path that begins at `start`, None for `<>`, and where the text goes on behind it.

    A source route is checked for its form and dropped (RFC 5321 section 4.1.1.3 and appendix C).

    @raises GrammarError: no Path begins there.
    """
    match = _PATH.match(text, start)
    if match is None:
        raise GrammarError("not a path of the form <local-part@domain>")
    if match["domain"] is None:
        return None, match.end()
    if _octets(match[0]) > MAX_PATH_OCTETS:
        raise GrammarError(f"a path has at most {MAX_PATH_OCTETS} octets")
    return _address_of(match), match.end()


def _address_of(match: re.Match[str]) -> Address:
    local: str | None = match["dot"]
    if local is None:
        quoted = match["quoted"]
        size = _octets(quoted) + 2
        local = _QUOTED_PAIR.sub(r"\1", quoted)
    else:
        size = _octets(local)
    if size > MAX_LOCAL_PART_OCTETS:
        raise GrammarError(f"a local part has at most {MAX_LOCAL_PART_OCTETS} octets")
    domain = match["domain"]
    check_domain(domain)
    return Address(local, domain)


def check_domain(domain: str) -> None:
    """Return if this is a domain name in A- or U-form, or an address literal in its brackets.

    @raises GrammarError: it is neither.
    """
    if len(domain) > MAX_LABEL_OCTETS or not _LDH_DOMAIN.fullmatch(domain):
        domain_key(domain)


@lru_cache(maxsize=8192)
def domain_key(domain: str) -> str:
    """What domains are compared by: "example.test", "xn--bcher-kva.example", "[192.0.2.1]", "[IPv6:2001:db8::1]".

    Lower case, in A-form by UTS #46, without a trailing dot; address literals in their shortest form, an IPv4-mapped
    one as the IPv4 address that it means.

    @raises GrammarError: this is no domain.
    """
    if _octets(domain) > MAX_DOMAIN_OCTETS:
        raise GrammarError(f"a domain has at most {MAX_DOMAIN_OCTETS} octets")
    if domain.startswith("["):
        return _literal_key(domain)
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except UnicodeError as error:  # idna.IDNAError is one
            raise GrammarError("not a valid internationalized domain name") from error
    if not _LDH_DOMAIN.fullmatch(domain):
        raise GrammarError("a domain is made of letters, digits and hyphens, with single dots between its labels")
    if len(domain) > MAX_LABEL_OCTETS and any(len(label) > MAX_LABEL_OCTETS for label in domain.split(".")):
        raise GrammarError(f"a label of a domain has at most {MAX_LABEL_OCTETS} octets")
    return domain.lower().removesuffix(".")


#   IPv4-address-literal = Snum 3("." Snum)
#   IPv6-address-literal = "IPv6:" IPv6-addr
#   General-address-literal = Standardized-tag ":" 1*dcontent    ; no other tag has ever been registered
def _literal_key(literal: str) -> str:
    if not literal.endswith("]"):
        raise GrammarError("an address literal ends with a bracket")
    inner = literal[1:-1]
    try:
        if inner[:5].lower() != "ipv6:":
            return f"[{IPv4Address(inner)}]"
        address = IPv6Address(inner[5:])
    except ValueError as error:
        raise GrammarError("not an address literal of IPv4, or of IPv6 with its tag") from error
    if address.scope_id is not None:
        raise GrammarError("an address literal has no zone")
    mapped = address.ipv4_mapped
    return f"[{mapped}]" if mapped is not None else f"[IPv6:{address}]"


def local_key(local: str) -> str:
    """What local parts are compared by: without case, and composed alike (NFC).

    RFC 5321 section 2.4 calls local parts case-sensitive and then says what it costs; nobody means two people by them.
    """
    if local.isascii():
        return local.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", local).casefold())


def has_routing(local: str) -> bool:
    """Whether this local part could ask a careless host to pass the message on: `%`, `!` or `@` is in it."""
    return "%" in local or "!" in local or "@" in local


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


#   xtext   = *( xchar / hexchar )
#   xchar   = any ASCII CHAR between "!" (33) and "~" (126) inclusive, except for "+" and "="
#   hexchar = ASCII "+" immediately followed by two upper case hexadecimal digits
_XTEXT = re.compile(r"(?:[!-*,-<>-~]++|\+[0-9A-F][0-9A-F])*+")
_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
_NOT_XCHAR = re.compile(rb"[^!-*,-<>-~]")
_CONTROL = re.compile(rf"[\x00-\x1f\x7f{_NOT_TEXT}]")


def decode_xtext(text: str) -> str:
    """The text that was encoded; hexchars may make up UTF-8.

    RFC 3461 sections 4.2 and 4.4 allow printable characters only before the encoding, so control characters are
    refused: what comes out may be written into the header of a delivery status notification.

    @raises GrammarError: it is no xtext, or holds what may not be in it.
    """
    if not _XTEXT.fullmatch(text):
        raise GrammarError("not xtext")
    if "+" in text:
        octets = _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")
        try:
            text = octets.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GrammarError("xtext that is not UTF-8") from error
        if _CONTROL.search(text):
            raise GrammarError("a control character in xtext")
    return text


def encode_xtext(text: str) -> str:
    """The text as xtext; what is not ASCII is encoded as the octets of its UTF-8."""
    return _NOT_XCHAR.sub(lambda match: b"+%02X" % match[0][0], text.encode("utf-8")).decode("ascii")


#   utf-8-addr-xtext    = 1*(QCHAR / EmbeddedUnicodeChar)
#   utf-8-addr-unitext  = 1*(QUCHAR / EmbeddedUnicodeChar)
#   QCHAR               = %x21-2a / %x2c-3c / %x3e-5b / %x5d-7e     ; not "+", "=", "\"; no control, no SP
#   QUCHAR              = QCHAR / UTF8-2 / UTF8-3 / UTF8-4
#   EmbeddedUnicodeChar = %x5C.78 "{" HEXPOINT "}"                  ; starts with "\x"
# HEXPOINT lists, besides what is not ASCII, the few ASCII characters that need it; we take any character written so,
# and then refuse controls.
_QUCHARS = re.compile(r"[!-*,-<>-\[\]-~\xa0-\U0010ffff]*+")
_EMBEDDED_CHARACTER = re.compile(r"\\x\{([0-9A-F]{2,6})\}")


def decode_utf_8_address(text: str) -> str:
    r"""The address in a utf-8-addr-xtext or utf-8-addr-unitext, where `\x{F6}` stands for "ö".

    @raises GrammarError: it is neither, or holds a control character.
    """
    if not text or not _QUCHARS.fullmatch(_EMBEDDED_CHARACTER.sub("", text)):
        raise GrammarError("not utf-8-addr-xtext")
    try:
        text = _EMBEDDED_CHARACTER.sub(lambda match: chr(int(match[1], 16)), text)
    except ValueError as error:
        raise GrammarError("a code point beyond Unicode") from error
    if _CONTROL.search(text):
        raise GrammarError("a control character in utf-8-addr-xtext")
    return text
