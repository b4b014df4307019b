"""DMARC records: what counts, what is ignored, and what is no record at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.auth.dmarc_record import MAX_RECORD_OCTETS, DmarcRecord, Psd, parse_record, record_in


def parsed(text: bytes) -> DmarcRecord:
    record = parse_record(text)
    assert record is not None
    return record


def test_what_is_not_said_has_its_default() -> None:
    """RFC 9989 section 4.7."""
    record = parsed(b"v=DMARC1; p=reject")
    assert record == DmarcRecord("v=DMARC1; p=reject", p="reject")
    assert (record.sp, record.np, record.adkim, record.aspf, record.psd) == (None, None, "r", "r", Psd.UNKNOWN)
    assert (record.is_testing, record.rua, record.ruf, record.fo) == (False, (), (), "0")


def test_every_tag_is_read() -> None:
    record = parsed(
        b"v=DMARC1; p=quarantine; sp=reject; np=none; adkim=s; aspf=s; psd=n; t=y; fo=1:d;"
        b" rua=mailto:a@example.org , https://example.org/r; ruf=mailto:b@example.org"
    )
    assert (record.p, record.sp, record.np) == ("quarantine", "reject", "none")
    assert (record.adkim, record.aspf, record.psd, record.is_testing) == ("s", "s", Psd.NO, True)
    assert record.rua == ("mailto:a@example.org", "https://example.org/r")
    assert (record.ruf, record.fo, record.ignored) == (("mailto:b@example.org",), "1:d", ())


@pytest.mark.parametrize(
    "text",
    [
        b"v=DMARC1;p=reject",
        b"v=DMARC1;p=reject;",
        b"v = DMARC1 ; p = reject ; ",
        b"v\t=\tDMARC1\t;\tp\t=\treject",
        b"V=DMARC1; P=Reject",
        b"v=DMARC1;;p=reject",
        b"v=DMARC1; x=y; p=reject",
    ],
)
def test_blanks_and_case_are_free_where_the_grammar_says_so(text: bytes) -> None:
    """RFC 9989 section 4.8: strings of ABNF have no case, but the version's value has."""
    assert parsed(text).p == "reject"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"v=DMARC",
        b"v=dmarc1; p=reject",
        b"v=DMARC10; p=reject",
        b"v=DMARC1 p=reject",
        b"v=DMARC1,p=reject",
        b"p=reject; v=DMARC1",
        b" v=DMARC1; p=reject",
        b"v=spf1 -all",
        b"v=DMARC1; p=reject; x=" + b"y" * MAX_RECORD_OCTETS,
    ],
)
def test_what_does_not_begin_with_the_version_is_no_record(text: bytes) -> None:
    """RFC 9989 section 4.7: "the entire record MUST be ignored"."""
    assert parse_record(text) is None


@pytest.mark.parametrize(
    "text", [b"adkim=x", b"aspf=strict", b"psd=maybe", b"t=yes", b"pct=50", b"ri=86400", b"rf=afrf"]
)
def test_what_is_unknown_is_ignored_and_named(text: bytes) -> None:
    """Tags that RFC 7489 had are unknown now; a value that can't be gives way to the default."""
    record = parsed(b"v=DMARC1; p=reject; " + text)
    assert record.p == "reject"
    assert (record.adkim, record.aspf, record.psd, record.is_testing) == ("r", "r", Psd.UNKNOWN, False)
    assert record.ignored == (text.partition(b"=")[0].decode(),)


def test_of_a_tag_that_is_there_twice_the_first_counts() -> None:
    record = parsed(b"v=DMARC1; p=reject; p=none")
    assert (record.p, record.ignored) == ("reject", ("p",))


@pytest.mark.parametrize("text", [b"v=DMARC1", b"v=DMARC1;", b"v=DMARC1; p=", b"v=DMARC1; p=rejct"])
@pytest.mark.parametrize(
    ("rua", "applies"),
    [
        (b"", False),
        (b"; rua=", False),
        (b"; rua=postmaster@example.org", False),
        (b"; rua=mailto:a@example.org", True),
        (b"; rua=mailto:a@example.org!10m", True),
        (b"; rua=nonsense, https://example.org/?a=b", True),
    ],
)
def test_without_a_policy_only_who_asks_for_reports_is_heeded(text: bytes, rua: bytes, applies: bool) -> None:
    """RFC 9989 section 4.10.1: "as if a record containing p=none was retrieved", or no DMARC at all."""
    record = parsed(text.rstrip(b";") + rua)
    assert (record.p, record.has_policy, record.applies) == ("none", False, applies)


@pytest.mark.parametrize("tag", [b"sp=rejct", b"np=", b"sp=none; np=x"])
def test_a_policy_for_subdomains_that_is_not_valid_takes_the_others_with_it(tag: bytes) -> None:
    """RFC 9989 section 4.10.1, as above."""
    record = parsed(b"v=DMARC1; p=reject; " + tag)
    assert (record.p, record.sp, record.np, record.has_policy) == ("none", None, None, False)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], None),
        ([b"v=spf1 -all", b"hello"], None),
        ([b"v=spf1 -all", b"v=DMARC1; p=reject"], "reject"),
        ([b"v=DMARC1; p=reject", b"v=DMARC1; p=reject"], None),
        ([b"v=DMARC1; p=none", b"v=DMARC1; p=reject", b"v=spf1 -all"], None),
        ([b"v=DMARC2; p=none", b"v=DMARC1; p=reject"], "reject"),
        ([(10, "mx.example.org")], None),
    ],
)
def test_of_several_records_none_counts(records: list[object], expected: str | None) -> None:
    """RFC 9989 section 4.10: "they are all discarded"."""
    record = record_in(records)
    assert (record.p if record else None) == expected


@given(st.binary(max_size=300))
def test_whatever_stands_behind_the_version_is_read(rest: bytes) -> None:
    """A record is not ours, and nothing in it may raise."""
    record = parsed(b"v=DMARC1;" + rest)
    assert record.p in ("none", "quarantine", "reject")
    assert record.text.isprintable() or not rest.decode("utf-8", "backslashreplace").isprintable()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "p": st.sampled_from(["none", "quarantine", "reject"]),
            "sp": st.sampled_from(["none", "quarantine", "reject"]),
            "np": st.sampled_from(["none", "quarantine", "reject"]),
            "adkim": st.sampled_from("rs"),
            "aspf": st.sampled_from("rs"),
            "psd": st.sampled_from("ynu"),
            "t": st.sampled_from("yn"),
        },
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_tags_does_not_matter(tags: dict[str, str], random: object) -> None:
    items = [f"{name}={value}" for name, value in tags.items()]
    one = parsed(("v=DMARC1;" + ";".join(items)).encode())
    random.shuffle(items)  # type: ignore[attr-defined]  # hypothesis's Random
    other = parsed(("v=DMARC1; " + " ; ".join(items)).encode())
    assert (one.p, one.sp, one.np, one.adkim, one.aspf, one.psd, one.is_testing) == (
        other.p,
        other.sp,
        other.np,
        other.adkim,
        other.aspf,
        other.psd,
        other.is_testing,
    )
    assert one.has_policy is ("p" in tags)
