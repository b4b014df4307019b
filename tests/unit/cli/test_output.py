"""What the command line prints: safe, whole where a program reads it, and lined up."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from mailgate.cli.output import Column, Table, clean, clean_lines, count, json_line, print_fields, print_json, size

HOSTILE = "a\x1b]0;title\x07b\x9b31mc\x1b[2Jd\u202ee\rf\x00g"


@pytest.mark.parametrize(
    "control", ["\x1b", "\x07", "\x00", "\x08", "\x7f", "\x9b", "\x85", "\u202e", "\u2066", "\ud800"]
)
def test_no_control_reaches_a_terminal(control: str) -> None:
    """ECMA-48: ESC, CSI in its 8-bit form and their kin move the cursor, set titles, or worse."""
    assert control not in clean(f"a{control}b")
    assert control not in clean_lines(f"a{control}b")
    assert control not in json_line({"subject": f"a{control}b"})


@given(st.text(st.characters()))
def test_cleaned_text_is_one_printable_line(text: str) -> None:
    """Whatever came in a message, a cell of a table stays on its line."""
    cleaned = clean(text)
    assert len(cleaned.splitlines()) <= 1
    assert not set(cleaned) & {chr(code) for code in (*range(32), *range(127, 160))}
    cleaned.encode("utf-8")


@given(st.dictionaries(st.text(st.characters(), min_size=1), st.text(st.characters())))
def test_json_says_what_it_was_given(record: dict[str, str]) -> None:
    """Escaping for the terminal's sake is JSON's own escaping (RFC 8259 section 7): nothing is lost."""
    line = json_line(record)
    line.encode("utf-8")
    assert json.loads(line) == record


def test_lines_of_a_text_stay_lines() -> None:
    """A message's text keeps its lines and tabs."""
    assert clean_lines("one\r\n\ttwo\x1b[1m\r\n") == "one\n\ttwo[1m\n"


def test_json_times_are_iso_8601(capsys: pytest.CaptureFixture[str]) -> None:
    """Times in JSON carry their offset."""
    print_json([{"at": datetime(2026, 11, 23, 13, 0, tzinfo=UTC)}])
    assert json.loads(capsys.readouterr().out) == [{"at": "2026-11-23T13:00:00+00:00"}]


def test_no_objects_are_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that reads JSON gets an array, whatever is in it."""
    print_json([])
    assert json.loads(capsys.readouterr().out) == []


def _print(rows: list[list[str]], *, width: int, is_terminal: bool) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None, soft_wrap=True)
    Table(Column("ID"), Column("SUBJECT", is_flexible=True), Column("SIZE", is_number=True), console=console).print(
        rows
    )
    return [line for line in file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").split("\n") if line]


def test_off_a_terminal_nothing_is_cut_or_wrapped() -> None:
    """A program that reads the table sees every id and subject whole, a row a line."""
    lines = _print([["0" * 13, "s" * 500, "1 B"]], width=40, is_terminal=False)
    assert len(lines) == 2
    assert lines[1].split() == ["0" * 13, "s" * 500, "1", "B"]


def test_on_a_terminal_only_flexible_columns_are_shortened() -> None:
    """Ids can be copied from a narrow terminal."""
    lines = _print([["0" * 13, "s" * 500, "1 B"]], width=40, is_terminal=True)
    assert [cell_len(line) for line in lines] == [40, 40]
    assert lines[1].startswith("0" * 13 + "  s")
    assert "…" in lines[1]


def test_columns_line_up_whatever_the_width_of_characters() -> None:
    """Characters of double width take two cells."""
    lines = _print([["1", "日本語", "1 B"], ["2", "abc", "22 B"]], width=80, is_terminal=False)
    assert len({cell_len(line) for line in lines}) == 1


def test_hostile_cells_neither_add_rows_nor_obey_markup() -> None:
    """Subjects come from strangers; rich's markup is text to us."""
    lines = _print([["1", f"[red]x[/red]\n{HOSTILE}", "1 B"]], width=200, is_terminal=False)
    assert len(lines) == 2
    assert "[red]x[/red] a]0;titleb31mc[2Jde fg" in lines[1]


def test_fields_are_lined_up_and_empty_ones_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """`mailgate show` reads as a list."""
    print_fields([("From", "a"), ("Policy", ""), ("Subject", "b [bold]c[/bold]\x1b")])
    assert capsys.readouterr().out.splitlines() == ["From     a", "Subject  b [bold]c[/bold]"]


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4300, "4.2 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (26_214_400, "25.0 MiB"),
        (3 * 1024**4, "3.0 TiB"),
    ],
)
def test_sizes_are_said_as_people_do(octets: int, text: str) -> None:
    """Binary prefixes (IEC 80000-13), one digit."""
    assert size(octets) == text


def test_nouns_agree_with_their_number() -> None:
    """One message, two mailboxes."""
    assert [count(1, "message"), count(1204, "message"), count(2, "mailbox", "mailboxes")] == [
        "1 message",
        "1,204 messages",
        "2 mailboxes",
    ]
