"""What people read: tables, sizes, times, and text from strangers made safe to print.

Off a terminal a table has no colour and no limit on its width, so nothing is cut or wrapped where a program reads it;
on a terminal only the columns that say so are shortened. Whatever came from a message or a client is cleaned
first: an escape sequence in a subject must never reach the terminal.

Standards: ISO 8601 (times in JSON), ECMA-48 (control functions), Unicode UAX #9 (bidirectional controls).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

# C0 and C1 control functions, DEL, line and paragraph separators, bidirectional controls, and lone surrogates, which
# no terminal can be sent.
_UNSAFE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_BLANKS = re.compile(r"[\t\r\n\v\f\x85\u2028\u2029]+")
_CONTROLS = re.compile(f"[{_UNSAFE}]")
_CONTROLS_BUT_LINES = re.compile(f"(?![\t\n])[{_UNSAFE}]")
_UNSAFE_IN_JSON = re.compile(f"(?!\n)[{_UNSAFE}]")
_GAP = "  "
_MIN_FLEXIBLE = 10


def clean(text: str) -> str:
    """The text on one line, without anything that a terminal would obey."""
    return _CONTROLS.sub("", _BLANKS.sub(" ", text)).strip()


def clean_lines(text: str) -> str:
    """The text with its line breaks and tabs, without anything else that a terminal would obey."""
    return _CONTROLS_BUT_LINES.sub("", text.replace("\r\n", "\n"))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, whether a narrow terminal may shorten it, and whether numbers line up in it."""

    title: str
    is_flexible: bool = False
    is_number: bool = False
    style: str = ""
    min_width: int = 0


class Table:
    """Rows printed in columns; more rows may follow later in the same columns."""

    def __init__(self, *columns: Column, console: Console | None = None) -> None:
        """`console` is standard output unless given."""
        self._columns = columns
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._widths: list[int] = []

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        """Print the title line, once, and these rows; cells are cleaned here."""
        cells = [[clean(cell) for cell in row] for row in rows]
        if not self._widths:
            self._widths = self._fit(cells)
            self._line([column.title for column in self._columns], "bold")
        for row in cells:
            self._line(row)

    def _fit(self, rows: list[list[str]]) -> list[int]:
        widths = [
            max(column.min_width, cell_len(column.title), *(cell_len(row[index]) for row in rows), 0)
            for index, column in enumerate(self._columns)
        ]
        if self._console.is_terminal:
            flexible = [index for index, column in enumerate(self._columns) if column.is_flexible]
            while (excess := sum(widths) + len(_GAP) * (len(widths) - 1) - self._console.width) > 0:
                widest = max(flexible, key=lambda index: widths[index], default=None)
                if widest is None or widths[widest] <= _MIN_FLEXIBLE:
                    break
                others = max((widths[index] for index in flexible if index != widest), default=_MIN_FLEXIBLE)
                floor = max(_MIN_FLEXIBLE, min(others, widths[widest] - 1))
                widths[widest] = max(floor, widths[widest] - excess)
        return widths

    def _line(self, cells: Sequence[str], style: str = "") -> None:
        line = Text()
        last = len(cells) - 1
        for index, (cell, column, width) in enumerate(zip(cells, self._columns, self._widths, strict=True)):
            shown = cell
            if self._console.is_terminal and column.is_flexible and cell_len(cell) > width:
                shown = set_cell_size(cell, width - 1).rstrip() + "…"
            padding = " " * max(width - cell_len(shown), 0)
            if column.is_number:
                shown = padding + shown
            elif index != last:
                shown += padding
            line.append(shown, style or column.style)
            if index != last:
                line.append(_GAP)
        self._console.print(line, soft_wrap=True)


def print_json(records: Iterable[dict[str, Any]]) -> None:
    """Print an array of objects, one a line."""
    lines = [json_line(record) for record in records]
    click.echo("[" + ",".join(f"\n  {line}" for line in lines) + ("\n]" if lines else "]"))


def json_line(record: dict[str, Any]) -> str:
    """The object on one line; what a terminal would obey is escaped, and JSON says the same."""
    text = json.dumps(record, ensure_ascii=False, default=_json_value)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")


class Listed(Protocol):
    """What a list of a command has."""

    def cells(self) -> Sequence[str]:
        """What a table shows of it."""

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""


json_option = click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")


def print_list(items: Sequence[Listed], columns: Iterable[Column], *, as_json: bool, note: str) -> None:
    """Print a list as JSON or as a table; people are told by `note` why it is empty."""
    if as_json:
        print_json(item.record() for item in items)
    elif items:
        Table(*columns).print(item.cells() for item in items)
    else:
        print_note(note)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values below each other, the values lined up; empty values are left out."""
    shown = [(name, clean(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    console = Console(highlight=False, soft_wrap=True)
    for name, value in shown:
        line = Text(f"{name:<{width}}", "bold")
        line.append(f"{_GAP}{value}", "not bold")
        console.print(line, soft_wrap=True)


def print_error(text: str) -> None:
    """Print a line for people on standard error."""
    click.echo(f"mailgate: {clean(text)}", err=True)


def print_note(text: str) -> None:
    """Print a line on standard error that is no part of the answer."""
    click.echo(clean(text), err=True)


def local_time(when: datetime) -> str:
    """The time on this machine's clock, to the second."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(octets: int) -> str:
    """The size as people say it: "4.2 KiB"."""
    if octets < 1024:
        return f"{octets} B"
    value = float(octets)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def count(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun: "1 message", "1,204 messages"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draws a bar on standard error while the block runs, if that is a terminal; call the value with what is done."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(escape(clean(label)), total=total)

        def advance(done: int) -> None:
            bar.update(task, completed=done)

        yield advance
