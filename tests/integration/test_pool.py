"""Connections to a real PostgreSQL: what they promise, and what they do when it fails."""

from __future__ import annotations

import socket
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from mailgate.storage.pool import Connection, DatabaseRefused, Execute, Pool, Row, StorageUnavailable, check_server
from tests.support import postgres
from tests.support.waiting import reactor, until


class PoolTestCase(TestCase):
    """A fresh database, and connections that are closed at the end."""

    def setUp(self) -> None:
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)

    def connection(self, dsn: str | None = None, **keywords: Any) -> Connection:  # Any: passed on as they are
        connection = Connection(reactor, dsn or self.dsn, name="test", **keywords)
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.stop()))
        connection.start()
        return connection

    def pool(self, size: int) -> Pool:
        pool = Pool(reactor, self.dsn, size=size, name="test")
        self.addCleanup(lambda: Deferred.fromCoroutine(pool.stop()))
        pool.start()
        return pool

    async def pid_of(self, connection: Connection) -> int:
        return int((await connection.execute("SELECT pg_backend_pid()"))[0][0])

    def count_backends(self, pid: int) -> int:
        rows = postgres.query(self.dsn, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))
        return int(str(rows[0][0]))

    async def fails(self, awaitable: Any, error: type[Exception]) -> Exception:  # Any: a coroutine or a Deferred
        try:
            await awaitable
        except error as caught:
            return caught
        raise AssertionError(f"{error.__name__} was not raised")


class ExecuteTests(PoolTestCase):
    async def test_rows_of_the_last_statement_come_back(self) -> None:
        connection = self.connection()
        assert await connection.execute("SELECT 1; SELECT 2, 'é'") == [(2, "é")]
        assert await connection.execute(b"SELECT '100%'") == [("100%",)]
        assert await connection.execute("SELECT %s, %s", (1, None)) == [(1, None)]
        assert await connection.execute("SET search_path = mailgate") == []

    async def test_several_statements_in_one_text_are_one_transaction(self) -> None:
        connection = self.connection()
        await connection.execute("CREATE TABLE t (n integer)")
        await self.fails(connection.execute("INSERT INTO t VALUES (1); SELECT 1 / 0"), psycopg2.errors.DivisionByZero)
        assert await connection.execute("SELECT count(*) FROM t") == [(0,)]

    async def test_an_error_of_the_statement_is_raised_as_it_is_and_costs_no_connection(self) -> None:
        connection = self.connection()
        pid = await self.pid_of(connection)
        await self.fails(connection.execute("SELECT nothing"), psycopg2.errors.UndefinedColumn)
        await self.fails(connection.execute("SELECT %s", (object(),)), psycopg2.ProgrammingError)
        assert await self.pid_of(connection) == pid

    async def test_queries_of_one_connection_run_in_the_order_in_which_they_came(self) -> None:
        connection = self.connection()
        await connection.execute("CREATE TABLE t (place serial, n integer)")
        inserts = [
            Deferred.fromCoroutine(connection.execute("INSERT INTO t (n) VALUES (%s)", (n,))) for n in range(100)
        ]
        await gatherResults(inserts)
        assert await connection.execute("SELECT n FROM t ORDER BY place") == [(n,) for n in range(100)]

    async def test_who_asks_again_and_again_keeps_nobody_waiting(self) -> None:
        connection = self.connection()
        await connection.connected(5)
        is_served = False

        async def ask_again_and_again() -> None:
            while not is_served:
                await connection.execute("SELECT 1")

        asking = Deferred.fromCoroutine(ask_again_and_again())
        await connection.execute("SELECT 2")
        is_served = True
        await asking

    async def test_a_server_that_is_short_of_something_is_unavailable(self) -> None:
        """Disk full, out of memory, a deadlock: nothing that the statement, and so the client, is to blame for."""
        connection = self.connection()
        pid = await self.pid_of(connection)
        for code in ("53100", "53200", "58030", "40P01", "55P03", "57014"):
            await self.fails(
                connection.execute(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{code}'; END $$"), StorageUnavailable
            )
        assert await self.pid_of(connection) == pid

    async def test_a_server_that_has_become_read_only_is_left_for_another(self) -> None:
        """A former primary refuses with 25006; a new connection finds the new one by target_session_attrs."""
        connection = self.connection()
        pid = await self.pid_of(connection)
        await self.fails(connection.execute("BEGIN READ ONLY; CREATE TABLE t (); COMMIT"), StorageUnavailable)
        assert await self.pid_of(connection) != pid

    async def test_a_cancelled_query_runs_to_its_end(self) -> None:
        """Nobody takes back what the server already has; the next query waits for it."""
        connection = self.connection()
        await connection.execute("CREATE TABLE t (n integer)")
        pid = await self.pid_of(connection)
        running = Deferred.fromCoroutine(connection.execute("SELECT pg_sleep(0.2); INSERT INTO t VALUES (1)"))
        running.cancel()
        await self.fails(running, CancelledError)
        assert await connection.execute("SELECT count(*) FROM t") == [(1,)]
        assert await self.pid_of(connection) == pid

    async def test_a_cancelled_query_that_still_waits_is_dropped(self) -> None:
        connection = self.connection()
        await connection.execute("CREATE TABLE t (n integer)")
        sleeping = Deferred.fromCoroutine(connection.execute("SELECT pg_sleep(0.1)"))
        waiting = Deferred.fromCoroutine(connection.execute("INSERT INTO t VALUES (1)"))
        waiting.cancel()
        await self.fails(waiting, CancelledError)
        await sleeping
        assert await connection.execute("SELECT count(*) FROM t") == [(0,)]


class LossTests(PoolTestCase):
    async def test_a_late_query_fails_and_is_ended_in_the_server(self) -> None:
        """The connection is replaced at once; the server notices within a second or so that nobody waits any more."""
        connection = self.connection()
        pid = await self.pid_of(connection)
        await self.fails(connection.execute("SELECT pg_sleep(60)", timeout_seconds=0.2), StorageUnavailable)
        assert await self.pid_of(connection) != pid
        await until(reactor, lambda: self.count_backends(pid) == 0, what="the end of the old query")

    async def test_a_query_that_waits_for_a_lock_is_ended_too(self) -> None:
        connection = self.connection()
        await connection.execute("CREATE TABLE t (n integer)")
        locker = self.connection()
        await locker.execute("BEGIN; LOCK TABLE t")
        pid = await self.pid_of(connection)
        await self.fails(connection.execute("INSERT INTO t VALUES (1)", timeout_seconds=0.2), StorageUnavailable)
        await until(reactor, lambda: self.count_backends(pid) == 0, what="the end of the old query")
        await locker.execute("COMMIT")
        assert await connection.execute("SELECT count(*) FROM t") == [(0,)]

    async def test_a_connection_that_is_terminated_under_a_query_comes_back(self) -> None:
        connection = self.connection()
        await self.fails(connection.execute("SELECT pg_terminate_backend(pg_backend_pid())"), StorageUnavailable)
        assert await connection.execute("SELECT 1") == [(1,)]

    async def test_a_connection_that_is_terminated_while_idle_comes_back(self) -> None:
        """And its end is no error of ours: nothing is logged as one (trial would fail the test)."""
        connection = self.connection()
        seen: list[str] = []
        connection.on_lost(lambda: seen.append("lost"))
        connection.on_reconnect(lambda: seen.append("connected"))
        pid = await self.pid_of(connection)
        postgres.query(self.dsn, "SELECT pg_terminate_backend(%s)", (pid,))
        await until(reactor, lambda: seen == ["connected", "lost", "connected"])
        assert await self.pid_of(connection) != pid

    async def test_a_connection_that_believes_a_query_is_under_way_is_replaced(self) -> None:
        """psycopg2 refuses every further query then, for good."""
        connection = self.connection()
        pid = await self.pid_of(connection)
        wire = connection._wire
        assert wire is not None
        wire._connection.cursor().execute("SELECT 1")
        await self.fails(connection.execute("SELECT 2"), StorageUnavailable)
        assert await connection.execute("SELECT 3") == [(3,)]
        assert await self.pid_of(connection) != pid

    async def test_notifications_come_before_and_after_a_reconnect(self) -> None:
        connection = self.connection()
        heard: list[str] = []
        connection.listen("news", heard.append)
        pid = await self.pid_of(connection)
        postgres.query(self.dsn, "NOTIFY news, 'one'")
        await until(reactor, lambda: heard == ["one"])
        back: list[None] = []
        connection.on_reconnect(lambda: back.append(None))
        postgres.query(self.dsn, "SELECT pg_terminate_backend(%s)", (pid,))
        await until(reactor, lambda: back)
        postgres.query(self.dsn, "NOTIFY news, 'two'")
        await until(reactor, lambda: heard == ["one", "two"])

    async def test_a_channel_may_be_listened_to_later_and_by_several(self) -> None:
        connection = self.connection()
        heard: list[str] = []
        await connection.connected(5)
        connection.listen("news", lambda payload: heard.append(f"a {payload}"))
        connection.listen("news", lambda payload: heard.append(f"b {payload}"))
        await connection.execute("NOTIFY news, 'x'")
        await until(reactor, lambda: heard == ["a x", "b x"])

    async def test_setup_runs_before_anyone_else_after_every_connect(self) -> None:
        async def setup(execute: Any) -> None:  # Any: Execute is a callable of any signature
            await execute("SET application_name = 'was set up'")

        connection = self.connection(setup=setup)
        name = "SELECT current_setting('application_name')"
        assert await connection.execute(name) == [("was set up",)]
        await self.fails(connection.execute("SELECT pg_terminate_backend(pg_backend_pid())"), StorageUnavailable)
        assert await connection.execute(name) == [("was set up",)]

    async def test_a_stopped_connection_fails_what_runs_and_what_waits(self) -> None:
        connection = self.connection()
        await connection.connected(5)
        running = Deferred.fromCoroutine(connection.execute("SELECT pg_sleep(60)"))
        waiting = Deferred.fromCoroutine(connection.execute("SELECT 1"))
        await connection.stop()
        await self.fails(running, StorageUnavailable)
        await self.fails(waiting, StorageUnavailable)
        await self.fails(connection.execute("SELECT 1"), StorageUnavailable)


class ConnectTests(PoolTestCase):
    async def test_without_a_server_a_query_fails_after_a_short_wait_and_says_why(self) -> None:
        connection = self.connection("host=/nonexistent dbname=x")
        error = await self.fails(connection.execute("SELECT 1", timeout_seconds=0.3), StorageUnavailable)
        assert "No such file or directory" in str(error)
        error = await self.fails(connection.connected(0.1), StorageUnavailable)
        assert "No such file or directory" in str(error)

    async def test_a_query_that_has_waited_for_its_connection_still_has_its_time(self) -> None:
        """The bound on the wait is none on the statement itself."""
        name = parse_dsn(self.dsn)["dbname"]
        admin = postgres.shared_server().dsn_of("postgres")
        postgres.query(admin, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection = self.connection()
        slow = Deferred.fromCoroutine(connection.execute("SELECT pg_sleep(2)"))
        reactor.callLater(1, postgres.query, admin, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert len(await slow) == 1

    async def test_a_stop_ends_a_connection_that_is_being_set_up(self) -> None:
        """Whatever it waits for: the handshake, or a statement of the set-up."""

        async def slow(execute: Execute) -> None:
            await execute("SELECT pg_sleep(20)")

        asked = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)' AND state = 'active'"
        setting_up = self.connection(setup=slow)
        await until(reactor, lambda: postgres.query(self.dsn, asked) == [(1,)], what="the set-up")
        await setting_up.stop()
        await until(reactor, lambda: postgres.query(self.dsn, asked) == [(0,)], what="the end of it")
        await self.connection().stop()
        assert self.flushLoggedErrors() == []  # type: ignore[no-untyped-call]  # Twisted's

    async def test_a_query_waits_for_a_connection_no_longer_than_its_patience(self) -> None:
        """However long the statement itself may take: an outage is answered with 451 soon."""
        connection = self.connection("host=/nonexistent dbname=x")
        began = reactor.seconds()
        await self.fails(connection.execute("SELECT 1", timeout_seconds=60), StorageUnavailable)
        assert reactor.seconds() - began < 20

    async def test_the_next_host_is_tried_where_one_refuses(self) -> None:
        given = parse_dsn(self.dsn)
        dsn = make_dsn(self.dsn, host=f"/nonexistent,{given['host']}", port=f"1,{given['port']}")
        assert await self.connection(dsn).execute("SELECT 1") == [(1,)]

    async def test_the_next_host_is_tried_where_one_never_answers(self) -> None:
        """libpq's own connect_timeout does nothing on asynchronous connections."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            given = parse_dsn(self.dsn)
            port = silent.getsockname()[1]
            dsn = make_dsn(self.dsn, host=f"127.0.0.1,{given['host']}", port=f"{port},{given['port']}")
            connection = self.connection(dsn, connect_timeout_seconds=0.3)
            await connection.connected(10)
            assert await connection.execute("SELECT 1") == [(1,)]

    async def test_a_server_that_takes_no_writes_is_passed_over_until_it_does(self) -> None:
        name = parse_dsn(self.dsn)["dbname"]
        postgres.query(self.dsn, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        connection = self.connection(make_dsn(self.dsn, target_session_attrs="read-write"))
        error = await self.fails(connection.execute("SELECT 1", timeout_seconds=0.3), StorageUnavailable)
        assert "read-only" in str(error)
        postgres.query(postgres.shared_server().dsn_of("postgres"), f"ALTER DATABASE {name} RESET ALL")
        await connection.connected(10)
        assert await connection.execute("SELECT 1") == [(1,)]


class PoolTests(PoolTestCase):
    async def test_connections_work_at_the_same_time(self) -> None:
        pool = self.pool(2)
        await pool.connected(5)
        # Each waits for what the other one writes: on one connection this would never end.
        await pool.execute("CREATE TABLE t (n integer)")
        wait = "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM t WHERE n = %s) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$"
        first = Deferred.fromCoroutine(pool.execute(f"INSERT INTO t VALUES (1); COMMIT; {wait}", (2,)))
        second = Deferred.fromCoroutine(pool.execute(f"INSERT INTO t VALUES (2); COMMIT; {wait}", (1,)))
        await gatherResults([first, second])

    async def test_where_all_are_busy_a_query_waits_no_longer_than_its_time(self) -> None:
        pool = self.pool(1)
        await pool.connected(5)
        sleeping = Deferred.fromCoroutine(pool.execute("SELECT pg_sleep(1)"))
        error = await self.fails(pool.execute("SELECT 1", timeout_seconds=0.1), StorageUnavailable)
        assert "busy" in str(error)
        await sleeping

    async def test_a_query_goes_to_a_connection_that_is_there(self) -> None:
        pool = self.pool(2)
        await pool.connected(5)
        for _ in range(3):
            await self.fails(pool.execute("SELECT pg_terminate_backend(pg_backend_pid())"), StorageUnavailable)
            assert await pool.execute("SELECT 1") == [(1,)]

    async def test_what_waits_for_an_ailing_pool_is_served_when_it_is_back(self) -> None:
        pool = self.pool(1)
        await pool.connected(5)
        lost = Deferred.fromCoroutine(pool.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
        waiting = Deferred.fromCoroutine(pool.execute("SELECT 1"))
        await self.fails(lost, StorageUnavailable)
        rows: list[Row] = await waiting
        assert rows == [(1,)]


class CheckServerTests(PoolTestCase):
    async def check(self, dsn: str | None = None, *, allow_unsafe_durability: bool = False) -> None:
        await check_server(self.connection(dsn), allow_unsafe_durability=allow_unsafe_durability)

    async def refusal(self, dsn: str | None = None) -> str:
        return str(await self.fails(self.check(dsn), DatabaseRefused))

    async def test_a_sound_server_with_our_schema_is_taken(self) -> None:
        await self.check()

    async def test_a_commit_that_does_not_wait_for_the_disk_is_refused(self) -> None:
        dsn = make_dsn(self.dsn, options="-c synchronous_commit=off")
        assert "synchronous_commit is off" in await self.refusal(dsn)
        await self.check(dsn, allow_unsafe_durability=True)

    async def test_an_empty_database_is_refused_with_the_command_that_helps(self) -> None:
        dsn = postgres.empty_database()
        self.addCleanup(postgres.drop_database, dsn)
        assert "mailgate db migrate" in await self.refusal(dsn)

    async def test_a_schema_that_is_behind_is_refused_with_the_command_that_helps(self) -> None:
        postgres.query(self.dsn, "UPDATE mailgate.schema_version SET version = 0")
        message = await self.refusal()
        assert "behind" in message
        assert "mailgate db migrate" in message

    async def test_a_schema_that_is_ahead_is_refused(self) -> None:
        postgres.query(self.dsn, "INSERT INTO mailgate.schema_version (version) VALUES (9999)")
        assert "ahead" in await self.refusal()


class FsyncTests(TestCase):
    async def test_a_server_without_fsync_is_refused(self) -> None:
        server = postgres.private_server(settings={"fsync": "off"})
        self.addCleanup(postgres.remove_server, server)
        connection = Connection(reactor, server.start(), name="test")
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.stop()))
        connection.start()
        try:
            await check_server(connection, allow_unsafe_durability=False)
        except DatabaseRefused as error:
            assert "fsync is off" in str(error)
        else:
            self.fail("DatabaseRefused was not raised")
        await check_server(connection, allow_unsafe_durability=True)
