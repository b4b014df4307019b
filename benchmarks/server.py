"""What a benchmark needs of a server, whichever it is, and how one is waited for."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

DOMAIN = "bench.test"
MAILBOX = f"bob@{DOMAIN}"  # where a load goes
MANY_MAILBOXES = 1000
MANY_MAILBOXES_PATTERN = f"user{{}}@{DOMAIN}"
MAILBOXES = (MAILBOX, *(MANY_MAILBOXES_PATTERN.format(number) for number in range(MANY_MAILBOXES)))


class ServerFailed(Exception):
    """A server did not start or did not do its work; the message is for people."""


class LeftOut(Exception):
    """Something that a benchmark needs is not here; the message says what."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds so far."""

    server: float
    database: float  # 0 where the server has none


class Server(Protocol):
    """A mail server under test."""

    name: str
    host: str
    plain_port: int
    tls_port: int  # implicit TLS
    answers_noop: bool  # at once and as often as asked: what a stall can be seen by

    def leaders(self) -> tuple[int, ...]:
        """The processes that all its others come from; each may lead a session of its own."""

    def stored(self) -> int:
        """How many messages it has stored so far, counted where they lie."""

    def cpu(self) -> Cpu:
        """What it has used so far, all its processes together."""

    def reset_peak(self) -> None:
        """Begin anew with the peak of its memory."""

    def peak_rss_octets(self) -> int:
        """The most memory it had since; of the main process alone where there are many."""

    def tidy(self) -> None:
        """Between two runs: remove what would slow the next."""


def wait_for_greeting(
    host: str, port: int, timeout_seconds: float, is_alive: Callable[[], bool] = lambda: True
) -> bool:
    """Whether a server says 220 there within that time, or before it is gone."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline and is_alive():
        try:
            with socket.create_connection((host, port), timeout=2) as client:
                if client.recv(512).startswith(b"220"):
                    return True
        except OSError:
            pass
        time.sleep(0.1)
    return False
