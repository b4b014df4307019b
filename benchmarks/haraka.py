"""Haraka with its plugins spf and dkim, which writes mail into a PostgreSQL of its own: one process, as mailgate is.

It is an npm package and is not installed by itself: `npm install Haraka haraka-plugin-spf haraka-plugin-dkim pg` in a
folder, which is then named to the benchmark. Two plugins are ours: one inserts a row for each message and answers
once it is committed, the other lets clients on loopback pass for clients from elsewhere, whom alone SPF is asked about.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import parse_dsn

from benchmarks.measure import cpu_seconds, peak_rss_octets, reset_peak
from benchmarks.server import DOMAIN, Cpu, LeftOut, ServerFailed, wait_for_greeting
from mailgate.storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from benchmarks.name_server import NameServer

_START_SECONDS = 30
_PLUGINS = "from_elsewhere\nspf\nrcpt_to.in_host_list\ndkim\nqueue_postgres\n"
_FROM_ELSEWHERE = """\
exports.hook_connect = (next, connection) => {
  connection.set('remote.is_private', false)
  connection.set('remote.is_local', false)
  next()
}
"""
_QUEUE = """\
const { Pool } = require('pg')

exports.register = function () {
  this.pool = new Pool({ ...this.config.get('database.json'), max: 10 })
}

exports.hook_queue = function (next, connection) {
  const transaction = connection.transaction
  transaction.message_stream.get_data((content) => {
    const recipients = transaction.rcpt_to.map((recipient) => recipient.address)
    this.pool
      .query({
        name: 'store',
        text: 'INSERT INTO haraka (reverse_path, recipients, content) VALUES ($1, $2, $3)',
        values: [transaction.mail_from.address, recipients, content],
      })
      .then(
        () => next(OK),
        (error) => {
          this.logerror(error)
          next(DENYSOFT)
        },
      )
  })
}
"""


class Haraka:
    """A Haraka with everything of its own; a context manager that starts and stops it."""

    name = "Haraka"
    host = "127.0.0.29"
    plain_port = 2529
    tls_port = 0
    answers_noop = False

    def __init__(self, folder: Path, modules: Path | None, name_server: NameServer) -> None:
        """`modules` is the folder in which npm has installed the packages.

        @raises LeftOut: it is not there, or this user may not have a mount namespace.
        """
        node = shutil.which("node")
        if node is None:
            raise LeftOut("Node.js is not installed")
        if modules is None:
            raise LeftOut("--haraka names no folder with its packages")
        self._command = [
            *name_server.in_namespace(),
            *(node, str(modules / "node_modules/Haraka/bin/haraka"), "-c", str(folder)),
        ]
        self.folder = folder
        (folder / "config").mkdir(parents=True)
        (folder / "plugins").mkdir()
        (folder / "node_modules").symlink_to((modules / "node_modules").resolve())
        defaults = modules / "node_modules/Haraka/config"
        for name in ("connection.ini", "outbound.ini"):
            shutil.copy(defaults / name, folder / "config" / name)
        for name, text in (
            ("config/plugins", _PLUGINS),
            ("config/host_list", f"{DOMAIN}\n"),
            ("config/me", f"mx.{DOMAIN}\n"),
            ("config/smtp.ini", f"listen={self.host}:{self.plain_port}\n"),
            ("config/log.ini", "[main]\nlevel=ERROR\nformat=DEFAULT\n"),
            ("config/http.ini", ""),
            ("plugins/from_elsewhere.js", _FROM_ELSEWHERE),
            ("plugins/queue_postgres.js", _QUEUE),
        ):
            (folder / name).write_text(text)
        self._postgres = EmbeddedPostgres(folder / "postgres")

    def __enter__(self) -> Haraka:
        dsn = self._postgres.start()
        postmaster = self._postgres.postmaster()
        assert postmaster is not None
        self._postmaster = postmaster.pid
        self._database = psycopg2.connect(dsn)
        self._database.autocommit = True
        with self._database.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE public.haraka (id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), "
                "reverse_path text, recipients text[], content bytea)"
            )
        options = parse_dsn(dsn)
        (self.folder / "config/database.json").write_text(
            json.dumps({"host": options["host"], "user": options["user"], "database": options["dbname"]})
        )
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"HOME": "/"}
            )
        if not wait_for_greeting(self.host, self.plain_port, _START_SECONDS, lambda: self._process.poll() is None):
            self.__exit__(None, None, None)
            raise ServerFailed(f"Haraka does not answer: {(self.folder / 'log').read_text()[:2500]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._database.close()
        self._postgres.stop()

    def leaders(self) -> tuple[int, ...]:
        """Haraka and PostgreSQL's postmaster."""
        return self._process.pid, self._postmaster

    def stored(self) -> int:
        """How many rows its table has."""
        return self._count("true")

    def passed(self) -> int:
        """In how many of these SPF passed. Its dkim takes no Ed25519 key as RFC 8463 writes it, and finds one half."""
        return self._count("encode(substr(content, 1, 3000), 'escape') LIKE '%spf=pass%'")

    def cpu(self) -> Cpu:
        """Haraka, and its PostgreSQL."""
        return Cpu(cpu_seconds(self._process.pid), cpu_seconds(self._postmaster))

    def reset_peak(self) -> None:
        """Begin anew with the peak of its memory."""
        reset_peak(self._process.pid)

    def peak_rss_octets(self) -> int:
        """The peak of its memory."""
        return peak_rss_octets(self._process.pid)

    def tidy(self) -> None:
        """Nothing: the database grows, as mailgate's does."""

    def _count(self, condition: str) -> int:
        with self._database.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM public.haraka WHERE {condition}")
            (count,) = cursor.fetchall()[0]
            return int(count)
