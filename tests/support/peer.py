"""Mail servers that others wrote, each private: own folder, own loopback address, own users where it needs some.

A peer takes mail for its own domain into one maildir, and relays everything else to one next hop, over TLS or not at
all. Its users are `USERS`; others are refused when they are named. Mail to `FORWARDED` goes on to an address elsewhere.
Nothing of the machine's own mail system is used or changed: what a program wants to find at a fixed place it finds in a
mount namespace of its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import smtplib
import ssl
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tests.support.gate import eventually
from tests.support.unavailable import Unavailable

if TYPE_CHECKING:
    from types import TracebackType

    from mailgate.certificate import CertificateFiles

USERS = ("bob", "jürgen")
FORWARDED = "gone"
PROGRAMS = "/mnt"  # where a peer's programs are in its namespace
SYSTEM_USER = 64071  # the first number of those that peers get
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a peer has to know of the world."""

    address: str  # its own
    port: int
    certificate: CertificateFiles  # for `mx.` and its domain
    authorities: Path  # PEM file of who signs certificates
    next_hop: tuple[str, int]
    name_server: str  # the address of one on port 53
    forwards_to: str  # where mail to FORWARDED goes
    signing_key: Path  # PEM file of an RSA key, in DNS as rsa._domainkey of its domain
    keys: tuple[tuple[str, bytes], ...]  # of DKIM, and where they are in the DNS


@dataclass(frozen=True, slots=True)
class Mount:
    """Something that a program finds where it isn't otherwise; a folder of its own, in memory, without `source`."""

    target: str
    source: Path | None = None


@dataclass(frozen=True, slots=True)
class SystemUser:
    """A line of passwd(5), and the group of the same name and number."""

    name: str
    number: int
    home: str = "/nonexistent"


def require_namespaces() -> None:
    """@raises Unavailable: this user or this machine can't have a Namespace."""
    if os.geteuid() != 0:
        raise Unavailable("only root can give a program users of its own")
    for program in ("unshare", "mount"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    if not Path("/etc/resolv.conf").exists():
        raise Unavailable("there is no /etc/resolv.conf to put another in its place")
    probe = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", PROGRAMS],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if probe.returncode:
        raise Unavailable(f"mount namespaces are not allowed here: {probe.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """How to start a program that sees these mounts, users and this name server; see `require_namespaces`."""

    folder: Path
    mounts: Sequence[Mount]
    users: Sequence[SystemUser]
    name_server: str
    preparations: Sequence[str] = ()  # shell commands, run in it

    def command(self, *program: str) -> list[str]:
        """The command line of that program in it; the process is the program's."""
        passwd = "".join(f"{user.name}:x:{user.number}:{user.number}::{user.home}:/bin/sh\n" for user in self.users)
        group = "".join(f"{user.name}:x:{user.number}:\n" for user in self.users)
        lines = ["set -e"]
        for name, text in (
            ("passwd", Path("/etc/passwd").read_text() + passwd),
            ("group", Path("/etc/group").read_text() + group),
            ("resolv.conf", f"nameserver {self.name_server}\noptions timeout:1 attempts:1\n"),
        ):
            file = self.folder / name
            file.write_text(text)
            lines.append(shlex.join(["mount", "--bind", str(file), str(Path("/etc", name).resolve())]))
        for mount in self.mounts:
            how = ["-t", "tmpfs", "tmpfs"] if mount.source is None else ["--bind", str(mount.source)]
            lines.append(shlex.join(["mount", *how, mount.target]))
        lines += [*self.preparations, f"exec {shlex.join(program)}"]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)]


class Peer:
    """What the peers have in common: a process in the foreground, a maildir, an SMTP port.

    A context manager that starts and stops it; construction raises Unavailable where it can't run.
    """

    name: ClassVar[str]
    signs_itself: bool = False  # what its own domain sends gets a DKIM signature
    has_smtputf8: ClassVar[bool] = False
    returns_envid: ClassVar[bool] = True  # its notices have the ENVID that was given (RFC 3464 section 2.2.1)
    verifier: str | None = None  # the authserv-id under which it writes what it found of signatures

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.domain = f"{self.name}.test"
        self.host = f"mx.{self.domain}"
        # Not pytest's own folder: peers run as users who have to get there.
        self.folder = Path(tempfile.mkdtemp(prefix=f"mailgate-{self.name}-"))
        self.folder.chmod(0o755)
        self.maildir = self.folder / "mail"
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What runs it in the foreground."""
        raise NotImplementedError

    def __enter__(self) -> Peer:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env=self.environment(),
            )
        try:
            eventually(self._answers, f"{self.name} answers", _PATIENCE_SECONDS)
        except AssertionError as error:
            said = self.log()[-3000:]
            self.__exit__(None, None, None)
            raise AssertionError(f"{self.name} does not start: {said}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}

    def stop(self) -> None:
        """End the process, and those that it started."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a session, and so a group, of its own
        self._process.wait(5)
        self._process = None

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text("utf-8", "replace")

    def connect(self) -> smtplib.SMTP:
        """A session with it, over TLS; its certificate is verified."""
        place = self.situation
        client = smtplib.SMTP(place.address, place.port, "client.example", _PATIENCE_SECONDS)
        context = ssl.create_default_context(cafile=str(place.authorities))
        context.check_hostname = False  # it is connected to by its address
        client.starttls(context=context)
        client.ehlo()
        return client

    def mails(self) -> list[bytes]:
        """Every message in its maildir, with the line ends that it had on the way."""
        found = sorted(self.maildir.glob("new/*"))
        return [file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for file in found]

    def arrived(self, marker: bytes) -> bytes:
        """The message that contains these octets, once it is there."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            for mail in self.mails():
                if marker in mail:
                    return mail
            assert time.monotonic() < deadline, f"{marker!r} did not reach {self.name}:\n{self.log()[-4000:]}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it has ended with {self._process.returncode}"
        try:
            with smtplib.SMTP(self.situation.address, self.situation.port, "client.example", 5):
                return True
        except (OSError, smtplib.SMTPException):
            return False
