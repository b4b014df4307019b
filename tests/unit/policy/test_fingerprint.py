"""Fingerprints of policies' configurations."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from mailgate.policy.fingerprint import configuration_of
from mailgate.policy.plugin import NoOptions, providers


class Action(Enum):
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Inner:
    days: int = 1


@dataclass(frozen=True, slots=True)
class Options:
    action: Action = Action.REJECT
    networks: tuple[Any, ...] = (ipaddress.ip_network("192.0.2.0/24"),)
    names: frozenset[str] = frozenset({"b", "a"})
    folder: Path = Path("a/b")
    inner: Inner = Inner()
    share: float = 0.5
    key: str = field(default="secret", repr=False)


def test_all_options_are_there_as_json() -> None:
    assert json.loads(configuration_of("x", Options()).options) == {
        "action": "reject",
        "networks": ["192.0.2.0/24"],
        "names": ["a", "b"],
        "folder": "a/b",
        "inner": {"days": 1},
        "share": 0.5,
        "key": "(not shown)",
    }


def test_a_fingerprint_is_twelve_hexadecimal_digits_that_stay() -> None:
    """It is compared over years: a change here breaks the link from old verdicts to their options."""
    assert configuration_of("x", Inner()).fingerprint == "de29e33a56e4"


@pytest.mark.parametrize(
    "other",
    [
        configuration_of("y", Options()),
        configuration_of("x", replace(Options(), names=frozenset({"a"}))),
        configuration_of("x", replace(Options(), inner=Inner(2))),
        configuration_of("x", replace(Options(), key="another")),
    ],
)
def test_any_difference_makes_another_fingerprint(other: Any) -> None:
    """A secret counts as well, though it is not shown."""
    assert configuration_of("x", Options()).fingerprint != other.fingerprint


def test_the_order_of_a_set_makes_no_difference() -> None:
    names = [f"name{number}" for number in range(50)]
    one = replace(Options(), names=frozenset(names))
    other = replace(Options(), names=frozenset(reversed(names)))
    assert configuration_of("x", one) == configuration_of("x", other)


@pytest.mark.parametrize("options", [None, NoOptions()])
def test_a_policy_without_options_has_a_fingerprint_too(options: Any) -> None:
    assert configuration_of("x", options).options == "{}"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "a\0b"])
def test_what_jsonb_has_no_word_for_is_still_json(value: Any) -> None:
    text = configuration_of("x", replace(Options(), share=value)).options
    assert "NaN" not in text
    assert "Infinity" not in text
    assert "\\u0000" not in text
    json.loads(text)


@pytest.mark.parametrize("name", sorted(providers()))
def test_the_options_of_every_policy_can_be_written(name: str) -> None:
    options = providers()[name].options()
    assert json.loads(configuration_of(name, options).options).keys() == {each.name for each in fields(options)}
