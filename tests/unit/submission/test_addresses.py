"""Address fields that programs write: what they name, and how they are completed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.submission.addresses import NotAnAddress, addresses_in, completed, with_domain


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", []),
        ("root", ["root"]),
        (" root ", ["root"]),
        ("root (Cron Daemon)", ["root"]),
        ('"(Cron Daemon)" <root>', ["root"]),
        ("Alice <alice@example.test>, bob", ["alice@example.test", "bob"]),
        ("alice@example.test,\r\n\tbob@example.test,", ["alice@example.test", "bob@example.test"]),
        ('"a, b" <a@x.test>, (c, d@x.test) e@x.test', ["a@x.test", "e@x.test"]),
        ("undisclosed-recipients:;", []),
        ("Friends: a@x.test, b@x.test;, c@x.test", ["a@x.test", "b@x.test", "c@x.test"]),
        ("<@relay.test,@other.test:a@x.test>", ["a@x.test"]),
        ("a @ x . test", ["a@x.test"]),
        ('"a b"@x.test', ['"a b"@x.test']),
        ('"a@b"', ['"a@b"']),
        ("jürgen@bücher.example", ["jürgen@bücher.example"]),
        ("Alice\\ B <a@x.test>", ["a@x.test"]),
        ("a@[IPv6:2001:db8::1]", ["a@[IPv6:2001:db8::1]"]),
        ("a@[IPv6:2001", None),
        ("<a@[192.0.2.1]>", ["a@[192.0.2.1]"]),
        ("Cron Daemon", None),
        ("a@x.test b@x.test", None),
        ("<a@x.test> <b@x.test>", None),
        ("<a@x.test", None),
        ("a@x.test>", None),
        ("<>", None),
        ("@x.test", None),
        ("a@", None),
        ('"a', None),
        ("(a", None),
        ("a)", None),
    ],
)
def test_addresses_are_found(body: str, expected: list[str] | None) -> None:
    """RFC 5322 section 3.4, and a local part alone."""
    if expected is None:
        with pytest.raises(NotAnAddress):
            addresses_in(body)
    else:
        assert [found.text for found in addresses_in(body)] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (" root\r\n", " root@x.test\r\n"),
        (' "(Cron Daemon)" <root>', ' "(Cron Daemon)" <root@x.test>'),
        (" root (Cron), a@b.test, bob ", " root@x.test (Cron), a@b.test, bob@x.test "),
        (" Friends: a, <b >;", " Friends: a@x.test, <b@x.test >;"),
        (' "a@b"', ' "a@b"@x.test'),
        (" a@b.test", " a@b.test"),
    ],
)
def test_what_has_no_domain_gets_one(body: str, expected: str) -> None:
    """RFC 6409 section 8.6; all else stays as it is."""
    assert completed(body, "x.test") == expected


@pytest.mark.parametrize(
    ("address", "expected"), [("root", "root@x.test"), ("a@b.test", "a@b.test"), ("<a>", "a@x.test")]
)
def test_one_address_is_completed(address: str, expected: str) -> None:
    """As the command line gives it."""
    assert with_domain(address, "x.test") == expected


@pytest.mark.parametrize("address", ["", "a, b", "a b", "a@x.test>"])
def test_what_is_not_one_address_is_refused(address: str) -> None:
    """An argument is one address."""
    with pytest.raises(NotAnAddress):
        with_domain(address, "x.test")


@given(st.text(alphabet='ab@.,;:<>()" \\\r\n\t', max_size=30))
def test_nothing_else_is_raised_and_what_is_completed_stays_so(body: str) -> None:
    """Whatever a program writes."""
    try:
        once = completed(body, "x.test")
    except NotAnAddress:
        return
    assert completed(once, "y.test") == once
    assert all(found.has_domain for found in addresses_in(once))
