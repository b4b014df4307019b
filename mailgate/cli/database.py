"""The command line's way to the database: one blocking connection, and the named queries of queries.sql.

No reactor runs here; this is the only module of the command line that knows psycopg2. The service has its own way in
`mailgate.storage.pool`.
"""

from __future__ import annotations

import re
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import click
import psycopg2
import psycopg2.errors
import psycopg2.extensions

from mailgate import instance
from mailgate.cli.output import clean, print_error, print_note
from mailgate.config import Config, load_config
from mailgate.storage import migrate
from mailgate.storage.errors import DatabaseRefused, StorageUnavailable
from mailgate.toml import ConfigError

_CONNECT_SECONDS = 10
_QUERY = re.compile(r"^-- ([a-z_]+): .*\n((?:(?!^-- [a-z_]+: ).*\n?)*)", re.MULTILINE)

Row = tuple[Any, ...]  # Any: a column's type is the query's affair


class Failure(click.ClickException):
    """The command can't do what was asked: one line for people, and exit status 1."""

    def show(self, file: Any = None) -> None:  # Any: click's own signature is IO[Any]
        """Print it on standard error."""
        first, *more = self.format_message().splitlines() or [""]
        print_error(first)
        for line in more:
            click.echo(f"  {clean(line)}", err=True)


def _load_queries() -> dict[str, str]:
    text = resources.files("mailgate.cli").joinpath("queries.sql").read_text("utf-8")
    return {name: sql.strip() for name, sql in _QUERY.findall(text)}


_QUERIES = _load_queries()


class Database:
    """One connection. Every query is named in queries.sql and is a transaction of its own, unless inside one."""

    def __init__(self, dsn: str) -> None:
        """Connect.

        @raises Failure: that can't be done.
        """
        self._dsn = dsn
        self._connection = connect(dsn)

    def reconnect(self) -> None:
        """Connect anew, after the connection was lost.

        @raises Failure: that can't be done yet.
        """
        self.close()
        self._connection = connect(self._dsn)

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def rows(self, name: str, /, **parameters: object) -> list[Row]:
        """All rows of that query."""
        with _errors_for_people(), self._connection.cursor() as cursor:
            cursor.execute(_QUERIES[name], parameters)
            return cursor.fetchall()

    def row(self, name: str, /, **parameters: object) -> Row | None:
        """The first row of that query, or None."""
        rows = self.rows(name, **parameters)
        return rows[0] if rows else None

    def run(self, name: str, /, **parameters: object) -> int:
        """How many rows that query changed."""
        with _errors_for_people(), self._connection.cursor() as cursor:
            cursor.execute(_QUERIES[name], parameters)
            return cursor.rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All queries inside are one transaction; it is rolled back where an exception leaves."""
        is_committed = False
        with _errors_for_people():
            self._execute("BEGIN")
        try:
            yield
            with _errors_for_people():
                self._execute("COMMIT")
            is_committed = True
        finally:
            if not is_committed:
                with suppress(psycopg2.Error):
                    self._execute("ROLLBACK")

    def check_version(self) -> None:
        """Return if the schema is the one that this mailgate works with.

        @raises Failure: it is another one.
        """
        version = None
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT max(version) FROM mailgate.schema_version")
                (version,) = cursor.fetchone() or (None,)
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
            pass
        except psycopg2.Error as error:
            raise Failure(f"the database: {_first_line(error)}") from error
        refusal = migrate.refusal(version)
        if refusal is not None:
            raise Failure(refusal)

    def listen(self, channel: str) -> None:
        """Have notifications of that channel sent to this connection."""
        with _errors_for_people():
            self._execute(f"LISTEN {psycopg2.extensions.quote_ident(channel, self._connection)}")

    def wait_for_notification(self, timeout_seconds: float) -> bool:
        """Whether a notification came within that time."""
        with _errors_for_people():
            self._connection.poll()
            if not self._connection.notifies and select.select([self._connection], [], [], timeout_seconds)[0]:
                self._connection.poll()
        came = bool(self._connection.notifies)
        self._connection.notifies.clear()
        return came

    def _execute(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)


@contextmanager
def _errors_for_people() -> Iterator[None]:
    try:
        yield
    except psycopg2.Error as error:
        raise Failure(f"the database: {_first_line(error)}") from error


def _first_line(error: psycopg2.Error) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return clean(lines[0]) if lines else type(error).__name__


class Invocation:
    """What the options of `mailgate` itself say; the configuration is looked for when a command needs it."""

    def __init__(self, config_option: Path | None) -> None:
        self._config_option = config_option

    def config(self) -> Config:
        """The configuration of this command.

        @raises Failure: there is none, or it is faulty.
        """
        try:
            return load_config(instance.discover_config(self._config_option), opens_files=False)
        except instance.InstanceError as error:
            raise Failure(str(error)) from error
        except ConfigError as error:
            for fault in error.faults[:-1]:
                print_error(str(fault))
            raise Failure(str(error.faults[-1])) from error

    def config_if_any(self) -> Config | None:
        """The configuration, or None where there is none.

        @raises Failure: it is faulty, or not there though it was asked for.
        """
        try:
            instance.discover_config(self._config_option)
        except instance.InstanceError:
            return None
        return self.config()

    @contextmanager
    def dsn(self) -> Iterator[str]:
        """Where the database is. An embedded one that does not run is started, and stopped at the end.

        @raises Failure: it can't be started.
        """
        config = self.config()
        if config.database.dsn is not None:
            yield config.database.dsn
            return
        with _embedded(config.database.embedded_folder) as dsn:
            yield dsn

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A connection to a database with the schema that this mailgate knows.

        @raises Failure: there is none.
        """
        with self.dsn() as dsn:
            database = Database(dsn)
            try:
                database.check_version()
                yield database
            finally:
                database.close()


def connect(dsn: str) -> psycopg2.extensions.connection:
    """A connection in autocommit mode that sees mailgate's schema and UTC.

    @raises Failure: there is none.
    """
    options = psycopg2.extensions.parse_dsn(dsn)
    options.setdefault("connect_timeout", _CONNECT_SECONDS)
    options.setdefault("application_name", "mailgate command")
    try:
        connection: psycopg2.extensions.connection = psycopg2.connect(**options)
        connection.autocommit = True
        connection.set_client_encoding("UTF8")
        with connection.cursor() as cursor:
            cursor.execute("SET search_path = mailgate; SET timezone = 'UTC'")
    except psycopg2.Error as error:
        raise Failure(f"can't reach the database: {_first_line(error)}") from error
    return connection


@contextmanager
def _embedded(folder: Path) -> Iterator[str]:
    # Imported here: it brings Twisted, and most commands find a database that runs.
    from mailgate.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError

    server = EmbeddedPostgres(folder)
    if server.is_running():
        yield server.dsn
        return
    print_note("mailgate isn't running; its database is started for this command")
    with _left_by_sigterm():
        try:
            dsn = server.start()
        except (EmbeddedPostgresError, DatabaseRefused, StorageUnavailable) as error:
            raise Failure(str(error)) from error
        try:
            yield dsn
        finally:
            # A mailgate that started meanwhile found the server running, and works with it now.
            if not _is_used_by_others(dsn):
                server.stop()


def _is_used_by_others(dsn: str) -> bool:
    try:
        with closing(Database(dsn)) as database:
            return database.row("other_connections") != (0,)
    except Failure:
        return False


@contextmanager
def _left_by_sigterm() -> Iterator[None]:
    """A SIGTERM leaves by SystemExit, so that what was started is stopped."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, leave)  # Any: stdlib's
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


pass_invocation = click.make_pass_decorator(Invocation)


def text_array_literal(values: Iterable[str]) -> str:
    """The values as PostgreSQL writes a text[]: an array of these is what a text[][] of unequal rows would be."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def octets_of(value: memoryview | bytes | None) -> bytes:
    """What a bytea column holds; nothing for NULL."""
    return b"" if value is None else bytes(value)
