"""A session that meets clients who know the grammar and do not keep to it.

What must hold, whatever they say: no exception escapes; each command, message and chunk gets one reply, in order, and
the replies have their shape; the same octets get the same replies, however they are cut and whenever we answer; each
transaction ends once, as a message or as a record; memory is bounded; nothing but lines is stored.

An input is named by its number: `check(number)` plays it again.
"""

from __future__ import annotations

import re
from random import Random

import pytest

from mailgate.policy.stage import Request
from mailgate.policy.verdict import Continue, Decision, Defer, Discard, Quarantine, Reject
from mailgate.smtp.reply import reply
from mailgate.storage.records import IncomingMessage
from tests.fuzz.grammar import conversation, cut
from tests.scenario.player import Player
from tests.support.replies import check_shape, split_replies

_COMMAND_OCTETS = 600
_MESSAGE_OCTETS = 3000
_ERRORS = 12
_LIMITS = [
    f"given limit message_octets {_MESSAGE_OCTETS}",
    f"given limit command_octets {_COMMAND_OCTETS}",
    "given limit recipients 3",
    "given limit transactions 6",
    f"given limit errors {_ERRORS}",
    "given limit received_fields 3",
]
_TOLERATED = ("bare_line_ends", "nul", "long_lines")

_VERDICTS = (
    *[Decision(Continue())] * 24,
    Decision(Quarantine("odd"), "fuzz"),
    Decision(Discard("odd"), "fuzz"),
    Decision(Reject(reply(550, "5.7.1", "No")), "fuzz"),
    Decision(Reject(reply(554, "5.7.1", "No, and", "why")), "fuzz"),
    Decision(Defer(reply(451, "4.7.1", "Later")), "fuzz"),
    Decision(Defer(reply(421, "4.7.1", "Go away")), "fuzz"),
)


class Fuzzed(Player):
    """A player whose world is as moody as the client; but the mood depends on nothing but the seed."""

    def __init__(self, given: list[str], seed: int, *, answers_late: bool) -> None:
        self._mood = Random(seed)
        super().__init__(given, answers_late=answers_late)

    def _decide(self, request: Request) -> Decision:
        return self._mood.choice(_VERDICTS)

    def _store(self, message: IncomingMessage) -> None:
        self._storage = "works" if self._mood.random() < 0.9 else "away"
        super()._store(message)


def check(number: int) -> None:
    """Play the input of that number.

    @raises AssertionError: something does not hold.
    """
    random = Random(number)
    given = [*_LIMITS, "given mechanisms PLAIN LOGIN"]
    given += [f"given tolerated {name}" for name in _TOLERATED if random.random() < 0.1]
    offers_starttls = random.random() < 0.3
    if offers_starttls:
        given.append("given offers STARTTLS")
    octets = conversation(random)
    whole = play(given, number, [octets], answers_late=False)
    output = whole.take_output()
    if not offers_starttls:
        # With STARTTLS it matters, and has to, whether the client waited.
        walk(octets, output, takes_lf="given tolerated bare_line_ends" in given)
        pieces = cut(random, octets)
        again = play(given, number, pieces, answers_late=random.random() < 0.5)
        assert again.take_output() == output
        assert contents(again) == contents(whole)
        assert again.records == whole.records
    else:
        cut_finely = play(given, number, cut(random, octets), answers_late=False)
        for heard in split_replies(cut_finely.take_output()):
            assert heard.code >= 200


def play(given: list[str], seed: int, pieces: list[bytes], *, answers_late: bool) -> Fuzzed:
    player = Fuzzed(given, seed, answers_late=answers_late)
    session = player.session
    longest = max(map(len, pieces), default=0)
    for piece in pieces:
        player.feed(piece)
        if player.wants_tls:
            player.direct("tls")
        assert answers_late or session.waiting_octets <= max(_COMMAND_OCTETS, 12288)
        assert session.held_octets <= _MESSAGE_OCTETS + longest
    player.settle()
    player.end()
    record = player.session_record
    assert record is not None
    assert record.transactions == len(player.stored) + len(player.records)
    assert len(record.dialogue) < 201 * 600
    assert re.search("[\x00-\x09\x0b-\x1f\x7f]", record.dialogue) is None
    for message in player.stored:
        content = message.content.joined()
        assert len(content) == message.content.size_octets <= _MESSAGE_OCTETS
        assert content == b"" or content.endswith(b"\r\n")
        assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
        assert any(recipient.accepted for recipient in message.transaction.recipients)
    return player


def contents(player: Player) -> list[bytes]:
    return [message.content.joined() for message in player.stored]


# ------------------------------------------------------------ one reply for each, by a client's reckoning

_LINE = re.compile(rb"[^\n]*\n")
_CHUNK = re.compile(rb"BDAT +([0-9]{1,20})( +LAST)?[ \t]*\r?\n", re.IGNORECASE)
_GREETING = re.compile(rb"(EHLO|HELO) ", re.IGNORECASE)
_ENDS = 421, 221
_CLOSING = re.compile(rb"; closing \[\w+\]\Z")


def walk(octets: bytes, output: bytes, *, takes_lf: bool) -> None:
    """Go through what was sent and heard, as a client that waits for each reply would, and find nothing left over."""
    replies = iter(split_replies(output))
    greeting = next(replies)
    check_shape(greeting, is_greeting=True)
    is_over = greeting.code in _ENDS or 400 <= greeting.code < 500
    place = errors = 0
    is_in_exchange = False
    while not is_over:
        line = _LINE.match(octets, place)
        if line is None:
            break
        start, place = place, line.end()
        chunk = None if is_in_exchange or len(line[0]) > _COMMAND_OCTETS + 1 else _CHUNK.fullmatch(line[0])
        if chunk is not None and (takes_lf or line[0].endswith(b"\r\n")):
            place += int(chunk[1])
            if place > len(octets):
                break  # the rest of the chunk is still to come
        heard = next(replies, None)
        assert heard is not None, f"no reply to {octets[start:place]!r}"
        answers_greeting = heard.code == 250 and _GREETING.match(line[0]) is not None
        check_shape(heard, answers_greeting=answers_greeting)
        was_in_exchange, is_in_exchange = is_in_exchange, heard.code == 334
        errors += heard.code >= 500
        if heard.code == 354:
            end = _end_of_data(octets, place)
            if end is None:
                break
            place = end
            heard = next(replies, None)
            assert heard is not None, "no reply to a message"
            check_shape(heard)
            errors += heard.code >= 500
        is_bad_chunk = chunk is None and line[0][:4].upper() == b"BDAT" and heard.code in (500, 501)
        is_over = (
            heard.code in _ENDS
            or (is_bad_chunk and not was_in_exchange)
            or _CLOSING.search(heard.lines[-1]) is not None
        )
        if errors == _ERRORS and not is_over:
            assert next(replies).code == 421
            is_over = True
    assert list(replies) == [], "more replies than commands"


def _end_of_data(octets: bytes, start: int) -> int | None:
    if octets.startswith(b".\r\n", start):
        return start + 3
    end = octets.find(b"\r\n.\r\n", start)
    return None if end < 0 else end + 5


# ------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_no_input_breaks_a_session(part: int) -> None:
    run(part * 1_000_000, 1500)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_a_million_inputs_break_no_session(part: int) -> None:
    run(10_000_000 + part * 100_000, 100_000)


def run(first: int, count: int) -> None:
    for number in range(first, first + count):
        try:
            check(number)
        except Exception as error:
            raise AssertionError(f"input {number}: {error!r}") from error
