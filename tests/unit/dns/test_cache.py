"""The cache of answers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.dns.cache import AnswerCache

KEY = ("a.test", RecordType.TXT)


def answer(text: bytes = b"", *, at: float = 0.0) -> Answer:
    return Answer(Question(*KEY), Outcome.ANSWER, (text,), answered_at=at)


def test_an_answer_is_gone_when_its_time_is_over() -> None:
    """To the moment."""
    cache = AnswerCache(10)
    kept = answer()
    cache.put(KEY, kept, 60.0)
    assert cache.get(KEY, 59.999) is kept
    assert cache.get(KEY, 60.0) is None
    assert len(cache) == 0


def test_a_clock_that_was_set_back_keeps_nothing_alive() -> None:
    """Else an answer would hold for as long as the clock was wrong."""
    cache = AnswerCache(10)
    cache.put(KEY, answer(at=5000.0), 5060.0)
    assert cache.get(KEY, 1000.0) is None


def test_long_answers_take_the_room_of_many() -> None:
    """A stranger's domain may answer with 64 KiB; twenty thousand of those are not kept."""
    cache = AnswerCache(20_000, max_octets=1_000_000)
    for number in range(100):
        cache.put((f"{number}.test", RecordType.TXT), answer(b"x" * 60_000), 60.0)
    assert len(cache) == 16
    assert cache.get(("99.test", RecordType.TXT), 0.0) is not None


def test_an_answer_that_is_too_long_for_the_whole_cache_is_not_kept() -> None:
    """Nor does it hurt."""
    cache = AnswerCache(10, max_octets=10_000)
    cache.put(KEY, answer(b"x" * 60_000), 60.0)
    assert len(cache) == 0


def test_a_cache_of_no_entries_keeps_nothing() -> None:
    """That is how it is switched off."""
    cache = AnswerCache(0)
    cache.put(KEY, answer(), 60.0)
    assert cache.get(KEY, 0.0) is None


_NAMES = st.sampled_from([f"{letter}.test" for letter in "abcdef"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _NAMES, st.integers(1, 50), st.integers(0, 4000)),
        st.tuples(st.just("get"), _NAMES, st.integers(0, 20), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(_STEPS)
def test_it_holds_what_was_put_in_last_and_never_too_much(steps: list[tuple[str, str, int, int]]) -> None:
    """Whatever is put in and asked for, in whatever order."""
    cache = AnswerCache(3, max_octets=8000)
    last: dict[str, tuple[Answer, float]] = {}
    now = 0.0
    for step, name, number, octets in steps:
        key = (name, RecordType.TXT)
        if step == "put":
            last[name] = (answer(b"x" * octets, at=now), now + number)
            cache.put(key, *last[name])
        else:
            now += number
            found = cache.get(key, now)
            assert found is None or (found is last[name][0] and now < last[name][1])
        assert len(cache) <= 3
        assert 0 <= cache._octets <= 8000
    cache.clear()
    assert (len(cache), cache._octets) == (0, 0)
