"""TOML tables read into dataclasses, with every fault found in one go.

A dataclass is its own schema: each field is a key, and its type says, as `Annotated[type, kind]`, how the value is
checked and turned into what the program uses. A plain bool, str, int, float, Literal or tuple of these needs no kind.
So a new key is one line, and a new section is one dataclass. What belongs to mailgate alone, and what concerns several
keys at once, is not here but in `mailgate.config`.

Standards: TOML 1.0 (as `tomllib` reads it).
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a configuration file, and what would be right."""

    file: str
    key: str  # "listener.smtp.port", "tls.certificate[2].key" (counted from 1); "" for the file as a whole
    problem: str
    remedy: str

    def __str__(self) -> str:
        """The fault in one line."""
        where = f"{self.file}: {self.key}" if self.key else self.file
        return f"{where}: {self.problem}; {self.remedy}"


class ConfigError(Exception):
    """A configuration file can't be used. `faults` holds all that was found: first of single keys, then of several."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Keep the faults; there is at least one."""
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class Wrong(Exception):  # not an error of ours: the value is
    """A kind refuses a value. It never shows a value that may be secret."""

    def __init__(self, problem: str, remedy: str) -> None:
        """Say what is wrong, and what would be right."""
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


class Kind(Protocol):
    """How the value of a key is checked, and what it becomes."""

    def read(self, value: object, key: str, reader: Reader) -> object:
        """What the program uses.

        @raises Wrong: the value is not of this kind.
        """


@dataclass(frozen=True, slots=True)
class Key:
    """What the key is called where the field's own name won't do."""

    name: str


@dataclass(frozen=True, slots=True)
class Derived:
    """A default that follows from keys read before it: `of` is given what they hold, by their full names."""

    of: Callable[[Mapping[str, Any]], object]  # Any: what earlier keys hold is as varied as the keys


@dataclass(frozen=True, slots=True)
class Text:
    """A string, not empty, of one line."""

    what: str = "text"
    is_empty_allowed: bool = False

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The string itself."""
        if not isinstance(value, str):
            raise Wrong(f"{_shown(value)} is not {self.what}", f"use {self.what} in quotes")
        if not value and not self.is_empty_allowed:
            raise Wrong("it is empty", f"use {self.what}, or leave the key out")
        if any(char in value for char in "\r\n\0"):
            raise Wrong("it holds a line end or NUL", f"use {self.what} in one line")
        return value


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""

    def read(self, value: object, key: str, reader: Reader) -> bool:
        """The boolean itself."""
        if not isinstance(value, bool):
            raise Wrong(f"{_shown(value)} is neither true nor false", "use true or false, without quotes")
        return value


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number within bounds, both included. `what` names it: "a port", "a number of octets"."""

    low: int
    high: int
    what: str = "a whole number in this range"

    def read(self, value: object, key: str, reader: Reader) -> int:
        """The number itself. TOML's booleans are not numbers, though Python's are."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise Wrong(f"{_shown(value)} is not {self.what}", f"use {self.low} to {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds, both included, with or without a fraction."""

    low: float
    high: float
    what: str = "a number in this range"

    def read(self, value: object, key: str, reader: Reader) -> float:
        """The number as a float."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise Wrong(f"{_shown(value)} is not {self.what}", f"use {self.low:g} to {self.high:g}")
        return float(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One word of a closed set: the values of an Enum, or plain strings."""

    values: type[Enum] | tuple[str, ...]

    def read(self, value: object, key: str, reader: Reader) -> object:
        """The Enum's member, or the string."""
        known: dict[str, object]
        if isinstance(self.values, tuple):
            known = {word: word for word in self.values}
        else:
            known = {str(member.value): member for member in self.values}
        if not isinstance(value, str) or value not in known:
            raise Wrong(f"{_shown(value)} is not known here", "use " + _one_of(known))
        return known[value]


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array of values of one kind; it becomes a tuple. No value twice, if they are to differ."""

    kind: Kind
    are_distinct: bool = True

    def read(self, value: object, key: str, reader: Reader) -> tuple[object, ...]:
        """All elements; each fault of an element is kept with its number."""
        if not isinstance(value, list):
            raise Wrong(f"{_shown(value)} is not a list", "use [ ], with commas between the values")
        found: list[object] = []
        for number, element in enumerate(value, 1):
            element_key = f"{key}[{number}]"
            try:
                read = self.kind.read(element, element_key, reader)
            except Wrong as wrong:
                reader.fault(element_key, wrong.problem, wrong.remedy)
                continue
            if self.are_distinct and read in found:
                reader.fault(element_key, f"{_shown(element)} is there twice", "take one of them out")
                continue
            found.append(read)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class IpNetwork:
    """A network in CIDR form, or one address."""

    def read(self, value: object, key: str, reader: Reader) -> Network:
        """The network."""
        if isinstance(value, str):
            try:
                return ipaddress.ip_network(value)
            except ValueError:
                try:
                    masked = ipaddress.ip_network(value, strict=False)
                except ValueError:
                    pass
                else:
                    raise Wrong(f"{value!r} has bits set behind its prefix", f"use {str(masked)!r}") from None
        raise Wrong(f"{_shown(value)} is not a network", 'use the form "192.0.2.0/24" or "2001:db8::/32"')


@dataclass(frozen=True, slots=True)
class IpAddress:
    """An IP address, as a string in its shortest form."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The address."""
        if isinstance(value, str):
            try:
                return str(ipaddress.ip_address(value))
            except ValueError:
                pass
        raise Wrong(f"{_shown(value)} is not an IP address", 'use the form "192.0.2.1" or "2001:db8::1"')


@dataclass(frozen=True, slots=True)
class FilePath:
    """A file to be read. A relative path starts at the configuration file's folder."""

    def read(self, value: object, key: str, reader: Reader) -> Path:
        """The absolute path. Whether it can be read is asked only where the reader may open files."""
        path = reader.path(value)
        if reader.opens_files:
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                reason = (error.strerror or type(error).__name__).lower()
                raise Wrong(f"{path} can't be read: {reason}", "use a file that mailgate may read") from None
        return path


@dataclass(frozen=True, slots=True)
class FolderPath:
    """A folder; mailgate makes it if only its last part is missing. A relative path starts at the file's folder."""

    def read(self, value: object, key: str, reader: Reader) -> Path:
        """The absolute path."""
        path = reader.path(value)
        if reader.opens_files:
            if path.exists() and not path.is_dir():
                raise Wrong(f"{path} is not a folder", "use a folder")
            if not path.exists() and not path.parent.is_dir():
                raise Wrong(f"the folder {path.parent} is missing", "make it, or use a folder that is there")
        return path


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is read into a dataclass."""

    type: type[Any]  # Any: which dataclass is known only to the class that has the field

    def read(self, value: object, key: str, reader: Reader) -> Any:  # Any: an instance of `type`
        """An instance of the dataclass."""
        if not isinstance(value, dict):
            raise Wrong(f"{_shown(value)} is not a table", f"write it as [{key}], with its keys below")
        return reader.read_table(self.type, value, key)


@dataclass(frozen=True, slots=True)
class NamedTables:
    """A table of tables, [listener.smtp]; each becomes a dataclass whose field `name` holds its name. A tuple."""

    type: type[Any]  # Any: as above

    def read(self, value: object, key: str, reader: Reader) -> tuple[object, ...]:
        """The dataclasses, in the order of the file."""
        if not isinstance(value, dict):
            raise Wrong(f"{_shown(value)} is not a table", f"write it as [{key}.NAME], with its keys below")
        found = []
        for name, table in value.items():
            table_key = f"{key}.{name}"
            if not isinstance(table, dict):
                reader.fault(table_key, f"{_shown(table)} is not a table", f"write it as [{table_key}]")
                continue
            if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                reader.fault(table_key, f"{name!r} is not a name", "use letters, digits, hyphen and underscore")
            found.append(reader.read_table(self.type, table, table_key, name=name))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class ByName:
    """A table whose keys are free, or of a kind, and whose values are of one kind; it becomes a tuple of pairs."""

    kind: Kind
    names: Kind | None = None

    def read(self, value: object, key: str, reader: Reader) -> tuple[tuple[object, object], ...]:
        """The pairs."""
        if not isinstance(value, dict):
            raise Wrong(f"{_shown(value)} is not a table", f"write it as [{key}], with its keys below")
        found = []
        for name, element in value.items():
            element_key = f"{key}.{name}"
            try:
                read_name = name if self.names is None else self.names.read(name, element_key, reader)
                found.append((read_name, self.kind.read(element, element_key, reader)))
            except Wrong as wrong:
                reader.fault(element_key, wrong.problem, wrong.remedy)
        return tuple(found)


class Reader:
    """Reads one file. Faults are collected; what it returns is of use only where there are none."""

    def __init__(self, path: Path, *, opens_files: bool, now: datetime) -> None:
        """`opens_files` is False where the caller may lack the right to open what the configuration names."""
        self.opens_files = opens_files
        self.now = now
        self.faults: list[Fault] = []
        self._known: dict[str, object] = {}
        self._path = path
        self._folder = path.absolute().parent

    def fault(self, key: str, problem: str, remedy: str) -> None:
        """Keep a fault."""
        self.faults.append(Fault(str(self._path), key, problem, remedy))

    def is_faulty(self, key: str) -> bool:
        """Whether that key, or what is above or below it, is at fault already: what follows from that is no news."""
        return any(
            fault.key == key or fault.key.startswith((f"{key}.", f"{key}[")) or key.startswith(f"{fault.key}.")
            for fault in self.faults
        )

    def path(self, value: object) -> Path:
        """The absolute path that a value means; "$CREDENTIALS_DIRECTORY/" at its start is systemd's.

        @raises Wrong: the value is no path.
        """
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise Wrong(f"{_shown(value)} is not a path", "use a path in quotes")
        variable = "$CREDENTIALS_DIRECTORY/"
        if value.startswith(variable):
            credentials = os.environ.get("CREDENTIALS_DIRECTORY")
            if credentials:
                return Path(credentials) / value.removeprefix(variable)
            if self.opens_files:
                raise Wrong(
                    f"{value!r} needs systemd, which is not there", "use LoadCredential= in the unit, or a path"
                )
            return Path(value)
        return Path(os.path.normpath(self._folder / value))

    def load(self, kind: type[Any], **given: object) -> Any:  # Any: an instance of `kind`, or None: nothing was read
        """The whole file as that dataclass; `given` are fields that are no keys."""
        try:
            # A pipe would hold the reactor up until somebody writes to it.
            if self._path.is_fifo():
                self.fault("", "it is not a file", "name a configuration file that you may read")
                return None
            content = self._path.read_bytes()
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            self.fault("", f"it can't be read: {reason}", "name a configuration file that you may read")
            return None
        try:
            table = tomllib.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.fault(f"line {line}", "it is not UTF-8", "save the file as UTF-8")
            return None
        except tomllib.TOMLDecodeError as error:
            key, problem = _place(str(error), content)
            self.fault(key, problem, "correct the TOML there")
            return None
        return self.read_table(kind, table, "", beside=(), **given)

    def read_table(
        self, kind: type[Any], table: Mapping[str, object], key: str, *, beside: Sequence[str] = (), **given: object
    ) -> Any:
        """An instance of that dataclass. A key that is at fault leaves its default there, or None.

        `beside` are keys of the same table that somebody else reads: they may have been meant.
        """
        prefix = f"{key}." if key else ""
        values: dict[str, Any] = dict(given)
        schema = [entry for entry in entries(kind) if entry.field not in given]
        self._refuse_unknown(table, [*beside, *(entry.key for entry in schema)], prefix)
        for entry in schema:
            values[entry.field] = self._known[prefix + entry.key] = self._read_entry(entry, table, prefix)
        return kind(**values)

    def _read_entry(self, entry: Entry, table: Mapping[str, object], prefix: str) -> object:
        key = prefix + entry.key
        if entry.key in table:
            try:
                return entry.kind.read(table[entry.key], key, self)
            except Wrong as wrong:
                self.fault(key, wrong.problem, wrong.remedy)
                if isinstance(entry.kind, Table):
                    return self._blank(entry.kind.type, key)
        elif entry.derived is not None:
            try:
                return entry.derived.of(self._known)
            except Wrong as wrong:
                self.fault(key, wrong.problem, wrong.remedy)
        elif isinstance(entry.kind, Table) and entry.has_no_default:
            return self.read_table(entry.kind.type, {}, key)
        elif entry.has_no_default:
            self.fault(key, "it is missing", "add it")
        return None if entry.has_no_default else entry.default()

    def _blank(self, kind: type[Any], key: str) -> object:
        """A section as if it were empty, in which nothing is at fault: that it is no section has been said."""
        kept = len(self.faults)
        section = self.read_table(kind, {}, key)
        del self.faults[kept:]
        return section

    def _refuse_unknown(self, table: Mapping[str, object], known: Sequence[str], prefix: str) -> None:
        for name in table:
            if name in known:
                continue
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "the keys here are " + ", ".join(known)
            self.fault(prefix + name, "there is no such key", remedy)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a section, as its dataclass declares it."""

    field: str
    key: str
    kind: Kind
    derived: Derived | None
    default: Callable[[], object]
    has_no_default: bool


def entries(kind: type[Any]) -> list[Entry]:
    """The keys of a section, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
        name = next((extra.name for extra in extras if isinstance(extra, Key)), field.name)
        if name == "":  # not a key: set by who reads the file
            continue
        derived = next((extra for extra in extras if isinstance(extra, Derived)), None)
        value_kind = next((extra for extra in extras if hasattr(extra, "read")), None) or _kind_of(hint)
        has_no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append(Entry(field.name, name, value_kind, derived, _default_of(field), has_no_default))
    return found


def _kind_of(hint: Any) -> Kind:  # Any: a type expression
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    if isinstance(base, types.UnionType):
        base = next(option for option in typing.get_args(base) if option is not types.NoneType)
    if base in _PLAIN:
        return _PLAIN[base]
    if typing.get_origin(base) is typing.Literal:
        return OneOf(typing.get_args(base))
    if typing.get_origin(base) is tuple and typing.get_args(base)[1:] == (...,):
        return ListOf(_kind_of(typing.get_args(base)[0]))
    if dataclasses.is_dataclass(base) and isinstance(base, type):
        return Table(base)
    raise TypeError(f"{hint} needs a kind")


# What a type means without a kind beside it: enough for a policy of ten lines, while a key of ours has its bounds.
_PLAIN: dict[Any, Kind] = {  # Any: a type
    bool: Boolean(),
    str: Text(),
    int: Integer(-(1 << 63), (1 << 63) - 1, "a whole number"),
    float: Number(-1e300, 1e300, "a number"),
}


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], object]:  # Any: a field of any type
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return lambda: field.default


def _place(message: str, content: bytes) -> tuple[str, str]:
    """A TOML error's place as a key, and its problem: tomllib says "... (at line 1, column 2)"."""
    problem, _, place = message.rpartition(" (at ")
    place = place.removesuffix(")")
    if place == "end of document":
        place = "line " + str(content.count(b"\n") + 1)
    return place, problem[:1].lower() + problem[1:]


def _shown(value: object) -> str:
    """A value as the operator wrote it, about; cut short, and not a table's inside."""
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table"
        case list():
            return "a list"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
        case _:
            return str(value)


def _one_of(words: Mapping[str, object]) -> str:
    quoted = [f'"{word}"' for word in words]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
