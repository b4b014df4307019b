"""What a service manager is told: ready, reloading, stopping, a line of status, and that the reactor still turns.

Every message is one datagram to the Unix socket that `$NOTIFY_SOCKET` names. Without that variable nobody listens, and
every method here does nothing, so callers never ask. Nothing here decides when mailgate is ready: that is the business
of `mailgate.service`.

It isn't a binding to libsystemd: the protocol is a few lines of text, stable since systemd 38, and spoken by other
managers too. It has no barrier and passes no descriptors.

Standards: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_RETRY_SECONDS: Final = 0.1
_MAX_UNSENT: Final = 16


def _monotonic_microseconds() -> int:
    """CLOCK_MONOTONIC, the clock that the service manager compares MONOTONIC_USEC with."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _socket_address(value: str) -> str | None:
    """The address for `socket.sendto`, or None if `$NOTIFY_SOCKET` holds none of the two forms that we speak."""
    if len(value) > 1 and value.startswith("@"):
        return "\0" + value[1:]  # the abstract namespace of Linux
    if len(value) > 1 and value.startswith("/"):
        return value
    return None


class Notifier:
    """Tells the service manager what state we are in; silent where there is none.

    `environ` is read once. `clock` times the watchdog, and the second try of a message that the manager had no room
    for. A message that can't be sent is logged and dropped: a deaf manager must not stop mail.
    """

    _log = Logger()

    def __init__(
        self,
        environ: Mapping[str, str],
        clock: IReactorTime,
        *,
        process_id: int | None = None,
        monotonic_microseconds: Callable[[], int] = _monotonic_microseconds,
    ) -> None:
        self._clock = clock
        self._monotonic_microseconds = monotonic_microseconds
        self._unsent: deque[bytes] = deque(maxlen=_MAX_UNSENT)
        self._retry: IDelayedCall | None = None
        wanted = environ.get("NOTIFY_SOCKET", "")
        self._address = _socket_address(wanted)
        if wanted and self._address is None:
            self._log.warn("NOTIFY_SOCKET {address!r} is neither a path nor an abstract address", address=wanted)
        self._watchdog_seconds = self._read_watchdog(environ, os.getpid() if process_id is None else process_id)

    @property
    def is_heard(self) -> bool:
        """True where a service manager gave us a socket that we can speak to."""
        return self._address is not None

    @property
    def watchdog_seconds(self) -> float | None:
        """How long the manager waits for a sign of life; None where it doesn't wait for one of this process."""
        return self._watchdog_seconds

    def ready(self, status: str = "") -> None:
        """Start-up or reload is done: the database answered and the ports are bound."""
        self._send("READY=1", *self._status(status))

    def reloading(self) -> None:
        """A reload has begun; `ready` says that it has ended, well or not."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_microseconds()}")

    def stopping(self, status: str = "") -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1", *self._status(status))

    def status(self, text: str) -> None:
        """One line for people, as `systemctl status` shows it."""
        self._send(*self._status(text))

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` from now before start-up, reload or shutdown is held to have failed."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def watchdog(self) -> Watchdog:
        """A service that pings the manager while it runs; it does nothing where no watchdog waits for this process."""
        return Watchdog(self, self._clock)

    def ping(self) -> None:
        """A sign of life, unless older messages still wait: one that comes out of a queue proves nothing."""
        if not self._unsent:
            self._send("WATCHDOG=1")

    def _read_watchdog(self, environ: Mapping[str, str], process_id: int) -> float | None:
        interval = environ.get("WATCHDOG_USEC", "")
        if self._address is None or not interval:
            return None
        # A variable that our parent forgot to unset is meant for the parent.
        if environ.get("WATCHDOG_PID", str(process_id)) != str(process_id):
            return None
        if not (interval.isascii() and interval.isdigit() and int(interval) > 0):
            self._log.warn("WATCHDOG_USEC {interval!r} is not a positive number", interval=interval)
            return None
        return int(interval) / 1_000_000

    @staticmethod
    def _status(text: str) -> tuple[str, ...]:
        # A line break would begin another assignment.
        return (f"STATUS={' '.join(text.splitlines())}",) if text else ()

    def _send(self, *assignments: str) -> None:
        if self._address is None or not assignments:
            return
        self._unsent.append("\n".join(assignments).encode())
        if self._retry is None:
            self._flush(self._address)

    def _flush(self, address: str) -> None:
        self._retry = None
        # A socket for each message, as libsystemd does: a manager that was re-executed is found again.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            while self._unsent:
                try:
                    sender.sendto(self._unsent[0], address)
                except BlockingIOError:
                    self._retry = self._clock.callLater(_RETRY_SECONDS, self._flush, address)
                    return
                except OSError as error:
                    self._log.warn(
                        "the service manager does not hear {message!r}: {reason}",
                        message=self._unsent[0],
                        reason=error.strerror or str(error),
                    )
                self._unsent.popleft()


class Watchdog(Service):
    """Pings the service manager at half of its patience, from a timer on the reactor.

    That it is such a timer is the proof: a reactor that hangs in any callback misses it, and the manager restarts us.
    """

    _log = Logger()

    def __init__(self, notifier: Notifier, clock: IReactorTime) -> None:
        self._notifier = notifier
        self._timer = LoopingCall(notifier.ping)
        self._timer.clock = clock

    def startService(self) -> None:
        """Send the first ping at once, the others at half of the interval (sd_watchdog_enabled(3))."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted gives Service no types
        patience_seconds = self._notifier.watchdog_seconds
        if patience_seconds is not None:
            ended = self._timer.start(patience_seconds / 2)
            ended.addErrback(lambda failure: self._log.failure("the watchdog's timer has failed", failure))

    def stopService(self) -> None:
        """Send no more pings."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted gives Service no types
        if self._timer.running:
            self._timer.stop()
