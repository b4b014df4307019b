"""The differences that docs/agreement.md explains, as its tables have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Set
from dataclasses import dataclass
from pathlib import Path

_DOCUMENT = Path(__file__).parents[2] / "docs" / "agreement.md"
_ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)

Difference = tuple[str, str, str, str]  # case, method, ours, theirs


@dataclass(frozen=True, slots=True)
class Row:
    """A difference, and the cases that have it."""

    cases: str  # an asterisk stands for anything
    method: str
    ours: str
    theirs: str

    def covers(self, name: str) -> bool:
        pattern = ".*".join(re.escape(part) for part in self.cases.split("*"))
        return re.fullmatch(pattern, name) is not None

    def explains(self, difference: Difference) -> bool:
        return (self.method, self.ours, self.theirs) == difference[1:] and self.covers(difference[0])


def _rows(methods: Collection[str]) -> list[Row]:
    return [row for row in (Row(*found) for found in _ROW.findall(_DOCUMENT.read_text())) if row.method in methods]


def unexplained(found: Set[Difference], methods: Collection[str]) -> list[Difference]:
    """Differences that no row has."""
    rows = _rows(methods)
    return [difference for difference in sorted(found) if not any(row.explains(difference) for row in rows)]


def stale(found: Set[Difference], methods: Collection[str], names: Set[str]) -> list[Row]:
    """Rows that cover no case, or one that does not differ so."""
    return [
        row
        for row in _rows(methods)
        if not (covered := [name for name in names if row.covers(name)])
        or any((name, row.method, row.ours, row.theirs) not in found for name in covered)
    ]
