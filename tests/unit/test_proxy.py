"""The PROXY protocol, fed whole, byte by byte, and split at every offset."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.proxy import MAX_V1_OCTETS, MAX_V2_LENGTH, ProxyError, ProxyHeader, ProxyHeaderParser

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PROXY, LOCAL = 0x21, 0x20
UNSPEC, TCP4, UDP4, TCP6, UNIX = 0x00, 0x11, 0x12, 0x21, 0x31


def v2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def tcp4(source: str, source_port: int, destination: str, destination_port: int, extensions: bytes = b"") -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return v2(PROXY, TCP4, addresses + struct.pack("!HH", source_port, destination_port) + extensions)


def tcp6(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return v2(PROXY, TCP6, addresses + struct.pack("!HH", source_port, destination_port))


# Type and length of PP2_TYPE_AUTHORITY, PP2_TYPE_NOOP and PP2_TYPE_UNIQUE_ID (section 2.2.1 onwards).
EXTENSIONS = b"\x02\x00\x0cmx.mail.test" + b"\x04\x00\x00" + b"\x05\x00\x04\x00\x01\x02\x03"

GOOD = {
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 25\r\n": ProxyHeader(False, "192.0.2.1", 56324, "192.0.2.2", 25),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": ProxyHeader(
        False, "255.255.255.255", 65535, "255.255.255.255", 65535
    ),
    b"PROXY TCP6 2001:DB8::1 2001:db8:0:0:0:0:0:2 0 25\r\n": ProxyHeader(False, "2001:db8::1", 0, "2001:db8::2", 25),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 25\r\n": ProxyHeader(False, "192.0.2.1", 1, "192.0.2.2", 25),
    b"PROXY UNKNOWN\r\n": ProxyHeader(True),
    # Section 2.1: the longest header, with 107 octets.
    b"PROXY UNKNOWN" + b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" * 2 + b" 65535 65535\r\n": ProxyHeader(True),
    tcp4("192.0.2.1", 56324, "192.0.2.2", 25): ProxyHeader(False, "192.0.2.1", 56324, "192.0.2.2", 25),
    tcp4("192.0.2.1", 56324, "192.0.2.2", 25, EXTENSIONS): ProxyHeader(False, "192.0.2.1", 56324, "192.0.2.2", 25),
    tcp6("2001:db8::1", 1, "2001:db8::2", 465): ProxyHeader(False, "2001:db8::1", 1, "2001:db8::2", 465),
    tcp6("::ffff:192.0.2.1", 1, "::ffff:192.0.2.2", 465): ProxyHeader(False, "192.0.2.1", 1, "192.0.2.2", 465),
    v2(LOCAL, UNSPEC, b""): ProxyHeader(True),
    v2(LOCAL, TCP4, b"no addresses: to be discarded"): ProxyHeader(True),
    v2(PROXY, UNSPEC, EXTENSIONS): ProxyHeader(True),
    v2(PROXY, UNIX, bytes(216)): ProxyHeader(True),
}

BAD = [
    b"EHLO client.example\r\n",
    b"\r\n\r\n\x00\r\nQUIT\r",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 25 \r\n",
    b"PROXY TCP4  192.0.2.1 192.0.2.2 56324 25\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 056324 25\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 25\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.2 1 25\r\n",
    b"PROXY TCP4 192.0.02.1 192.0.2.2 1 25\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 1 25\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 1 25\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 25\r\n",
    b"PROXY TCP5 192.0.2.1 192.0.2.2 1 25\r\n",
    b"PROXY UDP4 192.0.2.1 192.0.2.2 1 25\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY UNKNOWN" + b" " * (MAX_V1_OCTETS - 14) + b"\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\n" + b" " * MAX_V1_OCTETS,
    v2(0x11, TCP4, bytes(12)),  # version 1 in the binary form
    v2(0x22, TCP4, bytes(12)),  # a command that is neither LOCAL nor PROXY
    v2(PROXY, UDP4, bytes(12)),
    v2(PROXY, 0x41, bytes(12)),
    v2(PROXY, TCP4, bytes(11)),
    v2(PROXY, TCP6, bytes(35)),
    v2(PROXY, UNIX, bytes(215)),
    v2(PROXY, TCP4, bytes(12) + b"\x04\x00"),
    v2(PROXY, TCP4, bytes(12) + b"\x04\x00\x05four"),
    SIGNATURE + struct.pack("!BBH", PROXY, TCP4, MAX_V2_LENGTH + 1),
]


def feed_in_pieces(pieces: list[bytes]) -> ProxyHeader | None:
    """The header, with what of the pieces it did not need as its remaining octets."""
    parser = ProxyHeaderParser()
    for number, piece in enumerate(pieces):
        header = parser.feed(piece)
        if header is not None:
            left = header.remaining + b"".join(pieces[number + 1 :])
            return ProxyHeader(
                header.is_local,
                header.source_address,
                header.source_port,
                header.destination_address,
                header.destination_port,
                left,
            )
    return None


@pytest.mark.parametrize(("data", "expected"), GOOD.items())
def test_a_header_is_understood_however_it_is_cut(data: bytes, expected: ProxyHeader) -> None:
    assert feed_in_pieces([data]) == expected
    assert feed_in_pieces([bytes([octet]) for octet in data]) == expected
    for offset in range(1, len(data)):
        assert feed_in_pieces([data[:offset], data[offset:]]) == expected
        assert feed_in_pieces([data[:offset]]) is None


@pytest.mark.parametrize(("data", "expected"), GOOD.items())
def test_what_follows_a_header_is_the_clients(data: bytes, expected: ProxyHeader) -> None:
    follows = b"EHLO client.example\r\nPROXY UNKNOWN\r\n"
    for offset in range(1, len(data + follows)):
        header = feed_in_pieces([(data + follows)[:offset], (data + follows)[offset:]])
        assert header is not None
        assert header.remaining == follows
        assert header.source_address == expected.source_address


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_header_is_refused_however_it_is_cut(data: bytes) -> None:
    """Section 2: "the receiver MUST be configured to only receive the protocol" and must not guess."""
    for offset in range(len(data)):
        with pytest.raises(ProxyError):
            feed_in_pieces([data[:offset], data[offset:]])
    with pytest.raises(ProxyError):
        feed_in_pieces([bytes([octet]) for octet in data])


def test_a_client_without_a_header_is_refused_at_its_first_octet() -> None:
    with pytest.raises(ProxyError):
        ProxyHeaderParser().feed(b"E")


def test_a_length_that_is_too_large_is_refused_before_its_octets_come() -> None:
    with pytest.raises(ProxyError):
        ProxyHeaderParser().feed(SIGNATURE + b"\x21\x11\xff\xff")


@given(
    st.ip_addresses(),
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.binary(max_size=40),
)
def test_both_versions_say_the_same(
    source: object, four: object, six: object, source_port: int, port: int, rest: bytes
) -> None:
    is_four = ":" not in str(source)
    destination = four if is_four else six
    family = 4 if is_four else 6
    text = f"PROXY TCP{family} {source} {destination} {source_port} {port}\r\n".encode() + rest
    binary = (tcp4 if is_four else tcp6)(str(source), source_port, str(destination), port) + rest
    header = ProxyHeaderParser().feed(text)
    assert header is not None
    assert header == ProxyHeaderParser().feed(binary)
    assert (header.source_port, header.destination_port, header.remaining) == (source_port, port, rest)


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00"]), st.binary(max_size=300)
)
def test_any_octets_give_a_header_or_a_proxy_error(start: bytes, rest: bytes) -> None:
    try:
        header = ProxyHeaderParser().feed(start + rest)
    except ProxyError:
        return
    assert header is None or isinstance(header, ProxyHeader)
