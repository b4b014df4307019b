"""The layers of the package, as the import statements show them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mailgate

PACKAGE = Path(mailgate.__file__).parent

# What may see a Config object, or make one; all else is given values.
KNOWS_CONFIG = {"service.py", "settings.py", "tap.py", "config.py", "tls.py", "certificate.py"}

NETWORK_MODULES = {"asyncio", "select", "selectors", "socket", "socketserver", "ssl", "twisted", "OpenSSL"}


def modules_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports_of(module: Path) -> Iterator[str]:
    """The dotted names of all that a module imports, wherever in it; of `from a import b` both a and a.b."""
    yield from imports_in(module.read_text("utf-8"), module.relative_to(PACKAGE.parent))


def imports_in(source: str, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            above = list(path.parts[: len(path.parts) - node.level]) if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield origin
            for alias in node.names:
                yield f"{origin}.{alias.name}"


def top_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import socket", "socket"),
        ("import twisted.internet.defer as d", "twisted.internet.defer"),
        ("def f():\n    from mailgate import config", "mailgate.config"),
        ("from . import config", "mailgate.config"),
        ("from .storage.pool import Pool", "mailgate.storage.pool"),
    ],
)
def test_an_import_is_found_wherever_and_however_it_is_written(source: str, name: str) -> None:
    """Else the tests below would prove nothing."""
    assert name in set(imports_in(source, Path("mailgate/listener.py")))


@pytest.mark.parametrize("module", modules_of(PACKAGE / "smtp"), ids=lambda module: module.name)
def test_smtp_imports_neither_twisted_nor_sockets(module: Path) -> None:
    """The dialogue is sans-IO: bytes in; replies and requests out."""
    assert not {top_of(name) for name in imports_of(module)} & NETWORK_MODULES


@pytest.mark.parametrize("module", modules_of(PACKAGE / "sasl"), ids=lambda module: module.name)
def test_sasl_imports_neither_twisted_nor_sockets(module: Path) -> None:
    """An exchange is octets in, and what has to be looked up or checked out."""
    assert not {top_of(name) for name in imports_of(module)} & NETWORK_MODULES


@pytest.mark.parametrize("name", ["envelope.py", "ids.py", "message.py", "proxy.py"])
def test_values_and_parsers_import_neither_twisted_nor_sockets(name: str) -> None:
    """What parses and what is passed around has no part in I/O."""
    assert not {top_of(imported) for imported in imports_of(PACKAGE / name)} & NETWORK_MODULES


@pytest.mark.parametrize("name", ["answer.py", "cache.py", "guard.py", "wire.py"])
def test_answers_their_bounds_and_their_memory_import_neither_twisted_nor_sockets(name: str) -> None:
    """Of the DNS, only the resolver, its sockets, and what waits for them have a part in I/O."""
    assert not {top_of(imported) for imported in imports_of(PACKAGE / "dns" / name)} & NETWORK_MODULES


def test_nothing_below_the_service_sees_a_config_object() -> None:
    """Values are passed down, so that a module can be used and tested without a file of configuration."""
    seen_by = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules_of(PACKAGE)
        if any(name == "mailgate.config" or name.startswith("mailgate.config.") for name in imports_of(path))
    }
    assert {path for path in seen_by if not path.startswith("cli/")} <= KNOWS_CONFIG


def test_only_the_pool_imports_txpostgres() -> None:
    """An untyped library is touched in one module."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules_of(PACKAGE)
        if "txpostgres" in {top_of(name) for name in imports_of(path)}
    }
    assert users <= {"storage/pool.py"}


def test_the_global_reactor_is_imported_only_where_a_process_begins() -> None:
    """A reactor or a clock is an argument: that is how time is a table in the tests."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules_of(PACKAGE)
        if "twisted.internet.reactor" in set(imports_of(path))
    }
    assert {path for path in users if not path.startswith("cli/")} <= {"tap.py"}
