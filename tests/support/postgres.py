"""Real PostgreSQL for tests: one server for the whole run, a fresh database for each test, and servers to break.

The shared server starts when it is first asked for and is stopped when the run ends. Its databases are copies of one
that was migrated once. It runs with fsync on, as in production.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import parse_dsn

from mailgate.storage.embedded import DATABASE, EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Sequence

_numbers = itertools.count(1)
_shared: list[EmbeddedPostgres] = []


def shared_server() -> EmbeddedPostgres:
    """The run's own server. Its migrated database `mailgate` is the template of the others: never connect to it."""
    if not _shared:
        postgres = private_server(settings={"max_connections": "100", "shared_buffers": "64MB"})
        postgres.start()
        _shared.append(postgres)
    return _shared[0]


def fresh_database() -> str:
    """The DSN of a new database with mailgate's schema and no data."""
    return _create_database(DATABASE)


def empty_database() -> str:
    """The DSN of a new database without any schema."""
    return _create_database("template0")


def drop_database(dsn: str) -> None:
    """Remove a database made here; whoever is connected to it loses the connection."""
    name = parse_dsn(dsn)["dbname"]
    _on_shared_server(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def private_server(*, settings: dict[str, str] | None = None) -> EmbeddedPostgres:
    """A server of the caller's own, not started; stopped and removed at the end of the run at the latest.

    `remove_server` does it sooner.
    """
    folder = Path(tempfile.mkdtemp(prefix="mailgate-test-"))
    postgres = EmbeddedPostgres(folder, settings=settings)
    atexit.register(remove_server, postgres)
    return postgres


def remove_server(postgres: EmbeddedPostgres) -> None:
    """Stop that server as a crash would, and remove its folder."""
    crash(postgres)
    shutil.rmtree(postgres.folder, ignore_errors=True)


def crash(postgres: EmbeddedPostgres) -> None:
    """`pg_ctl stop -m immediate`: every server process ends at once, and recovery is needed."""
    if postgres.postmaster() is not None:
        postgres.run(postgres.stop_command("immediate"))


def query(dsn: str, sql: str, parameters: Sequence[object] | None = None) -> list[tuple[object, ...]]:
    """The rows of one statement, on a connection of its own. Blocks."""
    with contextlib.closing(psycopg2.connect(dsn)) as database:
        database.autocommit = True
        with database.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


def _create_database(template: str) -> str:
    name = f"test_{next(_numbers)}"
    _on_shared_server(f'CREATE DATABASE "{name}" TEMPLATE {template}')
    return shared_server().dsn_of(name)


def _on_shared_server(sql: str) -> None:
    query(shared_server().dsn_of("postgres"), sql)
