"""Postfix as the reference: a private instance with virtual delivery to maildir, apart from the machine's own.

Its configuration, queue and mail are in a temporary folder and it listens on a loopback address of its own. All
settings are Postfix's defaults, durability above all, but for what keeps the instance apart: nothing runs chroot'ed
(there is no jail to run in), and it logs to a file as mailgate does.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import cpu_seconds, peak_rss_octets, reset_peak
from benchmarks.server import DOMAIN, MAILBOXES, Cpu, LeftOut, ServerFailed, wait_for_greeting

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.checkers import Checkers

_START_SECONDS = 20
_MAIN = """\
compatibility_level = 3.6
command_directory = {command_directory}
daemon_directory = {daemon_directory}
meta_directory = {meta_directory}
shlib_directory = {shlib_directory}
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file_prefixes = {folder}
maillog_file = {folder}/maillog
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.{domain}
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = texthash:{folder}/configuration/mailboxes
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_tls_chain_files = {key}, {certificate}
smtpd_tls_security_level = may
"""
_MASTER = """\
{host}:{plain_port} inet n - n - - smtpd
{host}:{tls_port} inet n - n - - smtpd
  -o smtpd_tls_wrappermode=yes
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""


class Postfix:
    """A private Postfix instance; a context manager that starts and stops it."""

    host = "127.0.0.25"
    plain_port = 2526
    tls_port = 4651
    answers_noop = False  # a second of pause for each beyond smtpd_junk_command_limit

    def __init__(
        self,
        folder: Path,
        certificate: Path,
        key: Path,
        parameters: tuple[str, ...] = (),
        checkers: Checkers | None = None,
    ) -> None:
        """`folder` has to be one that any user may search. `parameters` are lines of main.cf that come last.

        @raises LeftOut: Postfix is not installed, or this user may not start it.
        """
        if shutil.which("postfix") is None:
            raise LeftOut("Postfix is not installed")
        if os.geteuid() != 0:
            raise LeftOut("Postfix can only be started by root")
        try:
            owner = pwd.getpwnam("postfix")
        except KeyError:
            raise LeftOut("there is no user postfix") from None
        self.name = "Postfix" if checkers is None else "Postfix+3"
        self.folder = folder
        self._checkers = checkers
        self._configuration = folder / "configuration"
        self._configuration.mkdir(parents=True)
        (folder / "queue").mkdir()
        for name in ("data", "mail"):
            (folder / name).mkdir(mode=0o755)
            os.chown(folder / name, owner.pw_uid, owner.pw_gid)
        values = {
            "folder": folder,
            "domain": DOMAIN,
            "uid": owner.pw_uid,
            "gid": owner.pw_gid,
            "certificate": certificate,
            "key": key,
            "host": self.host,
            "plain_port": self.plain_port,
            "tls_port": self.tls_port,
        }
        for name in ("command_directory", "daemon_directory", "meta_directory", "shlib_directory"):
            values[name] = _default(name)
        (self._configuration / "main.cf").write_text(
            _MAIN.format(**values)
            + "".join(f"{line}\n" for line in (*(checkers.parameters if checkers is not None else ()), *parameters))
        )
        (self._configuration / "master.cf").write_text(
            _MASTER.format(**values) + (checkers.services if checkers is not None else "")
        )
        maildirs = (f"{mailbox} {mailbox.partition('@')[0]}/\n" for mailbox in MAILBOXES)
        (self._configuration / "mailboxes").write_text("".join(maildirs))

    def __enter__(self) -> Postfix:
        said = self._command("start")
        try:
            self._master = int((self.folder / "queue/pid/master.pid").read_text())
        except (OSError, ValueError):
            raise ServerFailed(f"Postfix does not start: {said}") from None
        if not wait_for_greeting(self.host, self.plain_port, _START_SECONDS):
            log = self.folder / "maillog"
            self._command("stop")
            raise ServerFailed(f"Postfix does not answer: {log.read_text()[-2000:] if log.exists() else said}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._command("stop")

    def leaders(self) -> tuple[int, ...]:
        """The master, and the milters."""
        return (self._master, *(self._checkers.leaders() if self._checkers is not None else ()))

    def stored(self) -> int:
        """How many files there are in the maildirs."""
        return sum(len(os.listdir(new)) for new in (self.folder / "mail").glob("*/new"))  # noqa: PTH208 - the fastest

    def passed(self) -> int:
        """Of how many of these opendmarc has found the author genuine."""
        return sum(b" dmarc=pass " in _head(file) for file in (self.folder / "mail").glob("*/new/*"))

    def cpu(self) -> Cpu:
        """What master, its daemons and the milters have used; those that ended are in master's own account."""
        milters = self._checkers.cpu_seconds() if self._checkers is not None else 0.0
        return Cpu(cpu_seconds(self._master) + milters, 0.0)

    def reset_peak(self) -> None:
        """Begin anew; of no use here, where memory is spread over many processes."""
        reset_peak(self._master)

    def peak_rss_octets(self) -> int:
        """The master process alone."""
        return peak_rss_octets(self._master)

    def stop_queue(self) -> None:
        """Have no queue manager from the next start on: what is taken stays in the queue."""
        file = self._configuration / "master.cf"
        file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("qmgr ")))

    def start_queue(self) -> None:
        """Have a queue manager, at once."""
        with (self._configuration / "master.cf").open("a") as file:
            file.write("qmgr      unix  n       -       n       300     1       qmgr\n")
        self._command("reload")

    def queued(self) -> int:
        """How many messages are in the queue."""
        queues = [self.folder / "queue" / name for name in ("incoming", "active", "deferred", "maildrop", "corrupt")]
        return sum(len(files) for queue in queues for _, _, files in os.walk(queue))

    def tidy(self) -> None:
        """Remove the delivered mail, and wait until the queue is empty."""
        deadline = time.monotonic() + 30
        queues = [self.folder / "queue" / name for name in ("incoming", "active", "maildrop")]
        while any(next(queue.iterdir(), None) for queue in queues) and time.monotonic() < deadline:
            time.sleep(0.1)
        for mailbox in (self.folder / "mail").iterdir():
            shutil.rmtree(mailbox)

    def _command(self, word: str) -> str:
        """What `postfix start`, `stop` or `reload` said. It speaks only to a terminal, hence script(1) if there is."""
        command = ["postfix", "-c", str(self._configuration), word]
        if script := shutil.which("script"):
            command = [script, "--quiet", "--return", "--command", " ".join(command), "/dev/null"]
        if self._checkers is not None:
            command = [*self._checkers.in_namespace, *command]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        return (done.stdout + done.stderr).strip()


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(4096)


def _default(parameter: str) -> str:
    """A parameter as this system's Postfix was built."""
    command = ["postconf", "-dh", parameter]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
