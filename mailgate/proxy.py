"""The PROXY protocol: who the client is, in the words of a load balancer that stands before us.

Sans-IO: bytes in, a ProxyHeader out. Whether the peer is a proxy that we trust has to be decided before its bytes are
given to this parser; who does not trust the peer must not parse at all, since anybody can write such a header.
Extensions (TLVs) are checked for their structure and skipped, the checksum among them.

Standards: The PROXY protocol, versions 1 and 2 (haproxy, doc/proxy-protocol.txt).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

MAX_V1_OCTETS = 107  # with CRLF, section 2.1: the worst case of a version 1 header
# Section 2.2 lets a header have 65,551 octets, and asks senders to stay within one segment of 536. We take somewhat
# more, for balancers that pass on the names in a client's certificate.
MAX_V2_LENGTH = 2048

_V1_START = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED_OCTETS = 16


class ProxyError(ValueError):
    """What came is no PROXY header; nothing that follows on this connection can be trusted."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What the proxy said.

    Where `is_local`, it spoke for itself (LOCAL, a health check) or did not know (UNKNOWN, not TCP over IP): the
    addresses are "" and the ports 0, and those of the connection itself count.
    """

    is_local: bool
    source_address: str = ""
    source_port: int = 0
    destination_address: str = ""
    destination_port: int = 0
    remaining: bytes = b""  # what came behind the header: the client's first octets


class ProxyHeaderParser:
    """Takes the first octets of a connection, in any pieces, until it has the header."""

    __slots__ = ("_received",)

    def __init__(self) -> None:
        """Expect the first octet of a connection."""
        self._received = b""

    def feed(self, data: bytes) -> ProxyHeader | None:
        """The header, or None while more is needed. Not to be called again once it gave a header or raised.

        @raises ProxyError: this is no PROXY header, or it is too long.
        """
        received = self._received = self._received + data
        if received.startswith(_V1_START):
            return _parse_v1(received)
        if received.startswith(_V2_SIGNATURE):
            return _parse_v2(received)
        if _V1_START.startswith(received) or _V2_SIGNATURE.startswith(received):
            return None
        raise ProxyError("the connection does not begin with a PROXY header")


#   PROXY TCP4 192.0.2.1 192.0.2.2 56324 25 CRLF        section 2.1; one blank between words, no leading zeros
_V1_TCP = re.compile(rb"PROXY TCP(4|6) ([0-9A-Fa-f.:]++) ([0-9A-Fa-f.:]++) (0|[1-9][0-9]{0,4}+) (0|[1-9][0-9]{0,4}+)")


def _parse_v1(received: bytes) -> ProxyHeader | None:
    end = received.find(b"\r\n", 0, MAX_V1_OCTETS)
    if end < 0:
        if len(received) >= MAX_V1_OCTETS:
            raise ProxyError(f"a PROXY header of version 1 ends within {MAX_V1_OCTETS} octets")
        return None
    line, remaining = received[:end], received[end + 2 :]
    # Section 2.1: behind UNKNOWN "the receiver must ignore anything presented before the CRLF".
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(is_local=True, remaining=remaining)
    match = _V1_TCP.fullmatch(line)
    if match is None:
        raise ProxyError("a malformed PROXY header of version 1")
    family, source, destination, source_port, destination_port = (group.decode("ascii") for group in match.groups())
    kind = IPv4Address if family == "4" else IPv6Address
    try:
        addresses = kind(source), kind(destination)
    except ValueError as error:
        raise ProxyError("a malformed address in a PROXY header") from error
    ports = int(source_port), int(destination_port)
    if max(ports) > 65535:
        raise ProxyError("a port over 65535 in a PROXY header")
    return ProxyHeader(False, _text(addresses[0]), ports[0], _text(addresses[1]), ports[1], remaining)


_LOCAL, _PROXY = 0, 1
# Section 2.2: the octets of the address block that each family and transport has.
_ADDRESS_OCTETS = {
    0x00: 0,  # UNSPEC
    0x11: 12,  # TCP over IPv4
    0x12: 12,  # UDP over IPv4
    0x21: 36,  # TCP over IPv6
    0x22: 36,  # UDP over IPv6
    0x31: 216,  # UNIX stream
    0x32: 216,  # UNIX datagram
}
_TCP_OVER_IPV4, _TCP_OVER_IPV6 = 0x11, 0x21
_DATAGRAMS = frozenset({0x12, 0x22, 0x32})


def _parse_v2(received: bytes) -> ProxyHeader | None:
    if len(received) < _V2_FIXED_OCTETS:
        return None
    version_and_command, family, length = struct.unpack_from("!BBH", received, len(_V2_SIGNATURE))
    version, command = version_and_command >> 4, version_and_command & 0x0F
    if version != 2:
        raise ProxyError(f"a PROXY header of the unknown version {version}")
    if length > MAX_V2_LENGTH:
        raise ProxyError(f"a PROXY header longer than {MAX_V2_LENGTH} octets")
    end = _V2_FIXED_OCTETS + length
    if len(received) < end:
        return None
    remaining = received[end:]
    if command == _LOCAL:  # section 2.2: "the receiver must [...] discard the protocol block including the family"
        return ProxyHeader(is_local=True, remaining=remaining)
    if command != _PROXY:
        raise ProxyError(f"a PROXY header with the unknown command {command}")
    address_octets = _ADDRESS_OCTETS.get(family)
    if address_octets is None or family in _DATAGRAMS:
        raise ProxyError(f"a PROXY header for the family and transport 0x{family:02x}")
    if length < address_octets:
        raise ProxyError("a PROXY header shorter than its addresses")
    _check_extensions(received[_V2_FIXED_OCTETS + address_octets : end])
    if family == _TCP_OVER_IPV4:
        source, destination, source_port, destination_port = struct.unpack_from("!4s4sHH", received, _V2_FIXED_OCTETS)
        addresses: tuple[IPv4Address | IPv6Address, ...] = IPv4Address(source), IPv4Address(destination)
    elif family == _TCP_OVER_IPV6:
        source, destination, source_port, destination_port = struct.unpack_from("!16s16sHH", received, _V2_FIXED_OCTETS)
        addresses = IPv6Address(source), IPv6Address(destination)
    else:
        return ProxyHeader(is_local=True, remaining=remaining)
    return ProxyHeader(False, _text(addresses[0]), source_port, _text(addresses[1]), destination_port, remaining)


def _check_extensions(extensions: bytes) -> None:
    """Return if these are whole TLVs: a type of one octet, a length of two, and so many octets."""
    place = 0
    while place < len(extensions):
        if place + 3 > len(extensions):
            raise ProxyError("a PROXY header that ends within an extension")
        place += 3 + int.from_bytes(extensions[place + 1 : place + 3], "big")
    if place != len(extensions):
        raise ProxyError("a PROXY header that ends within an extension")


def _text(address: IPv4Address | IPv6Address) -> str:
    """The address as we write it everywhere; that of an IPv4 client of an IPv6 socket is its IPv4 address."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
