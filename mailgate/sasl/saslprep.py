"""SASLprep: the form in which user names and passwords are compared.

The steps are those of stringprep, and the tables are the standard library's (Unicode 3.2, as the profile says). A text
that is to be stored may have no code point that Unicode 3.2 does not know; one that is only compared may.

Not here: the profiles of RFC 8265, which replace this one. SCRAM is defined by SASLprep (RFC 5802 section 5.1), its
clients use it, and where both profiles take a password they mean the same octets, but for compatibility characters,
which SASLprep makes ordinary ones.

Standards: RFC 4013 (SASLprep), RFC 3454 (stringprep), RFC 8265 section 6 (what has changed since).
"""

from __future__ import annotations

import stringprep
import unicodedata
from collections.abc import Callable


class Unprepared(ValueError):
    """The text has no prepared form; the message is for people and does not repeat the text."""


# RFC 4013 section 2.3: what the prepared text must not hold, each table with what it has.
_PROHIBITED: tuple[tuple[Callable[[str], bool], str], ...] = (
    (stringprep.in_table_c12, "a space that is none of ASCII's"),
    (stringprep.in_table_c21_c22, "a control character"),
    (stringprep.in_table_c3, "a character for private use"),
    (stringprep.in_table_c4, "a code point that is no character"),
    (stringprep.in_table_c5, "a surrogate"),
    (stringprep.in_table_c6, "a character that is inappropriate for plain text"),
    (stringprep.in_table_c7, "a character that describes others"),
    (stringprep.in_table_c8, "a character that changes how others are shown"),
    (stringprep.in_table_c9, "a tagging character"),
)


def saslprep(text: str, *, is_stored: bool = False) -> str:
    """The prepared form of a user name or password; perhaps empty.

    @raises Unprepared: it has none.
    """
    if text.isascii() and text.isprintable():
        return text
    # Section 2.1: non-ASCII spaces become SPACE, what is commonly mapped to nothing vanishes. Section 2.2: NFKC.
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for char in prepared:
        for is_in_table, what in _PROHIBITED:
            if is_in_table(char):
                raise Unprepared(f"it holds {what}")
        if is_stored and stringprep.in_table_a1(char):
            raise Unprepared("it holds a character that is newer than SASLprep")
    _check_directions(prepared)
    return prepared


def _check_directions(prepared: str) -> None:
    """Section 2.4: RFC 3454 section 6, on text that is written from right to left."""
    if not any(stringprep.in_table_d1(char) for char in prepared):
        return
    if any(stringprep.in_table_d2(char) for char in prepared):
        raise Unprepared("it mixes characters written from the right with characters written from the left")
    if not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])):
        raise Unprepared("characters written from the right stand neither first nor last")
