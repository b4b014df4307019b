"""A mailgate process as a person would start it: `twistd mailgate` with a configuration, a folder and ports of its own.

For tests that need the real process, to kill it for instance. They block, and wait with deadlines.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mailgate.storage.embedded import EmbeddedPostgres
from tests.support.postgres import crash

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailgate.certificate import CertificateFiles

TREE = Path(__file__).parents[2]
# What bin/twistd holds: the script itself may be missing where only the libraries are installed.
_TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
PATIENCE_SECONDS = 60.0


def eventually(condition: Callable[[], object], what: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the condition holds, or fail."""
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_seconds:g} s: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Gate:
    """A mailgate that can be started, stopped and killed, any number of times, on the same folder and port.

    Without `dsn` it has an embedded PostgreSQL of its own, which `close` ends as well.
    """

    def __init__(
        self,
        *,
        log: Path,
        mailboxes: tuple[str, ...],
        dsn: str | None = None,
        wait_seconds: float = 5.0,
        certificate: CertificateFiles | None = None,
        settings: str = "",
    ) -> None:
        """`log` is where it says what it does. `wait_seconds` is how long clients wait for a database that is away.

        Without `certificate` it makes itself one. `settings` are more tables of the configuration, as TOML.
        """
        # Not pytest's own folder: as root, PostgreSQL runs as another user, who has to get there.
        self.folder = Path(tempfile.mkdtemp(prefix="mailgate-test-"))
        self.port = free_port()
        self.postgres = EmbeddedPostgres(self.folder / "postgres") if dsn is None else None
        self._dsn = dsn
        self._log = log
        self._config = self.folder / "mailgate.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(self.folder / "notify"))
        self._notices.setblocking(False)
        tls = "[tls]\nself_signed = true"
        if certificate is not None:
            tls = f'[[tls.certificate]]\ncertificate = "{certificate.certificate}"\nkey = "{certificate.key}"'
        database = "embedded = true" if dsn is None else f'dsn = "{dsn}"'
        self._config.write_text(
            f"""
hostname = "mail.example.test"
data_folder = "{self.folder}"
[database]
{database}
wait_seconds = {wait_seconds}
{tls}
[listener.smtp]
role = "mx"
port = {self.port}
addresses = ["127.0.0.1"]
[bootstrap]
mailboxes = [{", ".join(f'"{mailbox}"' for mailbox in mailboxes)}]
{settings}
"""
        )

    @property
    def dsn(self) -> str:
        """The database, for a look of our own."""
        if self._dsn is not None:
            return self._dsn
        assert self.postgres is not None
        return self.postgres.dsn

    @property
    def config_path(self) -> Path:
        """Its configuration, for the command `mailgate`."""
        return self._config

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def resident_octets(self) -> int:
        """How much memory the process has now."""
        octets: int = psutil.Process(self.pid).memory_info().rss
        return octets

    def start(self, *, wait: bool = True) -> None:
        """Start it, and by default wait until it says that it is ready."""
        assert self._process is None
        with suppress(BlockingIOError):
            while self._notices.recv(4096):
                pass
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_TWISTD, "--nodaemon", "--pidfile=", "mailgate", "--config", str(self._config)],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
                    "NOTIFY_SOCKET": str(self.folder / "notify"),
                    "PYTHONPATH": os.pathsep.join([str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]),
                },
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if wait:
            eventually(self._is_ready, "mailgate is ready")

    def kill(self) -> None:
        """End it with SIGKILL; its embedded PostgreSQL goes on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def terminate(self) -> None:
        """Ask it to stop."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is None or self._process.poll() is not None

    def exit_status(self, patience_seconds: float) -> int:
        """What it ended with, once it has."""
        assert self._process is not None
        status = self._process.wait(patience_seconds)
        self._process = None
        return status

    def log(self) -> str:
        """What it has said, in all its lives."""
        return self._log.read_text("utf-8", "replace")

    def tracebacks(self) -> list[str]:
        """What went wrong in a way that nobody had thought of."""
        lines = self.log().splitlines()
        return ["\n".join(lines[at - 1 : at + 25]) for at, line in enumerate(lines) if "Traceback (most recent" in line]

    def close(self) -> None:
        """End everything, whatever it does, and remove the folder."""
        self._notices.close()
        if self._process is not None:
            self.kill()
        if self.postgres is not None:
            crash(self.postgres)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        assert not self.has_ended(), f"mailgate has ended instead of getting ready:\n{self.log()[-4000:]}"
        try:
            return b"READY=1" in self._notices.recv(4096)
        except BlockingIOError:
            return False
