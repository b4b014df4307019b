"""SQL literals: values as text that PostgreSQL reads back as the same values, whatever octets a stranger chose.

psycopg2 sends octets as hex, at twice their size, and PostgreSQL's scanner is what a large message costs. Here content
travels as text: as it is where it is UTF-8, as the UTF-8 form of ISO 8859-1 where it is not and mostly ASCII, and as
hex only where that is shorter to read or the content holds NUL, which text can't.

Why nothing escapes from a literal:

- `settle` makes sure, before anything else runs on a connection, that the client encoding is UTF8, that the
  server's is too, and that standard_conforming_strings is on. Then a literal ends at the first quote that is not
  doubled, and a backslash means nothing.
- Every quote in a value is doubled, after all other steps. Quotes are ASCII, and in UTF-8 no octet of a longer
  character looks like one.
- What is sent is always valid UTF-8: it comes from `str.encode`, or was checked by `bytes.decode`, which is as strict
  as PostgreSQL. There is no octet 0, which would end the statement: in octets it leads to hex, in text it becomes
  U+FFFD.
- Inside an array literal, every element is in double quotes, with backslashes and double quotes escaped by a
  backslash; "NULL" without quotes is ours alone.

Text keeps its characters except for NUL (U+FFFD) and lone surrogates ("?"): PostgreSQL's text holds neither. Octets
come back exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.storage.errors import DatabaseRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailgate.storage.pool import Execute


async def settle(execute: Execute) -> None:
    """Make a connection read literals as they are written here; for the `setup` of a Connection.

    @raises DatabaseRefused: it can't be made to.
    """
    rows = await execute(
        "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on;"
        " SELECT current_setting('client_encoding'), current_setting('server_encoding'),"
        " current_setting('standard_conforming_strings')"
    )
    if rows != [("UTF8", "UTF8", "on")]:
        raise DatabaseRefused(f"the database must have the encoding UTF8 and standard strings, not {rows!r}")


def text(value: str | None) -> str:
    """One string, or NULL."""
    if value is None:
        return "NULL"
    return "'" + value.replace("\0", "\ufffd").replace("'", "''") + "'"


def text_array(values: Iterable[str | None]) -> str:
    """An array of strings."""
    elements = ",".join(
        ["NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
    )
    return "'{" + elements.replace("\0", "\ufffd").replace("'", "''") + "}'"


def number_array(values: Iterable[int | float | None]) -> str:
    """An array of numbers, or of booleans."""
    return "'{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}'"


def short_octets_array(values: Iterable[bytes | None]) -> str:
    """An array of short octet strings (digests)."""
    return "'{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}'"


def octets(value: bytes) -> bytes:
    """One octet string of any size, as an expression in octets."""
    if b"\0" not in value:
        if _is_utf8(value):
            return b"pg_catalog.convert_to('" + value.replace(b"'", b"''") + b"','UTF8')"
        # U+0080 to U+00FF stand for the octets 0x80 to 0xFF, one to one.
        as_text = value.decode("iso-8859-1").encode("utf-8")
        if len(as_text) * 5 <= len(value) * 6:
            return b"pg_catalog.convert_to('" + as_text.replace(b"'", b"''") + b"','LATIN1')"
    return b"'\\x" + value.hex().encode("ascii") + b"'::bytea"


def octets_array(values: Iterable[bytes]) -> bytes:
    """An array of octet strings of any size, as an expression in octets."""
    return b"ARRAY[" + b",".join([octets(value) for value in values]) + b"]::bytea[]"


def encoded(statement: str) -> bytes:
    """A statement of such literals as it is sent."""
    return statement.encode("utf-8", "replace")


def _is_utf8(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
