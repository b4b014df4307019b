"""What Debian offers Postfix to check mail with: policyd-spf, opendkim and opendmarc, as private instances.

opendkim and opendmarc are milters on Unix sockets, as Debian sets them up (over TCP, each message would wait some 60 ms
for delayed acknowledgements); policyd-spf is run by Postfix's spawn(8). SPF's result goes to
opendmarc as an Authentication-Results field. All settings are as they come but for these: clients on loopback are
checked like others, nothing is logged but what Postfix logs, and names are asked of the benchmark's name server.
opendkim is told so in its configuration; for the others, the resolv.conf of a mount namespace says it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks.measure import cpu_seconds
from benchmarks.server import DOMAIN, LeftOut, ServerFailed

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from benchmarks.name_server import NameServer

_START_SECONDS = 20.0
_PACKAGES = {"opendkim": "opendkim", "opendmarc": "opendmarc", "policyd-spf": "postfix-policyd-spf-python"}
_OPENDKIM = """\
Mode v
Socket local:{socket}
UMask 000
AuthservID mx.{domain}
InternalHosts {folder}/nobody
ExternalIgnoreList {folder}/nobody
Nameservers {name_server}
UserID {user}
Syslog no
"""
_OPENDMARC = """\
Socket local:{socket}
UMask 000
AuthservID mx.{domain}
TrustedAuthservIDs mx.{domain}
IgnoreHosts {folder}/nobody
PublicSuffixList {folder}/suffixes
RejectFailures true
UserID {user}
Syslog false
"""
_POLICYD_SPF = """\
debugLevel = 1
TestOnly = 1
HELO_reject = Fail
Mail_From_reject = Fail
PermError_reject = False
TempError_Defer = False
skip_addresses = 192.0.2.1/32
Header_Type = AR
Authserv_Id = mx.{domain}
"""


class Checkers:
    """The milters, running, and how Postfix is to use them; a context manager that starts and stops them."""

    def __init__(self, folder: Path, name_server: NameServer) -> None:
        """`folder` has to be one that any user may search.

        @raises LeftOut: something is not installed, or this user may not have a mount namespace.
        """
        self._programs = {name: _program(name) for name in _PACKAGES}
        if missing := [package for name, package in _PACKAGES.items() if self._programs[name] is None]:
            raise LeftOut(f"{', '.join(missing)} not installed")
        self.in_namespace = name_server.in_namespace()
        folder.mkdir()
        self.folder = folder
        (folder / "nobody").write_text("192.0.2.1\n")
        (folder / "suffixes").write_text("com\nexample\nnet\norg\n")  # the public list does not know .example
        for name, text in (("opendkim", _OPENDKIM), ("opendmarc", _OPENDMARC)):
            user = _user(name)
            self._socket(name).parent.mkdir()
            os.chown(self._socket(name).parent, pwd.getpwnam(user).pw_uid, -1)
            (folder / f"{name}.conf").write_text(
                text.format(
                    socket=self._socket(name), domain=DOMAIN, folder=folder, user=user, name_server=name_server.host
                )
            )
        (folder / "policyd-spf.conf").write_text(_POLICYD_SPF.format(domain=DOMAIN))
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Checkers:
        for name, file_option in (("opendkim", "-x"), ("opendmarc", "-c")):
            program = self._programs[name]
            assert program is not None
            with (self.folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [*self.in_namespace, program, "-f", file_option, str(self.folder / f"{name}.conf")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._processes.append(process)
            if not _takes_connections(self._socket(name), process):
                self.__exit__(None, None, None)
                said = (self.folder / f"{name}.log").read_text()[-1000:]
                raise ServerFailed(f"{name} does not start: {said}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def leaders(self) -> tuple[int, ...]:
        """The processes of the milters."""
        return tuple(process.pid for process in self._processes)

    def cpu_seconds(self) -> float:
        """What the milters have used so far; policyd-spf belongs to Postfix."""
        return sum(cpu_seconds(pid) for pid in self.leaders())

    @property
    def parameters(self) -> tuple[str, ...]:
        """Lines of main.cf."""
        return (
            f"smtpd_milters = unix:{self._socket('opendkim')}, unix:{self._socket('opendmarc')}",
            "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:private/policyd-spf",
            "policyd-spf_time_limit = 3600",
        )

    @property
    def services(self) -> str:
        """Lines of master.cf."""
        arguments = f"{self._programs['policyd-spf']} {self.folder}/policyd-spf.conf"
        return f"policyd-spf unix - n n - 0 spawn user={_user('policyd-spf')} argv={arguments}\n"

    def _socket(self, name: str) -> Path:
        return self.folder / f"run-{name}/socket"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")


def _user(name: str) -> str:
    """The user that the package has made for it."""
    for user in (name, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    return "root"


def _takes_connections(path: Path, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            return True
        time.sleep(0.1)
    return False
