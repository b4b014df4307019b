"""SRS: what is rewritten leads back, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.auth.srs import VALID_DAYS, NamedTransaction, Srs, SrsFault, is_srs
from mailgate.envelope import Address
from mailgate.smtp.grammar import parse_mailbox

DAY = 86_400.0
NOW = 20_000 * DAY + 1234
ID = 123_456_789_012_345

SRS = Srs(b"a secret of ours")
OTHER = Srs(b"a secret of theirs")


def address(text: str) -> Address:
    return parse_mailbox(text)


def rewritten(text: str, srs: Srs = SRS, domain: str = "ours.test", now: float = NOW) -> Address:
    return srs.rewrite(address(text), domain, now, ID)


@pytest.mark.parametrize(
    "text",
    [
        "alice@example.org",
        "Alice.Smith@example.org",
        "bounce+a=b=c@lists.example.org",
        "prvs=1234=alice@example.org",
        "=@example.org",
        "SRS@example.org",
        "srs0@example.org",
        '"two words"@example.org',
        '"a@b"@example.org',
        "grüße@example.org",
        "root@[192.0.2.1]",
        "alice@xn--bcher-kva.example",
    ],
)
def test_a_rewritten_path_leads_back(text: str) -> None:
    """Whatever separators stand in it."""
    path = rewritten(text)
    assert path.domain == "ours.test"
    assert path.local.startswith("SRS0=")
    assert is_srs(path.local)
    assert SRS.read(path.local, NOW) == address(text)


def test_the_form_is_the_one_that_other_hosts_know() -> None:
    """Hash, day, domain, local part."""
    kind, _hash, day, domain, local = rewritten("alice@example.org").local.split("=")
    assert (kind, len(_hash), len(day), domain, local) == ("SRS0", 6, 2, "example.org", "alice")


def test_what_another_host_has_rewritten_leads_to_its_first_host() -> None:
    """SRS1: of three hosts in a row, the last sends to the first, which alone knows its own hash."""
    first = rewritten("alice@example.org", OTHER, "first.test")
    second = SRS.rewrite(first, "second.test", NOW, ID)
    assert second.local.startswith("SRS1=")
    assert SRS.read(second.local, NOW) == first
    third_host = Srs(b"a third secret")
    third = third_host.rewrite(second, "third.test", NOW, ID)
    assert third_host.read(third.local, NOW) == first
    assert len(third.local) == len(second.local)


@pytest.mark.parametrize("local", ["SRS0+abcd=xy=example.org=al", "srs0-abcd=xy=example.org=al"])
def test_another_separator_behind_srs0_is_kept(local: str) -> None:
    """The first host chose it, and may want it back."""
    path = SRS.rewrite(Address(local, "first.test"), "ours.test", NOW, ID)
    assert SRS.read(path.local, NOW) == Address("SRS0" + local[4:], "first.test")


@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase])
def test_case_may_change_on_the_way(change: object) -> None:
    """RFC 5321 section 2.4 forbids it, and hosts do it."""
    assert callable(change)
    for text in ("alice@example.org", "SRS0=abcd=xy=example.org=al@first.test"):
        local = change(rewritten(text).local)
        read = SRS.read(local, NOW)
        assert isinstance(read, Address)
        assert str(read).lower() == text.lower()


def test_every_changed_letter_is_noticed() -> None:
    """A path that we have not written leads nowhere: else we would relay bounces to anybody."""
    for text in ("alice@example.org", "SRS0=abcd=xy=example.org=al@first.test"):
        local = rewritten(text).local
        for place in range(5, len(local)):
            changed = local[:place] + ("x" if local[place] != "x" else "y") + local[place + 1 :]
            assert isinstance(SRS.read(changed, NOW), SrsFault), changed
            assert isinstance(SRS.read(local[:place], NOW), SrsFault)
        assert isinstance(OTHER.read(local, NOW), SrsFault)
        kind = "1" if local[3] == "0" else "0"
        assert isinstance(SRS.read(local[:3] + kind + local[4:], NOW), SrsFault)


@pytest.mark.parametrize(
    ("days", "leads"), [(-2, False), (-1, True), (0, True), (21, True), (22, False), (1000, False)]
)
def test_a_path_expires(days: int, leads: bool) -> None:
    """After three weeks no host tries any more. A day may begin sooner on another node."""
    read = SRS.read(rewritten("alice@example.org").local, NOW + days * DAY)
    assert isinstance(read, Address) is leads
    assert VALID_DAYS == 21
    if isinstance(read, SrsFault):
        assert read.is_expired


def test_a_path_too_long_for_a_local_part_names_our_transaction() -> None:
    """RFC 5321 section 4.5.3.1.1: 64 octets. Large senders use nearly all of them."""
    path = rewritten("0100018c9d5e1234-12345678-1234-1234-1234-123456789abc-000000@amazonses.example")
    assert len(path.local) <= 64
    assert SRS.read(path.local, NOW) == NamedTransaction(ID)
    assert SRS.read(path.local.lower(), NOW) == NamedTransaction(ID)
    assert isinstance(SRS.read(path.local, NOW + 22 * DAY), SrsFault)


@pytest.mark.parametrize("local", ["", "alice", "SRS0", "SRS0=", "SRS2=a=b=c=d", "SRS0=a", "SRS1=a=b", "SRS0=a=b=c=d"])
def test_what_is_not_ours_is_a_fault_and_no_exception(local: str) -> None:
    """Anybody may send to anything."""
    assert isinstance(SRS.read(local, NOW), SrsFault)


@pytest.mark.parametrize("local", ["srs0-team", "SRS1=support", "srs0=one=two", "srs", "SRS0+abcdef=ab=x=y"])
def test_a_name_that_somebody_might_have_is_none_of_ours(local: str) -> None:
    """A mailbox or alias of that name gets its mail."""
    assert not is_srs(local)


def test_what_leads_to_no_address_is_a_fault() -> None:
    """What another host called its first host need not be one."""
    path = SRS.rewrite(Address("SRS0=" + "x" * 40, "a b"), "ours.test", NOW, ID)
    assert isinstance(SRS.read(path.local, NOW), SrsFault)


@given(st.text(max_size=80), st.integers(0, 3000))
def test_nothing_that_anybody_sends_raises(local: str, days: int) -> None:
    """Property: a fault, since nobody guesses thirty bits."""
    assert isinstance(SRS.read(local, days * DAY), SrsFault)
    assert isinstance(SRS.read("SRS0=" + local, days * DAY), SrsFault)
    assert isinstance(SRS.read("SRS1=" + local, days * DAY), SrsFault)


@given(st.from_regex(r"[A-Za-z0-9=+._\-]{1,64}", fullmatch=True), st.sampled_from(["a.example", "b" * 60 + ".example"]))
def test_any_path_is_rewritten_to_one_that_fits(local: str, domain: str) -> None:
    """Property: never longer than a local part may be, and it leads back to the path or its transaction."""
    path = SRS.rewrite(Address(local, domain), "ours.test", NOW, ID)
    assert len(path.local) <= 64
    read = SRS.read(path.local, NOW)
    assert (
        not isinstance(read, SrsFault) or not local.strip(".") or ".." in local or local[0] == "." or local[-1] == "."
    )
