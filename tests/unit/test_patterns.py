"""No pattern that meets a peer's octets can take more than linear time: shown by how they are made, not by a clock.

A backtracking matcher is slow where it can give back what it has taken and try again. So every repetition without an
upper bound has to be possessive, which never gives back; a greedy one is allowed where the bound is a small number.

Python before 3.11.5 (Debian 12 has 3.11.2) matches possessive groups wrongly (cpython issue 106052): where the last
round of one fails, matching goes on from wherever a repetition, an alternative or an assertion in it had begun.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]  # private: there is no other way to see a pattern
from types import ModuleType
from typing import Any

import pytest

import mailgate.auth
import mailgate.dns
import mailgate.envelope
import mailgate.message
import mailgate.outbound.mta_sts
import mailgate.proxy
import mailgate.smtp.command
import mailgate.smtp.grammar
import mailgate.smtp.reply

MAX_GREEDY_REPEAT = 40

MODULES = [
    mailgate.envelope,
    mailgate.message,
    mailgate.outbound.mta_sts,
    mailgate.proxy,
    mailgate.smtp.command,
    mailgate.smtp.grammar,
    mailgate.smtp.reply,
    *(
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (mailgate.auth, mailgate.dns)
        for module in pkgutil.iter_modules(package.__path__)
    ),
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


SIMPLE = (
    _constants.LITERAL,
    _constants.NOT_LITERAL,
    _constants.IN,
    _constants.ANY,
)
REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


def possessive_groups_that_lose_their_place(pattern: re.Pattern[str] | re.Pattern[bytes]) -> int:
    """How many possessive groups in it may fail behind what has moved the place that Python 3.11.4 goes on from."""
    found = 0
    for body in _possessive_groups(_parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE & ~re.DEBUG)):
        found += not _keeps_its_place(body)
    return found


def _possessive_groups(node: Any) -> Iterator[Any]:  # Any: as above
    if isinstance(node, _parser.SubPattern):
        for operator, argument in node:
            if operator is _constants.POSSESSIVE_REPEAT and not _is_simple(argument[2]):
                yield argument[2]
            yield from _possessive_groups(argument)
    elif isinstance(node, (tuple, list)):
        for part in node:
            yield from _possessive_groups(part)


def _is_simple(items: Any) -> bool:  # Any: as above
    return len(items) == 1 and items[0][0] in SIMPLE


def _keeps_its_place(items: Any) -> bool:  # Any: as above
    is_at_start, has_moved = True, False
    for operator, argument in _without_groups(items):
        if operator in SIMPLE:
            if has_moved:
                return False
        elif operator in REPEATS:
            if (argument[0] > 0 and not is_at_start) or not _is_simple(argument[2]):
                return False
            has_moved = True
        elif operator in (_constants.ASSERT, _constants.ASSERT_NOT):
            if not is_at_start or not all(inner[0] in SIMPLE for inner in argument[1]):
                return False
            continue
        elif operator is _constants.BRANCH:
            if not is_at_start or not all(_keeps_its_place(branch) for branch in argument[1]):
                return False
            has_moved = True
        else:
            return False
        is_at_start = False
    return True


def _without_groups(items: Any) -> Iterator[Any]:  # Any: as above
    for operator, argument in items:
        if operator is _constants.SUBPATTERN:
            yield from _without_groups(argument[3])
        else:
            yield operator, argument


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (r"a++(?:\.a++)*+", 1),
        (r"a++(?:\.aa*+)*+", 0),
        (r"(?:-++a)*+", 1),
        (r"(?:a|\+[0-9]{2})*+", 1),
        (r"(?:a++|\+[0-9][0-9])*+", 0),
        (r"(?:,@(?:ab|c))*+", 1),
        (r"(?:[^\r]++|\r(?!\n)|\r\n )*+", 1),
        (r"(?:[^\r]++|(?!\r\n)\r|\r\n )*+", 0),
        (r"(?: ++(LAST))?+", 1),
        (r"(?: ++(LAST))?", 0),
        (r"(?P<x>(?:=(a++))?+)", 1),
    ],
)
def test_groups_that_lose_their_place_are_found(pattern: str, count: int) -> None:
    """Each of the first kind takes something wrong in Python 3.11.2."""
    assert possessive_groups_that_lose_their_place(re.compile(pattern)) == count


@pytest.mark.parametrize("pattern", list(patterns_of(MODULES)))
def test_no_possessive_group_loses_its_place(pattern: re.Pattern[str] | re.Pattern[bytes]) -> None:
    """With the older Python, "a@example..test" would be an address."""
    assert possessive_groups_that_lose_their_place(pattern) == 0
