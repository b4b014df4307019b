"""The tag=value lists in which DKIM and ARC write signatures and keys.

Not here: what a tag means, and which of them there have to be.

Standards: RFC 6376 section 3.2 (tag=value lists), section 2.8 (FWS), section 3.5 (base64string, domain names); RFC 8616
(UTF-8 in signatures of internationalized mail).
"""

from __future__ import annotations

import binascii
import re

from mailgate.smtp.grammar import GrammarError, domain_key


class MalformedTags(Exception):
    """This is no tag=value list, or a value in it is not what its tag wants. The text is for people."""


TagList = dict[bytes, bytes]

#   tag-list  = tag-spec *( ";" tag-spec ) [ ";" ]
#   tag-spec  = [FWS] tag-name [FWS] "=" [FWS] tag-value [FWS]
#   tag-name  = ALPHA *ALNUMPUNC            ; ALNUMPUNC = ALPHA / DIGIT / "_"
#   tag-value = [ tval *( 1*(WSP / FWS) tval ) ] ; tval = 1*VALCHAR ; VALCHAR = %x21-3A / %x3C-7E
_TAG_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_]*+")
_TAG_VALUE = re.compile(rb"[ \t!-:<-~\x80-\xff]*+")
_WSP = b" \t"
_BLANKS = re.compile(rb"[ \t]++")


def parse_tag_list(text: bytes) -> TagList:
    """The tags of a list, folded or not, without the blanks around their values. @raises MalformedTags."""
    unfolded = text.replace(b"\r\n", b"") if b"\r" in text else text
    specs = unfolded.split(b";")
    if not specs[-1].strip(_WSP):
        specs.pop()
    tags: TagList = {}
    for spec in specs:
        name, equals, value = spec.partition(b"=")
        name = name.strip(_WSP)
        value = value.strip(_WSP)
        if not equals or not _TAG_NAME.fullmatch(name):
            raise MalformedTags("it is not a list of tags")
        if not _TAG_VALUE.fullmatch(value):
            raise MalformedTags(f"{name.decode('ascii')}= holds a character that may not stand there")
        if name in tags:
            raise MalformedTags(f"{name.decode('ascii')}= occurs twice")
        tags[name] = value
    return tags


def without_value(text: bytes, tag: bytes) -> bytes:
    """A list that has this tag, as it stands but with nothing behind the tag's equals sign.

    That is how the field that holds a signature is itself signed (RFC 6376 section 3.7).
    """
    specs = text.split(b";")
    for number, spec in enumerate(specs):
        name, _, _ = spec.partition(b"=")
        if name.strip(b" \t\r\n") == tag:
            specs[number] = name + b"="
    return b";".join(specs)


def base64_value(value: bytes) -> bytes:
    """The octets of a base64string, in which blanks may stand anywhere. @raises MalformedTags."""
    try:
        return binascii.a2b_base64(_BLANKS.sub(b"", value), strict_mode=True)
    except binascii.Error as error:
        raise MalformedTags("it is not base64") from error


#   domain-name = sub-domain 1*("." sub-domain)        ; from RFC 5321, and therefore with letters, digits and hyphens
#   selector    = sub-domain *( "." sub-domain )
# Selectors with an underscore are in use, and so are domains.
_DNS_NAME = re.compile(r"[A-Za-z0-9_]++(?:[.\-][A-Za-z0-9_][A-Za-z0-9_]*+|(?=--)-)*+")
_MAX_NAME_OCTETS = 253
_MAX_LABEL_OCTETS = 63


def name_value(value: bytes) -> str:
    """A domain name or selector in A-form, lower case. @raises MalformedTags: it is none."""
    try:
        name = value.decode("utf-8")
        if not name.isascii():
            name = domain_key(name)
    except (UnicodeDecodeError, GrammarError) as error:
        raise MalformedTags("it is no domain name") from error
    is_long = len(name) > _MAX_NAME_OCTETS or any(len(label) > _MAX_LABEL_OCTETS for label in name.split("."))
    if is_long or not _DNS_NAME.fullmatch(name):
        raise MalformedTags("it is no domain name")
    return name.lower()


_NUMBER = re.compile(rb"[0-9]++")


def number_value(value: bytes, max_digits: int) -> int:
    """An unsigned decimal number of so many digits at most. @raises MalformedTags."""
    if len(value) > max_digits or not _NUMBER.fullmatch(value):
        raise MalformedTags("it is no number")
    return int(value)


def split_value(value: bytes, separator: bytes = b":") -> list[bytes]:
    """The members of a list inside a value, without the blanks around them."""
    return [member.strip(_WSP) for member in value.split(separator)]
