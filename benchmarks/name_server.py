"""An NSD of our own that is the whole DNS: one zone, the root, on a loopback address.

It answers at once and with authority, as a caching server nearby does for what it knows. Port 53 where we are root,
for there is no other to name in resolv.conf.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from benchmarks.measure import cpu_seconds
from benchmarks.server import LeftOut, ServerFailed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

_START_SECONDS = 30.0
_CONFIGURATION = """\
server:
  ip-address: {host}@{port}
  server-count: 1
  minimal-responses: yes
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  username: ""
  chroot: ""
  database: ""
  zonesdir: "{folder}"
  pidfile: "{folder}/pid"
  xfrdfile: "{folder}/xfrd.state"
  zonelistfile: "{folder}/zone.list"
  xfrdir: "{folder}"
remote-control:
  control-enable: no
zone:
  name: "."
  zonefile: "{folder}/root.zone"
"""
_ROOT = """\
$ORIGIN .
$TTL 3600
@ SOA ns. hostmaster. 1 3600 900 86400 900
@ NS ns.
ns. A {host}
"""


class NameServer:
    """A name server; a context manager that starts and stops it."""

    host = "127.0.0.26"

    def __init__(self, folder: Path, zone: Iterable[str]) -> None:
        """`zone` are lines of a master file.

        @raises LeftOut: NSD is not installed.
        """
        program = shutil.which("nsd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise LeftOut("NSD is not installed (Debian's package nsd)")
        self._program = program
        self.port = 53 if os.geteuid() == 0 else 5326
        self.folder = folder
        folder.mkdir()
        (folder / "nsd.conf").write_text(_CONFIGURATION.format(host=self.host, port=self.port, folder=folder))
        with (folder / "root.zone").open("w") as file:
            file.write(_ROOT.format(host=self.host))
            file.writelines(f"{line}\n" for line in zone)
        self.resolv_conf = folder / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {self.host}\n")

    def __enter__(self) -> NameServer:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, "-d", "-c", self.folder / "nsd.conf"], stdout=log, stderr=log, cwd=self.folder
            )
        query = dns.message.make_query(".", dns.rdatatype.SOA)
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                dns.query.tcp(query, self.host, timeout=1, port=self.port)
                if dns.query.udp(query, self.host, timeout=1, port=self.port).rcode() == dns.rcode.NOERROR:
                    return self
            except (TimeoutError, OSError, EOFError, dns.exception.DNSException):
                pass
            time.sleep(0.05)
        self.__exit__(None, None, None)
        raise ServerFailed(f"NSD does not answer: {(self.folder / 'log').read_text()[-1000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def in_namespace(self) -> tuple[str, ...]:
        """What a command begins with that is to ask this server, whatever the machine's resolv.conf says.

        @raises LeftOut: this user may not have a mount namespace.
        """
        if os.geteuid() != 0:
            raise LeftOut("a resolv.conf of its own takes root")
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        command = ("unshare", "--mount", "sh", "-c", script, str(self.resolv_conf))
        done = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=10, check=False)
        if done.returncode != 0:
            raise LeftOut(f"no mount namespace for a resolv.conf: {done.stderr.strip()}")
        return command

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What it has used so far."""
        return cpu_seconds(self.pid)
