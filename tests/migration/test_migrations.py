"""The migration runner against real databases, and that migrations add up to schema.sql."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import psycopg2
import pytest

from mailgate.storage.errors import DatabaseRefused, StorageUnavailable
from mailgate.storage.migrate import EXPECTED_VERSION, migrate
from tests.support import postgres

SCHEMA_1 = "CREATE SCHEMA mailgate; SET search_path = mailgate; CREATE TABLE schema_version (version int NOT NULL)"
# Kept from the day on which version 2 is made: a copy of schema.sql as it was before.
BASELINE = Path(__file__).with_name("schema-0001.sql")

# What makes up a schema, in words that do not depend on object ids or on the order of creation.
CATALOG = """
SELECT 'relation', c.relname, c.relkind::text, coalesce(pg_get_expr(c.relpartbound, c.oid), ''),
       coalesce(array_to_string(c.reloptions, ','), ''), coalesce(obj_description(c.oid, 'pg_class'), '')
FROM pg_class c WHERE c.relnamespace = 'mailgate'::regnamespace
UNION ALL
SELECT 'column', a.attrelid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull,
       coalesce(pg_get_expr(d.adbin, d.adrelid), '') || a.attidentity::text || a.attgenerated::text,
       coalesce(col_description(a.attrelid, a.attnum), '')
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid AND c.relnamespace = 'mailgate'::regnamespace AND c.relkind <> 'i'
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', n.conrelid::regclass::text, n.conname, pg_get_constraintdef(n.oid), '', ''
FROM pg_constraint n WHERE n.connamespace = 'mailgate'::regnamespace
UNION ALL
SELECT 'index', i.indrelid::regclass::text, i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), '', ''
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'mailgate'::regnamespace
UNION ALL
SELECT 'function', p.oid::regprocedure::text, p.prokind::text, pg_get_functiondef(p.oid), '',
       coalesce(obj_description(p.oid, 'pg_proc'), '')
FROM pg_proc p WHERE p.pronamespace = 'mailgate'::regnamespace AND p.prokind <> 'a'
UNION ALL
SELECT 'trigger', t.tgrelid::regclass::text, t.tgname, pg_get_triggerdef(t.oid), '', ''
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid AND c.relnamespace = 'mailgate'::regnamespace
WHERE NOT t.tgisinternal
UNION ALL
SELECT 'view', c.relname, '', pg_get_viewdef(c.oid), '', ''
FROM pg_class c WHERE c.relnamespace = 'mailgate'::regnamespace AND c.relkind = 'v'
UNION ALL
SELECT 'type', t.typname, t.typtype::text,
       coalesce((SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
                pg_get_expr(t.typdefaultbin, 0), ''), '', coalesce(obj_description(t.oid, 'pg_type'), '')
FROM pg_type t WHERE t.typnamespace = 'mailgate'::regnamespace AND t.typtype IN ('e', 'd')
ORDER BY 1, 2, 3, 4
"""


@pytest.fixture
def dsn() -> Iterator[str]:
    created = postgres.empty_database()
    yield created
    postgres.drop_database(created)


def versions(dsn: str) -> list[object]:
    return [row[0] for row in postgres.query(dsn, "SELECT version FROM mailgate.schema_version ORDER BY version")]


def test_an_empty_database_gets_the_whole_schema(dsn: str) -> None:
    assert migrate(dsn) == [EXPECTED_VERSION]
    assert versions(dsn) == [EXPECTED_VERSION]


def test_a_database_that_is_up_to_date_is_left_alone(dsn: str) -> None:
    migrate(dsn)
    assert migrate(dsn) == []
    assert versions(dsn) == [EXPECTED_VERSION]


def test_an_older_database_is_lifted_step_by_step_in_the_order_of_numbers(dsn: str, tmp_path: Path) -> None:
    migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=1)
    (tmp_path / "0003-use-a.sql").write_text("ALTER TABLE a ADD COLUMN b text")
    (tmp_path / "0002-make-a.sql").write_text("CREATE TABLE a ()")
    assert migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=3) == [2, 3]
    assert versions(dsn) == [1, 2, 3]
    assert postgres.query(dsn, "SELECT b FROM mailgate.a") == []


def test_a_migration_that_fails_leaves_the_version_before_it(dsn: str, tmp_path: Path) -> None:
    """Its own transaction is rolled back; the ones before it stay, and the next run begins there."""
    migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=1)
    (tmp_path / "0002-make-a.sql").write_text("CREATE TABLE a ()")
    (tmp_path / "0003-fail.sql").write_text("CREATE TABLE b (); SELECT 1 / 0")
    with pytest.raises(psycopg2.errors.DivisionByZero):
        migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=3)
    assert versions(dsn) == [1, 2]
    assert postgres.query(dsn, "SELECT to_regclass('mailgate.b') IS NULL") == [(True,)]
    (tmp_path / "0003-fail.sql").write_text("CREATE TABLE b ()")
    assert migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=3) == [3]


def test_a_schema_that_fails_leaves_the_database_empty(dsn: str) -> None:
    with pytest.raises(psycopg2.errors.DivisionByZero):
        migrate(dsn, schema=f"{SCHEMA_1}; SELECT 1 / 0")
    assert postgres.query(dsn, "SELECT to_regnamespace('mailgate') IS NULL") == [(True,)]


def test_a_gap_is_refused_before_anything_is_changed(dsn: str, tmp_path: Path) -> None:
    migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=1)
    (tmp_path / "0002-make-a.sql").write_text("CREATE TABLE a ()")
    with pytest.raises(DatabaseRefused, match="no migration leads to version 3"):
        migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=3)
    assert versions(dsn) == [1]


def test_a_database_that_is_ahead_is_refused(dsn: str, tmp_path: Path) -> None:
    migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=2)
    with pytest.raises(DatabaseRefused, match="ahead"):
        migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=1)


def test_a_schema_that_is_not_ours_is_refused(dsn: str) -> None:
    postgres.query(dsn, "CREATE SCHEMA mailgate")
    with pytest.raises(DatabaseRefused, match="did not make"):
        migrate(dsn)


def test_of_several_runners_one_does_the_work(dsn: str, tmp_path: Path) -> None:
    """Workers and nodes start at the same time; an advisory lock puts them in a row."""
    migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=1)
    (tmp_path / "0002-slow.sql").write_text("SELECT pg_sleep(0.3); CREATE TABLE a ()")
    done: list[list[int]] = []

    def run() -> None:
        done.append(migrate(dsn, schema=SCHEMA_1, migrations=tmp_path, expected_version=2))

    runners = [threading.Thread(target=run) for _ in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert sorted(done) == [[], [], [], [2]]


def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(StorageUnavailable):
        migrate("host=/nonexistent dbname=x")


def baseline() -> str:
    """The schema as version 1 had it: schema.sql itself, as long as there is no other version."""
    if EXPECTED_VERSION == 1:
        return resources.files("mailgate.storage").joinpath("schema.sql").read_text("utf-8")
    return BASELINE.read_text("utf-8")


def test_migrations_add_up_to_the_schema(dsn: str) -> None:
    """What an old database becomes is what a new one is: same tables, columns, comments, functions and all."""
    migrate(dsn, schema=baseline(), expected_version=1)
    migrate(dsn)
    fresh = postgres.fresh_database()
    try:
        assert postgres.query(dsn, CATALOG) == postgres.query(fresh, CATALOG)
    finally:
        postgres.drop_database(fresh)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE mailgate.alias ADD COLUMN note text",
        "ALTER TABLE mailgate.message ALTER COLUMN trace DROP NOT NULL",
        "COMMENT ON COLUMN mailgate.alias.target IS 'another'",
        "DROP TRIGGER directory_is_changed ON mailgate.alias",
        "DROP VIEW mailgate.recent_refusals",
        "CREATE INDEX ON mailgate.alias (target)",
        "ALTER TABLE mailgate.mailbox DROP CONSTRAINT mailbox_quota_octets_check",
        "CREATE FUNCTION mailgate.f() RETURNS integer LANGUAGE sql RETURN 1",
    ],
)
def test_the_comparison_sees_every_kind_of_difference(dsn: str, change: str) -> None:
    """Or the test above would prove nothing."""
    migrate(dsn)
    before = postgres.query(dsn, CATALOG)
    postgres.query(dsn, change)
    assert postgres.query(dsn, CATALOG) != before
