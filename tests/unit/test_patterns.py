"""No pattern that meets a peer's octets can take more than linear time: shown by how they are made, not by a clock.

A backtracking matcher is slow where it can give back what it has taken and try again. So every repetition without an
upper bound has to be possessive, which never gives back; a greedy one is allowed where the bound is a small number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]  # private: there is no other way to see a pattern
from types import ModuleType
from typing import Any

import pytest

import mailgate.envelope
import mailgate.message
import mailgate.proxy
import mailgate.smtp.command
import mailgate.smtp.grammar
import mailgate.smtp.reply

MAX_GREEDY_REPEAT = 40

MODULES = [
    mailgate.envelope,
    mailgate.message,
    mailgate.proxy,
    mailgate.smtp.command,
    mailgate.smtp.grammar,
    mailgate.smtp.reply,
]


def patterns_of(modules: list[ModuleType]) -> Iterator[Any]:
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


def repeats_that_give_back(pattern: re.Pattern[str] | re.Pattern[bytes]) -> list[int]:
    """The upper bounds of all repetitions in it that are not possessive; MAXREPEAT for those without."""
    return list(_walk(_parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE & ~re.DEBUG)))


def _walk(node: Any) -> Iterator[int]:  # Any: the tree of a private parser
    if isinstance(node, _parser.SubPattern):
        for operator, argument in node:
            if operator in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
                yield argument[1]
            yield from _walk(argument)
    elif isinstance(node, (tuple, list)):
        for part in node:
            yield from _walk(part)


@pytest.mark.parametrize(
    ("pattern", "bounds"),
    [
        (r"a++b?+(?:c{2,}+d)*+", []),
        (r"(?P<x>a{1,20})|b?", [20, 1]),
        (r"(?:(x)|(?=y(z*)))++", [_constants.MAXREPEAT]),
        (r"a*?", [_constants.MAXREPEAT]),
    ],
)
def test_repeats_that_give_back_are_found_wherever_they_stand(pattern: str, bounds: list[int]) -> None:
    """Else the test below would prove nothing."""
    assert repeats_that_give_back(re.compile(pattern)) == bounds


@pytest.mark.parametrize("pattern", list(patterns_of(MODULES)))
def test_every_unbounded_repeat_is_possessive(pattern: re.Pattern[str] | re.Pattern[bytes]) -> None:
    """RFC 5321 puts bounds on what is valid, none on what a client may try."""
    assert all(bound <= MAX_GREEDY_REPEAT for bound in repeats_that_give_back(pattern))
