"""The bound on the time that reading a DNS message takes.

The bombs below took dnspython between 0.1 and 10 seconds each when they were measured; no time is measured here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.dns.guard import is_affordable

QUESTION = b"\7example\4test\0" + struct.pack("!2H", 1, 1)
OWNER = b"\xc0\x0c"
START = 12 + len(QUESTION)
LONG = struct.pack("!H", 0xC000 | START)  # a pointer to the name of 122 labels with which a bomb begins


def record(kind: int, data: bytes, owner: bytes = OWNER, class_: int = 1) -> bytes:
    return owner + struct.pack("!2HIH", kind, class_, 60, len(data)) + data


def message(*records: bytes, flags: int = 0x8180) -> bytes:
    return struct.pack("!6H", 1, flags, 1, len(records), 0, 0) + QUESTION + b"".join(records)


def bomb(count: int, make: Callable[[int], bytes]) -> bytes:
    """Behind a record of a very long name, so many others that may point to it."""
    return message(record(1, bytes(4), b"\1a" * 120 + OWNER), *(make(number) for number in range(count)))


BOMBS = {
    "many addresses": bomb(4000, lambda n: record(1, struct.pack("!I", n))),
    "many addresses of a long name": bomb(1000, lambda n: record(1, struct.pack("!I", n), LONG)),
    "mail exchangers with a long name": bomb(100, lambda n: record(15, struct.pack("!H", n) + LONG)),
    "names of names": bomb(100, lambda n: record(12, b"\2" + struct.pack("!H", n | 0x4040) + LONG)),
    "SOA records": bomb(20, lambda n: record(6, LONG + LONG + struct.pack("!5I", n, 2, 3, 4, 5))),
    "services, which are not asked for": bomb(100, lambda n: record(33, struct.pack("!3H", n, 1, 1) + LONG)),
    "unknown types": bomb(100, lambda n: record(1000 + n, b"", LONG)),
    "Chaosnet addresses, which hold names": bomb(100, lambda n: record(1, LONG + struct.pack("!H", n), class_=3)),
    "a text of short strings": message(record(16, b"\1a" * 32_000)),
    "a service binding of many keys": message(
        record(64, b"\0\1\0" + b"".join(struct.pack("!2H", key, 0) for key in range(16_000)))
    ),
    "EDNS with many options": message(b"\0" + struct.pack("!2HIH", 41, 1232, 0, 60_000) + b"\0\xff\0\0" * 15_000),
    "many questions": struct.pack("!6H", 1, 0x8180, 3000, 0, 0, 0) + QUESTION * 3000,
    "an update": message(record(1, bytes(4)), flags=0xA880),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_takes_too_long_to_read_is_not_read(name: str) -> None:
    """A stranger's zone says what a resolver hands us: it must not stop the reactor."""
    assert len(BOMBS[name]) <= 65_535
    assert not is_affordable(BOMBS[name])


def ordinary(kind: str, *texts: str) -> bytes:
    query = dns.message.make_query("a.long.name.of.some.host.example.test.", kind)
    response = dns.message.make_response(query)
    response.use_edns(0, payload=1232)
    response.answer.append(dns.rrset.from_text(query.question[0].name, 300, "IN", kind, *texts))
    response.authority.append(dns.rrset.from_text("example.test.", 300, "IN", "NS", "ns1.example.test.", "ns2.test."))
    response.additional.append(dns.rrset.from_text("ns2.test.", 300, "IN", "A", "192.0.2.1"))
    return response.to_wire(max_size=65_535)


@pytest.mark.parametrize(
    "wire",
    [
        ordinary("A", *(f"192.0.2.{number}" for number in range(250))),
        ordinary("AAAA", *(f"2001:db8::{number:x}" for number in range(250))),
        ordinary("MX", *(f"{number} mx{number}.mail.protection.example.test." for number in range(150))),
        ordinary("TXT", *(f'"verification={number}" "{"x" * 200}"' for number in range(200))),
        ordinary("TXT", " ".join(f'"{"x" * 255}"' for _ in range(230))),
        ordinary("PTR", *(f"host{number}.example.test." for number in range(150))),
        ordinary("TLSA", *(f"3 1 1 {number:064x}" for number in range(100))),
        ordinary("CNAME", "x.test."),
    ],
)
def test_the_longest_ordinary_answers_are_read(wire: bytes) -> None:
    """Companies have a hundred TXT records at their name; nobody has hundreds of mail exchangers."""
    assert is_affordable(wire)
    dns.message.from_wire(wire)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_octets_are_judged(octets: bytes) -> None:
    """What is malformed is dnspython's business; it is short of the bound up to where it is."""
    is_affordable(octets)
    is_affordable(struct.pack("!6H", 1, 0x8180, 1, 3, 2, 1) + QUESTION + octets)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_message_is_judged(which: int, place: int, octet: int) -> None:
    """An octet is changed somewhere: pointers to themselves, lengths beyond the end."""
    wire = bytearray(list(BOMBS.values())[which])
    wire[place] = octet
    is_affordable(bytes(wire))


@pytest.mark.parametrize("target", [START, START + 2, 0x3FFF])
def test_a_name_that_points_at_itself_or_forward_ends_the_walk(target: int) -> None:
    """RFC 1035 section 4.1.4: a pointer leads to a prior occurrence."""
    wire = message(*[record(1, bytes(4), struct.pack("!H", 0xC000 | target))] * 3)
    assert is_affordable(wire)
    with pytest.raises(dns.name.BadPointer):
        dns.message.from_wire(wire)
