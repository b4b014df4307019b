r"""Names and records between dnspython's form and ours.

A name of ours is text: labels with dots between them, in A-form and lower case, without the final dot; the root is "".
There are no escapes in it: a backslash is an octet of its label, for names come from macros that a stranger fills in
(RFC 7208 section 7), and no octet of his may join two labels. Names in answers may hold octets that we have no form
for; these are written as master files do, `\.` and `\032`. No host has such a name, and asked for again it is
another.

Standards: RFC 1035 section 2.3.4 (sizes), section 5.1 (escapes), RFC 5890 (A-form).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import dns.name
import dns.rdata
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.TLSA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import idna

from mailgate.dns.answer import RecordType

Record: TypeAlias = bytes | str | tuple[int, str] | tuple[int, int, int, bytes]

_MAX_LABEL_OCTETS = 63
_MAX_NAME_OCTETS = 255  # a length octet before each label, and one for the root

WIRE_TYPES = {record_type: dns.rdatatype.from_text(record_type.value) for record_type in RecordType}


class ImpossibleName(ValueError):
    """No such name can exist in the DNS. Its text says why, for people."""


def normal_name(name: str) -> str:
    """The name in our form.

    @raises ImpossibleName: an empty label, one that is too long, a name that is too long, or one without an A-form.
    """
    text = (name if name.isascii() else _a_form(name)).lower().removesuffix(".")
    if not text:
        return text
    if len(text) + 2 > _MAX_NAME_OCTETS:
        raise ImpossibleName(f"the name has {len(text) + 2} octets, more than {_MAX_NAME_OCTETS}")
    for label in text.split("."):
        if not label:
            raise ImpossibleName("the name has an empty label")
        if len(label) > _MAX_LABEL_OCTETS:
            raise ImpossibleName(f"a label of the name has {len(label)} octets, more than {_MAX_LABEL_OCTETS}")
    return text


def _a_form(name: str) -> str:
    """The name with its U-labels as A-labels. ASCII labels are left as they are: "_dmarc" is none of IDNA's."""
    try:
        labels = idna.uts46_remap(name, std3_rules=False).split(".")
        return ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels)
    except UnicodeError as error:
        raise ImpossibleName(f"the name has no A-form: {error}") from error


def to_wire_name(name: str) -> dns.name.Name:
    """The name for dnspython, from one in our form."""
    labels = name.encode("ascii").split(b".") if name else []
    return dns.name.Name([*labels, b""])


def from_wire_name(name: dns.name.Name) -> str:
    """The name in our form; octets that have none are escaped."""
    return name.to_text(omit_final_dot=True).lower() if len(name) > 1 else ""


def records_of(rdatas: Iterable[dns.rdata.Rdata]) -> tuple[Record, ...]:
    """The records as `Answer` holds them, in order; those of types that we never ask for are left out."""
    found: list[Record] = []
    for rdata in rdatas:
        match rdata:
            case dns.rdtypes.ANY.TXT.TXT():
                found.append(b"".join(rdata.strings))
            case dns.rdtypes.IN.A.A() | dns.rdtypes.IN.AAAA.AAAA():
                found.append(rdata.address)
            case dns.rdtypes.ANY.MX.MX():
                found.append((rdata.preference, from_wire_name(rdata.exchange)))
            case dns.rdtypes.ANY.CNAME.CNAME() | dns.rdtypes.ANY.PTR.PTR():
                found.append(from_wire_name(rdata.target))
            case dns.rdtypes.ANY.TLSA.TLSA():
                found.append((rdata.usage, rdata.selector, rdata.mtype, rdata.cert))
    return tuple(found)
