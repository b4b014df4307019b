"""Identifiers of sessions and transactions: 63 bits, in order of time, unique over all nodes without asking.

    41 bits  milliseconds since 2020-01-01T00:00:00Z (until the year 2089)
    12 bits  the instance: a number that each process draws from the database when it starts
    10 bits  a counter within the millisecond

A message has the id of the transaction that brought it. People see an id as 13 characters of Crockford's base 32 in
lower case; it is the same id in replies, headers, logs and the command line.
"""

from __future__ import annotations

from collections.abc import Callable

EPOCH_SECONDS = 1_577_836_800  # 2020-01-01T00:00:00Z
INSTANCES = 4096

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)} | {"i": 1, "l": 1, "o": 0}
_LENGTH = 13


class IdGenerator:
    """Makes ids; never the same twice, never one smaller than the one before, even if the clock is set back."""

    __slots__ = ("_instance", "_last", "_time")

    def __init__(self, instance: int, time: Callable[[], float]) -> None:
        """`instance` is 0 to 4095; `time` gives seconds since the epoch."""
        if not 0 <= instance < INSTANCES:
            raise ValueError(f"an instance is 0 to {INSTANCES - 1}, not {instance}")
        self._instance = instance << 10
        self._time = time
        self._last = 0

    def next(self) -> int:
        """A new id."""
        last = self._last
        value = (int((self._time() - EPOCH_SECONDS) * 1000) << 22) | self._instance
        if value <= last:
            value = last + 1
            if value & 0x3FF == 0:  # the counter is used up: borrow the next millisecond
                value = (((last >> 22) + 1) << 22) | self._instance
        self._last = value
        return value


def first_id_at(seconds: float) -> int:
    """The smallest id of that time (seconds since the epoch): where a partition begins."""
    return int((seconds - EPOCH_SECONDS) * 1000) << 22


def time_of(identifier: int) -> float:
    """When that id was made, in seconds since the epoch, to the millisecond."""
    return (identifier >> 22) / 1000 + EPOCH_SECONDS


def encode_id(identifier: int) -> str:
    """The id as people see it: 13 characters."""
    chars = []
    for _ in range(_LENGTH):
        chars.append(_ALPHABET[identifier & 31])
        identifier >>= 5
    return "".join(reversed(chars))


def decode_id(text: str) -> int:
    """The id that a person wrote; capitals and the look-alikes i, l and o are understood.

    @raises ValueError: this is no id; the message says what one looks like.
    """
    cleaned = text.strip().strip("[]").lower()
    if len(cleaned) != _LENGTH or any(char not in _VALUES for char in cleaned):
        raise ValueError(f"{text!r} is not an id: an id is {_LENGTH} letters and digits, as 1m9x2k7q0vb3d")
    value = 0
    for char in cleaned:
        value = value << 5 | _VALUES[char]
    if value >= 1 << 63:
        raise ValueError(f"{text!r} is not an id: it is too large")
    return value
