"""mailgate as its users start it: `twistd --nodaemon mailgate --config FILE`, with an embedded PostgreSQL.

What differs from the defaults: the bounds on sessions of one client network and on transactions of one session, since
all load comes from loopback and Postfix has no such bounds there; and 1000 mailboxes more.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from benchmarks.measure import cpu_seconds, peak_rss_octets, reset_peak, rss_octets
from benchmarks.server import DOMAIN, MAILBOXES, Cpu, ServerFailed, wait_for_greeting
from mailgate.storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from types import TracebackType

_START_SECONDS = 90  # initdb included
_STOP_SECONDS = 40
_CONFIGURATION = """\
hostname = "mx.{domain}"
data_folder = "{folder}/data"
{policies}
[database]
embedded = true

[listener.smtp]
role = "mx"
port = {plain_port}
addresses = ["{host}"]
tls = "starttls"

[listener.smtps]
role = "mx"
port = {tls_port}
addresses = ["{host}"]
tls = "implicit"

[[tls.certificate]]
certificate = "{certificate}"
key = "{key}"

[limits]
sessions = 10_000
transactions_per_session = 10_000_000
unlimited_networks = ["127.0.0.0/8"]

{dns}
[bootstrap]
mailboxes = [{mailboxes}]
"""
_UNCHECKED = """\
[dns]
spare_loopback = true
"""
_CHECKED = """\
[dns]
servers = ["{name_server}"]
spare_loopback = false
"""


class Gate:
    """A mailgate with everything of its own; a context manager that starts and stops it."""

    plain_port = 2527
    tls_port = 4652
    answers_noop = True

    def __init__(
        self,
        folder: Path,
        certificate: Path,
        key: Path,
        *,
        mailboxes: tuple[str, ...] = MAILBOXES,
        name_server: str | None = None,
        has_policies: bool = True,
        name: str = "mailgate",
        host: str = "127.0.0.24",
        more: str = "",
    ) -> None:
        """`folder` has to be one that any user may search: PostgreSQL may have to run as another user.

        `name_server` is an address with a port, for policies that check clients on loopback too; without one these
        are spared what waits for the DNS. `more` is put behind the configuration.
        """
        self.name = name
        self.host = host
        self.folder = folder
        folder.mkdir()
        self.configuration = folder / "mailgate.toml"
        self.configuration.write_text(
            _CONFIGURATION.format(
                domain=DOMAIN,
                folder=folder,
                host=self.host,
                plain_port=self.plain_port,
                tls_port=self.tls_port,
                certificate=certificate,
                key=key,
                policies="" if has_policies else "policy = []\n",
                dns=_UNCHECKED if name_server is None else _CHECKED.format(name_server=name_server),
                mailboxes=", ".join(f'"{mailbox}"' for mailbox in mailboxes),
            )
            + more
        )
        self._postgres = EmbeddedPostgres(folder / "data/postgres")

    def __enter__(self) -> Gate:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("twistd")),
                    *("--nodaemon", "--pidfile=", "mailgate", "--config", str(self.configuration)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())},
            )
        if not wait_for_greeting(self.host, self.plain_port, _START_SECONDS, lambda: self._process.poll() is None):
            self.__exit__(None, None, None)
            raise ServerFailed(f"mailgate does not answer: {(self.folder / 'log').read_text()[-3000:]}")
        postmaster = self._postgres.postmaster()
        assert postmaster is not None
        self._postmaster = postmaster.pid
        self._database = psycopg2.connect(self._postgres.dsn)
        self._database.autocommit = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(AttributeError):
            self._database.close()
        self._postgres.stop()  # where it outlived mailgate

    @property
    def dsn(self) -> str:
        """Its database."""
        return self._postgres.dsn

    @property
    def pid(self) -> int:
        """The gate's process."""
        return self._process.pid

    def leaders(self) -> tuple[int, ...]:
        """The gate and PostgreSQL's postmaster."""
        return self.pid, self._postmaster

    def stored(self) -> int:
        """How many rows `message` has."""
        with self._database.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM mailgate.message")
            (count,) = cursor.fetchall()[0]
            return int(count)

    def passed(self) -> int:
        """Of how many messages the author was found genuine."""
        with self._database.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(sum(messages), 0) FROM mailgate.authentication_by_domain "
                "WHERE method = 'dmarc' AND result = 'pass'"
            )
            (count,) = cursor.fetchall()[0]
            return int(count)

    def cpu(self) -> Cpu:
        """The process of the gate, and PostgreSQL's."""
        return Cpu(cpu_seconds(self.pid, without=(self._postmaster,)), cpu_seconds(self._postmaster))

    def reset_peak(self) -> None:
        """Begin anew with the peak of the gate's memory."""
        reset_peak(self.pid)

    def peak_rss_octets(self) -> int:
        """The peak of the gate's memory, the database apart."""
        return peak_rss_octets(self.pid)

    def rss_octets(self) -> int:
        """The gate's memory now."""
        return rss_octets(self.pid)

    def tidy(self) -> None:
        """Nothing: the database grows, as in use."""


def _import_path() -> list[str]:
    """This tree first, so that it is what is measured, installed or not."""
    return [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
