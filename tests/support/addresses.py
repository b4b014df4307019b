"""Strategies that make valid addresses, by the grammar of RFC 5321 section 4.1.2 and RFC 6531 section 3.3."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from mailgate.envelope import Address

_ATEXT = string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~"
_BEYOND_ASCII = "äöüßéñøяжπ用户例え한글😀\u200d\u0301"

ATOMS = st.text(_ATEXT + _BEYOND_ASCII, min_size=1, max_size=8)
DOT_STRINGS = st.lists(ATOMS, min_size=1, max_size=4).map(".".join)
_QTEXT = st.sampled_from([chr(code) for code in range(32, 127) if chr(code) not in '"\\'] + list(_BEYOND_ASCII))
_PAIRS = st.integers(32, 126).map(lambda code: "\\" + chr(code))
QUOTED_STRINGS = st.lists(_QTEXT | _PAIRS, max_size=15).map(lambda parts: '"' + "".join(parts) + '"')


def _is_short(local: str) -> bool:
    return len(local.encode()) <= 64


LOCAL_PARTS = DOT_STRINGS.filter(_is_short)

_LDH_LABELS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,8}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda label: label[2:4] != "--"
)
_U_LABELS = st.sampled_from(["bücher", "例え", "почта", "한국", "straße", "xn--bcher-kva"])
_NAMES = st.lists(_LDH_LABELS | _U_LABELS, min_size=1, max_size=5).map(".".join)
_LITERALS = st.ip_addresses(v=4).map(lambda address: f"[{address}]") | st.ip_addresses(v=6).map(
    lambda address: f"[IPv6:{address}]"
)
DOMAINS = _NAMES | _LITERALS

# Any local part that can be written within its quotes and 64 octets.
_LOCALS = LOCAL_PARTS | st.text(
    st.sampled_from([chr(code) for code in range(32, 127)] + list(_BEYOND_ASCII)), max_size=15
)
ADDRESSES = st.builds(Address, _LOCALS, DOMAINS)
ASCII_ADDRESSES = ADDRESSES.filter(lambda address: str(address).isascii())
