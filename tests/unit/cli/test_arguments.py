"""What people type: addresses, domains, sizes, times, ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from mailgate.cli.address import (
    address_argument,
    domain_argument,
    readable,
    readable_address,
    readable_domain,
    target_argument,
)
from mailgate.cli.quantity import size_argument, time_argument
from mailgate.cli.show import id_argument
from mailgate.ids import encode_id


@pytest.mark.parametrize("typed", ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"])
def test_domains_are_taken_in_both_forms_and_shown_in_u_form(typed: str) -> None:
    """RFC 5890: the A-form is for the wire and the database, the U-form for people."""
    assert domain_argument(typed) == "xn--bcher-kva.example"
    assert readable_domain(domain_argument(typed)) == "bücher.example"


@pytest.mark.parametrize("name", ["xn--a-.example", "[192.0.2.1]", "example.test", "xn--\x1b"])
def test_a_domain_without_a_u_form_is_shown_as_it_is(name: str) -> None:
    """Not all that begins with xn-- is IDNA2008."""
    assert readable_domain(name) == name


def test_addresses_are_folded_as_recipients_are() -> None:
    """Local parts are compared without case, domains in A-form."""
    address = address_argument("Jörg@Bücher.example")
    assert (address.local, address.domain) == ("jörg", "xn--bcher-kva.example")
    assert readable(address.local, address.domain) == "jörg@bücher.example"


def test_a_target_keeps_the_case_of_its_local_part() -> None:
    """RFC 5321 section 2.4: elsewhere it may matter."""
    assert str(target_argument("Bob.Smith@Elsewhere.Example")) == "Bob.Smith@elsewhere.example"


def test_a_quoted_local_part_is_shown_quoted() -> None:
    """An at-sign within quotes is no at-sign."""
    assert readable_address('"a@b"@xn--bcher-kva.example') == '"a@b"@bücher.example'


@pytest.mark.parametrize("typed", ["alice", "alice@", "@example.test", "a@b@c", "a@x..test", "a\x1b@example.test", ""])
def test_what_is_no_address_is_a_usage_error(typed: str) -> None:
    """Exit status 2, and a word on what is wrong."""
    with pytest.raises(click.BadParameter):
        address_argument(typed)


@pytest.mark.parametrize(
    ("typed", "octets"),
    [
        ("1", 1),
        ("500MB", 500_000_000),
        ("2GiB", 2 * 1024**3),
        ("2 gib", 2 * 1024**3),
        ("1.5k", 1500),
        ("64 KiB", 65_536),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes_have_decimal_and_binary_units(typed: str, octets: int) -> None:
    """IEC 80000-13: MB is a million, MiB is 1024 squared."""
    assert size_argument(typed) == octets


@pytest.mark.parametrize("typed", ["", "0", "-1", "1iB", "1PB", "GiB", "1e9", "\u0661", "99999999TiB", "1.2.3k"])
def test_what_is_no_size_is_a_usage_error(typed: str) -> None:
    """A quota of nothing, or beyond what the database can hold, is none."""
    with pytest.raises(click.BadParameter):
        size_argument(typed)


def test_a_span_counts_back_from_now() -> None:
    """`--since 90m`."""
    before = datetime.now(UTC)
    assert timedelta(0) <= time_argument("90m") - (before - timedelta(minutes=90)) < timedelta(seconds=60)


def test_no_time_is_before_the_first_id() -> None:
    """Ids begin in 2020; an earlier time would be none that the record can be asked by."""
    assert time_argument("1900-01-01") == datetime(2020, 1, 1, tzinfo=UTC)


def test_a_date_is_taken_with_its_offset() -> None:
    """ISO 8601."""
    assert time_argument("2026-11-23T14:00+02:00") == datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize("typed", ["yesterday", "24", "5y", "2026-13-01", "999999w", "2100-01-01", ""])
def test_what_is_no_time_is_a_usage_error(typed: str) -> None:
    """Neither a span nor a date, or not come yet."""
    with pytest.raises(click.BadParameter):
        time_argument(typed)


def test_an_id_is_taken_as_people_copy_it() -> None:
    """With the brackets that replies have round it, and in capitals."""
    assert id_argument(f"[{encode_id(123456789).upper()}]") == 123456789


@pytest.mark.parametrize("typed", ["", "zz", "u" * 13, "z" * 13])
def test_what_is_no_id_is_a_usage_error(typed: str) -> None:
    """The message says what an id looks like."""
    with pytest.raises(click.BadParameter):
        id_argument(typed)
