"""The envelope's values as text."""

from __future__ import annotations

import dataclasses

import pytest

from mailgate.envelope import Address, ForwardPath, MailParameters, RcptParameters, ReversePath


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("alice", "example.test"), "alice@example.test"),
        (Address("a.b+c", "example.test"), "a.b+c@example.test"),
        (Address("Postmaster", ""), "Postmaster"),
        (Address("a b", "example.test"), '"a b"@example.test'),
        (Address("", "example.test"), '""@example.test'),
        (Address(".a", "example.test"), '".a"@example.test'),
        (Address("a..b", "example.test"), '"a..b"@example.test'),
        (Address('a"b\\c', "example.test"), r'"a\"b\\c"@example.test'),
        (Address("a@b", "example.test"), '"a@b"@example.test'),
        (Address("jörg", "bücher.example"), "jörg@bücher.example"),
        (Address("a", "[192.0.2.1]"), "a@[192.0.2.1]"),
    ],
)
def test_an_address_is_quoted_only_where_it_must_be(address: Address, text: str) -> None:
    """RFC 5321 section 4.1.2: transmit the form without quotes where possible."""
    assert str(address) == text


def test_the_null_reverse_path_is_the_empty_text() -> None:
    assert str(ReversePath(None)) == ""


def test_a_path_shows_its_address_without_brackets() -> None:
    assert str(ReversePath(Address("a", "b.test"))) == "a@b.test"
    assert str(ForwardPath(Address("a", "b.test"))) == "a@b.test"


def test_nothing_was_asked_for_by_default() -> None:
    assert ReversePath(None).parameters == MailParameters(None, None, False, None, None, None)
    assert ForwardPath(Address("a", "")).parameters == RcptParameters(None, None)


@pytest.mark.parametrize("value", [Address("a", "b.test"), ReversePath(None), ForwardPath(Address("a", "b.test"))])
def test_values_can_be_keys_and_do_not_change(value: Address | ReversePath | ForwardPath) -> None:
    hash(value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)
