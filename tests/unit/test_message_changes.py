"""What may change in a message that is accepted: fields leave its header or come on top, and nothing else."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mailgate.message import MAX_HEADER_OCTETS, MessageContent, revised


def content_of(octets: bytes, *cuts: int) -> MessageContent:
    edges = [0, *sorted(cuts), len(octets)]
    pieces = [octets[a:b] for a, b in pairwise(edges) if a < b]
    return MessageContent(pieces, len(octets), hashlib.sha256(octets).digest())


@given(
    st.lists(st.sampled_from([b"A: 1\r\n", b"B: 2\r\n\t3\r\n"]), min_size=1, max_size=6),
    st.lists(st.integers(0, 60), max_size=4),
    st.binary(max_size=30),
    st.integers(0, 63),
)
def test_the_fields_that_leave_are_the_only_change(
    fields: list[bytes], cuts: list[int], body: bytes, chosen: int
) -> None:
    """Size and SHA-256 are those of what is left, however the content was cut."""
    header = b"".join(fields)
    octets = header + b"\r\n" + body
    spans, position = [], 0
    for number, each in enumerate(fields):
        if chosen >> number & 1:
            spans.append((position, position + len(each)))
        position += len(each)
    kept = b"".join(each for number, each in enumerate(fields) if not chosen >> number & 1)
    changed = revised(content_of(octets, *[min(cut, len(octets)) for cut in cuts]), spans)
    assert changed.joined() == kept + b"\r\n" + body
    assert changed.size_octets == len(kept) + 2 + len(body)
    assert changed.sha256 == hashlib.sha256(kept + b"\r\n" + body).digest()


def test_fields_that_are_added_stand_on_top() -> None:
    """Whatever leaves: in any order, and told twice."""
    header = b"A: 1\r\nB: 2\r\nC: 3\r\n"
    changed = revised(content_of(header + b"\r\nbody\r\n", 7), [(12, 18), (0, 6), (0, 6)], b"Date: now\r\n")
    assert changed.joined() == b"Date: now\r\nB: 2\r\n\r\nbody\r\n"
    assert changed.header() == b"Date: now\r\nB: 2\r\n"


def test_a_header_within_the_bound_is_whole() -> None:
    """A large body is none of the header's."""
    octets = b"A: 1\r\n\r\n" + b"x" * (MAX_HEADER_OCTETS + 10)
    for cut in range(10):
        assert not content_of(octets, cut).has_endless_header


def test_a_header_beyond_the_bound_is_noticed() -> None:
    """What stands behind the bound is not looked at, so it must not be accepted."""
    line = b"A: " + b"x" * 900 + b"\r\n"
    octets = line * (MAX_HEADER_OCTETS // len(line) + 2) + b"Authentication-Results: us; dkim=pass\r\n\r\nbody\r\n"
    assert content_of(octets, 70_000).has_endless_header
