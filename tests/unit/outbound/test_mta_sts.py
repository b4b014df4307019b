"""MTA-STS records and policies: RFC 8461 sections 3.1, 3.2 and 4.1, case by case."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.outbound.mta_sts import (
    MAX_AGE_SECONDS,
    MAX_POLICY_OCTETS,
    InvalidPolicy,
    Mode,
    allows,
    policy_id,
    read_policy,
)

# RFC 8461 section 3.2.
EXAMPLE = (
    b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\n"
    b"max_age: 604800\r\n"
)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ((b"v=STSv1; id=20160831085700Z;",), "20160831085700Z"),  # RFC 8461 section 3.1
        ((b"v=STSv1;id=1",), "1"),
        ((b"v=STSv1 ; id=1 ; ext=x/y",), "1"),
        ((b"something else", b"v=STSv1; id=1;"), "1"),
        ((b"v=STSv1; id=1; id=2",), "1"),
        ((b"v=STSv1; id=1;", b"v=STSv1; id=2;"), None),
        ((b"v=STSv1; id=1;", b"v=STSv1;"), None),
        ((), None),
        ((b"v=STSv1;",), None),
        ((b"v=STSv1",), None),
        ((b"v=STSv1; id=;",), None),
        ((b"v=STSv1; id=a-b;",), None),
        ((b"v=STSv1; id=" + b"1" * 33,), None),
        ((b"v=stsv1; id=1",), None),
        ((b"v=STSv12; id=1",), None),
        ((b"id=1; v=STSv1",), None),
        ((b"v=STSv1; id=1; nonsense",), None),
    ],
)
def test_the_id_comes_from_the_one_record_that_is_there(records: tuple[bytes, ...], expected: str | None) -> None:
    """RFC 8461 section 3.1: with several, there is no policy."""
    assert policy_id(records) == expected


def test_the_example_of_the_rfc_is_read() -> None:
    """RFC 8461 section 3.2."""
    policy = read_policy(EXAMPLE)
    assert (policy.mode, policy.max_age_seconds) == (Mode.ENFORCE, 604800)
    assert policy.mx == ("mail.example.com", "*.example.net", "backupmx.example.com")
    assert policy.lines[:2] == ("version: STSv1", "mode: enforce")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (b"version:STSv1\nmode:testing\nmx:MX.Example.TEST.\nmax_age:1", Mode.TESTING),
        (b"version: STSv1\nmode: none\nmax_age: 86400\n", Mode.NONE),
        (
            b"version: STSv1\nmode: testing\nmode: enforce\nmx: mx.example.test\nmax_age: 1\nfuture: \xc3\xa9\n\n",
            Mode.TESTING,
        ),
    ],
)
def test_lines_may_end_in_lf_and_unknown_keys_are_passed_over(text: bytes, mode: Mode) -> None:
    """RFC 8461 section 3.2; of a key that comes twice, the first counts."""
    policy = read_policy(text)
    assert policy.mode is mode
    assert mode is Mode.NONE or allows(policy, "mx.example.test")


def test_max_age_is_bounded() -> None:
    """RFC 8461 section 3.2: about a year."""
    assert read_policy(EXAMPLE.replace(b"604800", b"9999999999")).max_age_seconds == MAX_AGE_SECONDS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "version"),
        (b"<html></html>", "no line"),
        (EXAMPLE.replace(b"STSv1", b"STSv2"), "version"),
        (EXAMPLE.replace(b"enforce", b"strict"), "mode"),
        (EXAMPLE.replace(b"mode: enforce\r\n", b""), "mode"),
        (EXAMPLE.replace(b"604800", b"week"), "max_age"),
        (EXAMPLE.replace(b"604800", b"-1"), "max_age"),
        (EXAMPLE.replace(b"max_age: 604800\r\n", b""), "max_age"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1\n", "names no mx"),
        (EXAMPLE.replace(b"*.example", b"*.*.example"), "no name"),
        (EXAMPLE.replace(b"*.example", b"m*.example"), "no name"),
        (EXAMPLE.replace(b"mail.example.com", b"https://x"), "no name"),
        (EXAMPLE + b"\xff", "UTF-8"),
        (EXAMPLE + b"mx: a.test\n" * (MAX_POLICY_OCTETS // 11), "more than"),
        (EXAMPLE + b"".join(b"mx: mx%d.test\n" % number for number in range(300)), "more than 256"),
    ],
)
def test_what_is_no_policy_says_why(text: bytes, problem: str) -> None:
    """RFC 8460 section 4.3.2.2 calls it sts-policy-invalid."""
    with pytest.raises(InvalidPolicy, match=problem):
        read_policy(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("mail.example.com", True),
        ("example.com", False),
        ("a.example.net", True),
        ("a.b.example.net", False),
        ("example.net", False),
        ("net", False),
        ("xmail.example.com", False),
    ],
)
def test_an_asterisk_stands_for_one_label(host: str, expected: bool) -> None:
    """RFC 8461 section 4.1."""
    assert allows(read_policy(EXAMPLE), host) is expected


@pytest.mark.parametrize("piece", [b" ", b"\t;", b"; ", b"a", b"-", b"a.", b"x=y; ", b"a-", b"mx: ", b"\r"])
def test_no_octets_take_long(piece: bytes) -> None:
    """Nothing may keep the others waiting: 64 KiB of anything are read in a moment."""
    octets = piece * (MAX_POLICY_OCTETS // len(piece) - 20)
    before = time.process_time()
    assert policy_id((b"v=STSv1; id=1" + octets + b"!",)) is None
    for start in (b"", b"mx: ", b"version: "):
        with pytest.raises(InvalidPolicy):
            read_policy(start + octets + b"!")
    assert time.process_time() - before < 0.5


@given(st.binary(max_size=200) | st.lists(st.sampled_from(EXAMPLE.splitlines(keepends=True))).map(b"".join))
def test_any_octets_are_a_policy_or_say_why_not(octets: bytes) -> None:
    """A stranger sends them."""
    try:
        policy = read_policy(octets)
    except InvalidPolicy:
        return
    assert policy.mx or policy.mode is Mode.NONE
