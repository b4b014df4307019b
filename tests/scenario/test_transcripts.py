"""Every transcript, with the input cut in every way and with our answers at once and late.

The same octets must give the same replies in the same order however they arrive (RFC 2920 section 3.2), and must leave
the same messages and records behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.player import Transcript, play, read_transcript
from tests.support.replies import check_shape, split_replies

TRANSCRIPTS = [read_transcript(path) for path in sorted(Path(__file__).with_name("transcripts").glob("*.txt"))]
CUT_FREELY = [transcript for transcript in TRANSCRIPTS if transcript.is_cut_freely]

# Of longer input, so many offsets at both ends and some between are tried: an endless line has no inner life.
_EVERY_OFFSET_UP_TO = 2500


def name_of(transcript: Transcript) -> str:
    return transcript.name


def whole(_index: int, octets: bytes) -> Iterator[bytes]:
    if octets:
        yield octets


def byte_by_byte(_index: int, octets: bytes) -> Iterator[bytes]:
    for place in range(len(octets)):
        yield octets[place : place + 1]


def offsets_of(octets: bytes) -> list[int]:
    length = len(octets)
    if length <= _EVERY_OFFSET_UP_TO:
        return list(range(1, length))
    edge = _EVERY_OFFSET_UP_TO // 2
    return [*range(1, edge), *range(edge, length - edge, 997), *range(length - edge, length)]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=name_of)
def test_transcript_fed_turn_by_turn(transcript: Transcript) -> None:
    play(transcript, cut=whole)


@pytest.mark.parametrize("answers_late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("transcript", CUT_FREELY, ids=name_of)
def test_transcript_fed_whole(transcript: Transcript, answers_late: bool) -> None:
    """The client waits for nothing, and we may take our time: the replies are the same."""
    play(transcript.pipelined(), cut=whole, answers_late=answers_late)


@pytest.mark.parametrize("answers_late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("transcript", CUT_FREELY, ids=name_of)
def test_transcript_fed_byte_by_byte(transcript: Transcript, answers_late: bool) -> None:
    play(transcript, cut=byte_by_byte, answers_late=answers_late)
    play(transcript.pipelined(), cut=byte_by_byte, answers_late=answers_late)


@pytest.mark.parametrize("transcript", CUT_FREELY, ids=name_of)
def test_transcript_split_at_every_offset(transcript: Transcript) -> None:
    pipelined = transcript.pipelined()
    for index, turn in enumerate(pipelined.turns):
        for offset in offsets_of(turn.sent):

            def cut(current: int, octets: bytes, index: int = index, offset: int = offset) -> Iterator[bytes]:
                if current == index:
                    yield octets[:offset]
                    yield octets[offset:]
                elif octets:
                    yield octets

            play(pipelined, cut=cut)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=name_of)
def test_replies_have_their_shape(transcript: Transcript) -> None:
    """RFC 2034 section 4, RFC 3463 section 2, RFC 5321 sections 4.2 and 4.5.3.1.5."""
    player = play(transcript, cut=whole)
    assert player.session_record is not None
    for number, turn in enumerate(transcript.turns):
        filled = turn.heard
        for name, value in player.named.items():
            filled = filled.replace(b"{" + name + b"}", value)
        for heard in split_replies(filled):
            is_answer_to_greeting = heard.code == 250 and heard.lines[0] == b"mx.example.test"
            check_shape(heard, is_greeting=number == 0, answers_greeting=is_answer_to_greeting)


def test_there_are_transcripts() -> None:
    assert len(CUT_FREELY) > 40
