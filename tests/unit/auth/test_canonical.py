"""Canonical forms: what is hashed, against dkimpy and against RFC 6376's examples, however the body is cut."""

from __future__ import annotations

import base64
import hashlib
import time

import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.auth.canonical import (
    STEP_OCTETS,
    BodyForm,
    MalformedHeader,
    body_hashes,
    body_hashes_in_steps,
    fields_of,
    relaxed_field,
)
from tests.support.signed import content_of

HEADER = b"A: b\r\n\r\n"
FORMS = [BodyForm(False), BodyForm(True)]

# What the canonical forms look at, and what they don't; bare CR and LF can't be stored, and must do no harm.
BODIES = st.lists(
    st.sampled_from(
        [b"a", b"bc", b" ", b"  ", b"\t", b"\r\n", b"\r\n\r\n", b" \r\n", b"\t \r\n", b"\r", b"\n", b"\xff"]
    ),
    max_size=24,
).map(b"".join)
LINES = st.lists(
    st.binary(max_size=12).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b" ")), max_size=8
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
CUTS = st.lists(st.integers(0, 64), max_size=8)


def expected(body: bytes, form: BodyForm) -> tuple[int, bytes]:
    """What dkimpy's canonicalization makes of it."""
    canonical = (Relaxed if form.is_relaxed else Simple).canonicalize_body(body)
    return len(canonical), hashlib.sha256(canonical[: form.length_octets]).digest()


def found(body: bytes, form: BodyForm, *cuts: int) -> tuple[int, bytes]:
    result = body_hashes(content_of(HEADER + body, *cuts), [form])[form]
    return result.body_octets, result.sha256


@settings(max_examples=400)
@given(BODIES | LINES, CUTS, st.sampled_from(FORMS))
def test_any_body_has_the_hash_that_dkimpy_gives_it(body: bytes, cuts: list[int], form: BodyForm) -> None:
    """RFC 6376 sections 3.4.3 and 3.4.4, however the body is cut."""
    assert found(body, form, *cuts) == expected(body, form)


@settings(max_examples=200)
@given(BODIES | LINES, CUTS, st.booleans(), st.integers(0, 40))
def test_any_beginning_of_a_body_has_the_hash_that_dkimpy_gives_it(
    body: bytes, cuts: list[int], is_relaxed: bool, length: int
) -> None:
    """RFC 6376 section 3.4.5: `l=` counts octets of the canonical body."""
    form = BodyForm(is_relaxed, length)
    assert found(body, form, *cuts) == expected(body, form)


def test_a_body_can_be_cut_anywhere() -> None:
    """A piece ends where a read ended: in a CRLF, in a run of blanks, in empty lines."""
    body = b" a \t b \r\n\r\n \r\n\t\r\nc\r\n \t \r\n\r\n"
    for cut in range(len(HEADER + body)):
        for form in FORMS:
            assert found(body, form, cut) == expected(body, form), cut


@given(BODIES)
def test_one_walk_gives_the_hashes_of_all_forms(body: bytes) -> None:
    """Several signatures cost one walk over the body for each canonical form, and not one each."""
    forms = [BodyForm(False), BodyForm(True), BodyForm(False, 3), BodyForm(True, 3), BodyForm(True, 0)]
    hashes = body_hashes(content_of(HEADER + body), forms)
    assert {form: (h.body_octets, h.sha256) for form, h in hashes.items()} == {f: expected(body, f) for f in forms}


# The value of bh= that RFC 6376 sections 3.4.3 and 3.4.4 give for an empty body.
EMPTY = [
    (BodyForm(False), "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY="),
    (BodyForm(True), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
]


@pytest.mark.parametrize(("form", "value"), EMPTY)
@pytest.mark.parametrize("message", [b"A: b\r\n", b"A: b\r\n\r\n", b"A: b\r\n\r\n\r\n\r\n", b"\r\n", b""])
def test_an_empty_body_has_the_hash_of_the_rfc(form: BodyForm, value: str, message: bytes) -> None:
    """RFC 6376 section 3.4.3: CRLF in the simple form; section 3.4.4: nothing in the relaxed form."""
    assert body_hashes(content_of(message), [form])[form].sha256 == base64.b64decode(value)


def test_the_example_of_section_3_4_5_is_met() -> None:
    """RFC 6376 section 3.4.5: ` C <CRLF>D <HTAB><HTAB> E<CRLF><CRLF><CRLF>`."""
    body = b" C \r\nD \t E\r\n\r\n\r\n"
    assert found(body, BodyForm(True))[1] == hashlib.sha256(b" C\r\nD E\r\n").digest()
    assert found(body, BodyForm(False))[1] == hashlib.sha256(b" C \r\nD \t E\r\n").digest()


def test_the_header_example_of_section_3_4_5_is_met() -> None:
    """RFC 6376 section 3.4.5: `A: <SP>X`, `B <SP>: Y<HTAB>` folded, with `Z<SP><SP>`."""
    fields = fields_of(b"A: X\r\nB : Y\t\r\n\tZ  \r\n")
    assert [relaxed_field(field.raw) for field in fields] == [b"a:X\r\n", b"b:Y Z\r\n"]
    assert [field.raw for field in fields] == [b"A: X\r\n", b"B : Y\t\r\n\tZ  \r\n"]
    assert [field.name for field in fields] == [b"a", b"b"]
    assert [field.has_blank_before_colon for field in fields] == [False, True]


@given(
    st.text("Aa-9", min_size=1).map(str.encode),
    st.lists(st.sampled_from([b"x", b"Y", b" ", b"\t", b"\r\n ", b"\r\n\t", b":", b"\xc3"]), max_size=12).map(b"".join),
)
def test_a_relaxed_field_is_the_one_of_dkimpy(name: bytes, value: bytes) -> None:
    """RFC 6376 section 3.4.2."""
    ((other_name, other_value),) = Relaxed.canonicalize_headers([(name, value + b"\r\n")])
    assert relaxed_field(name + b":" + value + b"\r\n") == other_name + b":" + other_value


@pytest.mark.parametrize(
    "header", [b" A: b\r\n", b"A: b\r\nno field\r\n", b"A b: c\r\n", b"\xc3\xa4: b\r\n", b": b\r\n"]
)
def test_a_line_that_is_no_field_makes_the_header_malformed(header: bytes) -> None:
    """RFC 5322 section 2.2: a reader may take it for the end of the header section, and a signature must not."""
    with pytest.raises(MalformedHeader):
        fields_of(header)


HOSTILE = [
    b" " * 5_000_000 + b"x\r\n",
    b" \t" * 2_500_000 + b"\r\n",
    b"a \t\r\n" * 1_000_000,
    b"\r\n" * 2_500_000 + b"x\r\n",
    b"\t\r\n" * 1_600_000,
    b"\r" * 5_000_000,
    b"\n\r\n" * 1_600_000,
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:6]))
def test_no_body_takes_time_that_grows_with_its_square(body: bytes) -> None:
    """Each takes a tenth of a second at most, for both forms; machines differ, and are busy."""
    began = time.process_time()
    body_hashes(content_of(HEADER + body, *range(0, len(body), 65_536)), FORMS)
    assert time.process_time() - began < 4.0


def test_a_large_body_is_walked_in_steps() -> None:
    """So that the reactor has a turn between them; the result is that of one go."""
    body = (b"x" * 70 + b" \r\n") * 60_000
    content = content_of(HEADER + body, *range(0, len(body), 65_536))
    walk = body_hashes_in_steps(content, FORMS)
    steps = 0
    while True:
        try:
            next(walk)
            steps += 1
        except StopIteration as done:
            hashes = done.value
            break
    assert steps == len(HEADER + body) // STEP_OCTETS
    assert hashes == body_hashes(content_of(HEADER + body), FORMS)


def test_a_piece_larger_than_a_step_is_cut() -> None:
    """What a caller keeps in one piece must not hold the reactor up either."""
    content = content_of(HEADER + b"x\r\n" * STEP_OCTETS)
    assert sum(1 for _ in body_hashes_in_steps(content, FORMS)) == 2
