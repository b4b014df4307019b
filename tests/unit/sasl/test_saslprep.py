"""SASLprep."""

from __future__ import annotations

import stringprep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.sasl.saslprep import Unprepared, saslprep


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("a\u3000b", "a b"),
        ("\ufb01sh", "fish"),
        ("e\u0301", "\u00e9"),
        ("\u0627\u0031\u0628", "\u0627\u0031\u0628"),
        ("", ""),
        ("\u00ad", ""),
    ],
)
def test_a_text_is_prepared(text: str, prepared: str) -> None:
    """RFC 4013 section 3, its first five examples, and what section 2 says of spaces and of nothing."""
    assert saslprep(text) == prepared


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\u0007", "control character"),
        ("\u0627\u0031", "neither first nor last"),
        ("\u0627a\u0628", "mixes"),
        ("\ue000", "private use"),
        ("\ufdd0", "no character"),
        ("\ud800", "surrogate"),
        ("\ufffd", "inappropriate for plain text"),
        ("\u2ff0", "describes others"),
        ("\u200e", "changes how others are shown"),
        ("\U000e0001", "tagging"),
        ("\x7f", "control character"),
        ("a\nb", "control character"),
    ],
)
def test_a_prohibited_text_has_no_prepared_form(text: str, problem: str) -> None:
    """RFC 4013 section 2.3 and 2.4, and the last two examples of section 3; the text itself is not repeated."""
    with pytest.raises(Unprepared, match=problem) as caught:
        saslprep(text)
    assert text not in str(caught.value)


def test_what_unicode_3_2_does_not_know_may_be_compared_and_not_stored() -> None:
    """RFC 4013 section 2.5: a stored string has no unassigned code points, a query may."""
    assert saslprep("\U0001f511") == "\U0001f511"
    with pytest.raises(Unprepared, match="newer"):
        saslprep("\U0001f511", is_stored=True)


@given(st.text())
def test_a_prepared_text_holds_nothing_prohibited_and_is_prepared_already(text: str) -> None:
    """Else two sides that prepare once and twice would not agree."""
    try:
        prepared = saslprep(text)
    except Unprepared:
        return
    assert not any(
        stringprep.in_table_c12(char) or stringprep.in_table_c21_c22(char) or stringprep.in_table_c5(char)
        for char in prepared
    )
    try:
        assert saslprep(prepared) == prepared
    except Unprepared:
        # Normalization may bring something from the right to the front only once: never an ASCII text.
        assert not prepared.isascii()
