"""Whether a DNS message is worth reading: a bound on the time that reading it would take, found without reading it.

dnspython reads an ordinary answer in a fraction of a millisecond. But 16 KB can name a thousand mail exchangers by
pointers to one name of 127 labels, and take seconds, for which no other session would hear from us. So the records are
walked once, octet by octet, and their cost is added up as measured; the walk ends as soon as it is over the bound.

It doesn't judge a message: what is malformed may pass here, and dnspython refuses it.

Standards: RFC 1035 section 4.1 (the format), 4.1.4 (compression).
"""

from __future__ import annotations

import struct
from typing import Final

# In microseconds on a busy machine, roughly.
BUDGET: Final = 50_000
_RECORD: Final = 60
_OWNER_LABEL: Final = 2
_SQUARED_LABEL: Final = 0.25  # names in records are hashed, at a cost that grows with the square of their labels
_STRING: Final = 6
_OCTET: Final = 2  # of what may be cut into pieces of a few octets
_OTHER_RECORD: Final = 4000  # it may hold names anywhere, and answers no question of ours

_HEADER = struct.Struct("!4x4H")  # behind id and flags: how many questions, and records in each section
_RECORD_HEAD = struct.Struct("!HH4xH")  # type, class, and how many octets of data come behind the time to live
_POINTER: Final = 0xC0
_OPCODE: Final = 0x78  # in the first octet of the flags
_IN: Final = 1
_OPT: Final = 41


class _Malformed(Exception):
    """The octets are no names and records; dnspython will say so better."""


class _Walk:
    """A walk along a message, with what its names were found to be."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._labels: dict[int, int] = {}  # by the offset of a name

    def name(self, offset: int) -> tuple[int, int]:
        """How many labels the name there has, and the offset behind it."""
        start, end, labels = offset, 0, 0
        lowest = offset
        while True:
            octet = self._message[offset]
            if octet >= _POINTER:
                target = (octet & 0x3F) << 8 | self._message[offset + 1]
                end = end or offset + 2
                if target >= lowest:
                    raise _Malformed
                known = self._labels.get(target)
                if known is not None:
                    labels += known
                    break
                offset = lowest = target
            elif octet >= 64:
                raise _Malformed
            else:
                offset += 1 + octet
                if not octet:
                    end = end or offset
                    break
                labels += 1
        self._labels[start] = labels
        return labels, end

    def strings(self, offset: int, end: int) -> int:
        """How many strings the data of a TXT record holds."""
        found = 0
        while offset < end and found * _STRING <= BUDGET:
            offset += 1 + self._message[offset]
            found += 1
        return found

    def cost(self) -> float:
        """About how long reading takes; what is over the budget is not looked at."""
        message = self._message
        questions, *records = _HEADER.unpack_from(message)
        offset = _HEADER.size
        cost = 0.0
        for _ in range(questions):
            labels, offset = self.name(offset)
            offset += 4
            cost += _RECORD + labels * _OWNER_LABEL
            if cost > BUDGET:
                return cost
        for _ in range(sum(records)):
            labels, offset = self.name(offset)
            record_type, record_class, octets = _RECORD_HEAD.unpack_from(message, offset)
            offset += _RECORD_HEAD.size
            cost += _RECORD + labels * _OWNER_LABEL + self._data_cost(record_type, record_class, offset, octets)
            offset += octets
            if cost > BUDGET:
                break
        return cost

    def _data_cost(self, record_type: int, record_class: int, offset: int, octets: int) -> float:
        if record_class != _IN and record_type != _OPT:
            return _OTHER_RECORD
        match record_type:
            case 1 | 28 | 52:  # A, AAAA, TLSA
                return 0
            case 16:  # TXT
                return self.strings(offset, offset + octets) * _STRING
            case 2 | 5 | 12 | 39:  # NS, CNAME, PTR, DNAME
                return self.name(offset)[0] ** 2 * _SQUARED_LABEL
            case 15:  # MX
                return self.name(offset + 2)[0] ** 2 * _SQUARED_LABEL
            case 6:  # SOA
                primary, behind = self.name(offset)
                return (primary**2 + self.name(behind)[0] ** 2) * _SQUARED_LABEL
            case 41:  # OPT
                return octets * _OCTET
        return _OTHER_RECORD + octets * _OCTET


def is_affordable(message: bytes) -> bool:
    """Whether the message is a query's or its response, and reading it keeps others waiting for but a moment."""
    if len(message) > 2 and message[2] & _OPCODE:
        return False
    try:
        return _Walk(message).cost() <= BUDGET
    except (_Malformed, IndexError, struct.error):
        return True
