"""Brings a database to the schema that this version of mailgate works with.

`schema.sql` is the whole schema, for an empty database. `migrations/NNNN-name.sql` lifts a database from version
NNNN - 1 to NNNN; each runs in a transaction of its own, together with the note that it ran. A runner holds an advisory
lock throughout, so that of several started at once one does the work and the others find it done.

Blocking, for the command line and for the time before the reactor runs. It never lowers a version, and never guesses:
a database that is ahead, or a gap in the numbers, is refused.
"""

from __future__ import annotations

import re
from contextlib import closing
from importlib import resources
from typing import TYPE_CHECKING

import psycopg2

from mailgate.storage.errors import DatabaseRefused, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

    from psycopg2.extensions import connection

EXPECTED_VERSION = 1

_LOCK = 0x6D61696C67617465  # "mailgate": the advisory lock that a runner holds
_FILE_NAME = re.compile(r"([0-9]{4})-[a-z0-9-]+\.sql")


def migrate(
    dsn: str,
    *,
    schema: str | None = None,
    migrations: Traversable | None = None,
    expected_version: int = EXPECTED_VERSION,
) -> list[int]:
    """The versions that were applied, in order: empty where the database was up to date.

    `schema`, `migrations` and `expected_version` are the package's own unless given.

    @raises StorageUnavailable: the server can't be reached; what was applied before that stays.
    @raises DatabaseRefused: the database is ahead, is not mailgate's, or the migrations don't lead from its version to
        the one expected.
    """
    if schema is None:
        schema = resources.files("mailgate.storage").joinpath("schema.sql").read_text("utf-8")
    steps = read_migrations(migrations or resources.files("mailgate.storage").joinpath("migrations"))
    try:
        with closing(psycopg2.connect(dsn)) as database:
            return _bring_up(database, schema, steps, expected_version)
    except psycopg2.OperationalError as error:
        raise StorageUnavailable(str(error).strip()) from error


def read_migrations(folder: Traversable) -> dict[int, str]:
    """The migrations of that folder by the version that they lead to.

    @raises DatabaseRefused: two files have the same number, or an SQL file has no number.
    """
    found: dict[int, str] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise DatabaseRefused(f"migrations: {file.name} is not named NNNN-name.sql")
        version = int(match[1])
        if version in found:
            raise DatabaseRefused(f"migrations: two files lead to version {version}")
        found[version] = file.read_text("utf-8")
    return found


def refusal(version: int | None, expected_version: int = EXPECTED_VERSION) -> str | None:
    """Why a node must not work on a database of that version (None: no schema at all); None where it may."""
    if version == expected_version:
        return None
    if version is None:
        return "the database has no mailgate schema: create it with `mailgate db migrate`"
    if version < expected_version:
        return (
            f"the database's schema is behind: it has version {version}, this mailgate needs {expected_version}: "
            "bring it up with `mailgate db migrate`"
        )
    return (
        f"the database's schema is ahead: it has version {version}, this mailgate knows {expected_version}: "
        "a newer mailgate has migrated it; install that version here too (a schema is never lowered)"
    )


def _bring_up(database: connection, schema: str, steps: Mapping[int, str], expected_version: int) -> list[int]:
    with database.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        database.commit()
        version = _version_of(database)
        if version is None:
            # One transaction: either the whole schema is there, or the database is still empty.
            cursor.execute(schema)
            cursor.execute("SELECT count(*) FROM mailgate.schema_version")
            if cursor.fetchone() == (0,):
                cursor.execute("INSERT INTO mailgate.schema_version (version) VALUES (%s)", (expected_version,))
            database.commit()
            return [expected_version]
        if version > expected_version:
            raise DatabaseRefused(refusal(version, expected_version))
        wanted = range(version + 1, expected_version + 1)
        if missing := [str(step) for step in wanted if step not in steps]:
            raise DatabaseRefused(
                f"no migration leads to version {', '.join(missing)}: the database has version {version} and this "
                f"mailgate needs {expected_version}"
            )
        for step in wanted:
            cursor.execute("SET LOCAL search_path = mailgate")
            cursor.execute(steps[step])
            cursor.execute("INSERT INTO mailgate.schema_version (version) VALUES (%s)", (step,))
            database.commit()
        return list(wanted)


def _version_of(database: connection) -> int | None:
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT to_regnamespace('mailgate') IS NOT NULL, to_regclass('mailgate.schema_version') IS NOT NULL"
        )
        has_schema, has_version = cursor.fetchone() or (False, False)
        if has_schema and not has_version:
            raise DatabaseRefused(
                "the database has a schema called mailgate that mailgate did not make: choose another database"
            )
        if not has_version:
            return None
        cursor.execute("SELECT max(version) FROM mailgate.schema_version")
        row = cursor.fetchone()
        if row is None or row[0] is None:
            raise DatabaseRefused("mailgate.schema_version is empty: restore the database from a backup")
        return int(row[0])
