"""Received-SPF, read back by the grammar of the standard."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mailgate.auth.authentication_results import received_spf
from mailgate.auth.results import Result, SpfResult

_ATEXT = r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+"
_VALUE = rf'(?:{_ATEXT}(?:\.{_ATEXT})*|"(?:[ !#-\[\]-~]|\\[ -~])*")'
_FWS = r"(?:[ \t]*(?:\r\n)?[ \t]+)"
_PAIR = rf"[a-z][a-z0-9\-_.]*={_VALUE}"
FIELD = re.compile(
    rf"Received-SPF: (?:pass|fail|softfail|neutral|none|temperror|permerror)"
    rf"{_FWS}(?P<pairs>{_PAIR}(?:;{_FWS}?{_PAIR})*);?\r\n"
)


def pairs(field: bytes) -> dict[str, str]:
    """The pairs of a field, unquoted."""
    match = FIELD.fullmatch(field.decode("ascii"))
    assert match is not None, field
    found = {}
    for pair in re.findall(_PAIR, match["pairs"]):
        key, _, value = pair.partition("=")
        found[key] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    return found


def field(result: SpfResult, client: str = "192.0.2.1", helo: str = "host.example.test") -> bytes:
    return received_spf(result, receiver="mx.receiver.test", client_address=client, helo=helo)


def test_it_says_what_was_checked_and_what_matched() -> None:
    """RFC 7208 section 9.1: enough to verify the result."""
    written = field(
        SpfResult("mailfrom", "example.test", "user@example.test", Result.PASS, "ip6:2001:db8::/32"), "2001:db8::1"
    )
    assert pairs(written) == {
        "identity": "mailfrom",
        "client-ip": "2001:db8::1",
        "helo": "host.example.test",
        "envelope-from": "user@example.test",
        "receiver": "mx.receiver.test",
        "mechanism": "ip6:2001:db8::/32",
    }


def test_values_that_are_no_dot_atom_are_quoted() -> None:
    """A colon or an at sign may not stand outside quotes."""
    written = field(SpfResult("mailfrom", "example.test", "user@example.test", Result.PASS, "-all"), "2001:db8::1")
    assert b'client-ip="2001:db8::1"' in written
    assert b'envelope-from="user@example.test"' in written
    assert b"mechanism=-all" in written


def test_for_helo_it_names_no_envelope_sender() -> None:
    """Nobody was named yet; postmaster is ours to make up, and not what the client said."""
    written = field(SpfResult("helo", "host.example.test", "postmaster@host.example.test", Result.FAIL, "-all"))
    assert "envelope-from" not in pairs(written)


@given(
    sender=st.text(max_size=80),
    helo=st.text(max_size=300),
    mechanism=st.text(max_size=80),
    problem=st.text(max_size=400),
)
def test_nothing_that_strangers_write_breaks_the_field(sender: str, helo: str, mechanism: str, problem: str) -> None:
    """RFC 7208 section 9.1, RFC 5322 section 2.1.1."""
    written = field(
        SpfResult("mailfrom", "example.test", sender, Result.PERMERROR, mechanism, problem=problem), helo=helo
    )
    assert pairs(written)["identity"] == "mailfrom"
    assert max(map(len, written.split(b"\r\n"))) <= 998
