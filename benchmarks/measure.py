"""What processes use: CPU time and memory of trees of processes, and the longest silence of a server under load."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_KTHREADD = 2  # the parent of the kernel's threads on Linux
_PROBE_PAUSE_SECONDS = 0.003
_PROBES_PER_SESSION = 400  # below any sensible bound on commands that do nothing
_ECHO = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client = listener.accept()[0]
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := client.recv(512):
    client.sendall(data)
"""


def cpu_seconds(root: int, *, without: Iterable[int] = ()) -> float:
    """User and system time of a process, its descendants, and of those that ended and were waited for.

    `without` names descendants that are left out, with all below them.
    """
    children = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            children[process.ppid()].append(process.pid)
    left_out = set(without)
    total = 0.0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in left_out:
            continue
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            times = process.cpu_times()
            precise = _scheduled_seconds(pid)
            total += times.user + times.system if precise is None else precise
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        waiting += children[pid]
    return total


def _scheduled_seconds(pid: int) -> float | None:
    """What Linux's scheduler gave the threads of a process; None where it does not say.

    User and system time are kept in ticks of 10 ms, which is much where a hundred processes share the work.
    """
    try:
        return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def machine_busy_seconds() -> float:
    """What all cores together have worked so far, but for the kernel's own threads, which write to the disks."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    return float(busy) - (cpu_seconds(_KTHREADD) if sys.platform == "linux" else 0.0)


def rss_octets(pid: int) -> int:
    """Resident memory of one process now."""
    return int(psutil.Process(pid).memory_info().rss)


def reset_peak(pid: int) -> None:
    """Begin anew with the peak of a process's resident memory, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_octets(pid: int) -> int:
    """The most resident memory that one process had since `reset_peak`; what it has now where nobody keeps the peak."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return rss_octets(pid)


def set_priority(pid: int, nice: int) -> None:
    """Give a process that priority, and its session too: Linux may share out time among sessions first.

    @raises PermissionError: it takes root to go before others.
    """
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def settle() -> None:
    """Let what earlier runs left to be written not slow the next one."""
    os.sync()
    time.sleep(0.2)


class _Pinger:
    """A thread that sends a line, waits for the answer, pauses, and keeps the longest wait."""

    def __init__(self, address: tuple[str, int], line: bytes, *, has_greeting: bool) -> None:
        self.longest_ms = 0.0
        self.count = 0
        self._address = address
        self._line = line
        self._has_greeting = has_greeting
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=10) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._session(server)
            if not self._has_greeting:
                return

    def _session(self, server: socket.socket) -> None:
        if self._has_greeting and not server.recv(512):
            return
        for _ in range(_PROBES_PER_SESSION if self._has_greeting else sys.maxsize):
            if self._ends.wait(_PROBE_PAUSE_SECONDS):
                return
            started = time.perf_counter()
            server.sendall(self._line)
            answer = server.recv(512)
            if not answer:
                return
            if not self._has_greeting or answer.startswith(b"250"):
                self.count += 1
                self.longest_ms = max(self.longest_ms, (time.perf_counter() - started) * 1000)


class StallProbe:
    """The longest that NOOP waited for its reply while the block ran.

    It is taken from outside, so it holds what the scheduler adds on busy cores. `control_ms` says how much that is:
    the same, asked of a process that only echoes.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.longest_ms = 0.0
        self.control_ms = 0.0
        self.count = 0

    def __enter__(self) -> StallProbe:
        self._echo = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
        assert self._echo.stdout is not None
        port = int(self._echo.stdout.readline())
        self._control = _Pinger(("127.0.0.1", port), b"NOOP\r\n", has_greeting=False)
        self._server = _Pinger(self._address, b"NOOP\r\n", has_greeting=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._control.stop()
        self._echo.kill()
        self._echo.wait()
        self.longest_ms, self.count = self._server.longest_ms, self._server.count
        self.control_ms = self._control.longest_ms
