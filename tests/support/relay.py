"""A way to PostgreSQL that can fail, for processes: run by threads, so that the test itself may block.

`tests.support.unreliable` is the same for tests that run on the reactor.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from psycopg2.extensions import make_dsn, parse_dsn


class Relay:
    """A Unix socket that leads to a server's. `dsn` goes that way."""

    def __init__(self, dsn: str) -> None:
        given = parse_dsn(dsn)
        self._folder = Path(tempfile.mkdtemp(prefix="mailgate-relay-"))
        name = f".s.PGSQL.{given.get('port', '5432')}"
        self._server = str(Path(given["host"]) / name)
        self.dsn: str = make_dsn(dsn, host=str(self._folder))
        self._marker: bytes | None = None
        self._losses_left = 0  # whose query has not come yet
        self._losses_open = 0  # whose answer has not come yet
        self._is_closed_after = False
        self._is_open = True
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._folder / name))
        self._listening.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answers(self, marker: bytes, times: int = 1, *, then_close: bool = False) -> None:
        """The next queries that hold these octets get through; their connections end when the answer comes.

        PostgreSQL answers after COMMIT. With `then_close` no new connection gets through after the last loss.
        """
        with self._lock:
            self._marker, self._is_closed_after = marker, then_close
            self._losses_left = self._losses_open = times

    def has_lost_all(self) -> bool:
        """Whether that has happened as often as was asked for."""
        with self._lock:
            return not self._losses_open

    def shut(self) -> None:
        """End every connection, without a word, and let no new one through."""
        with self._lock:
            self._is_open = False
            ends = tuple(self._ends)
        for end in ends:
            _end(end)

    def open(self) -> None:
        """Let connections through."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """End it all."""
        self.shut()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # close alone would not wake the thread
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listening.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            with self._lock:
                is_open = self._is_open
                if is_open:
                    self._ends |= {client, server}
            try:
                if not is_open:
                    raise ConnectionRefusedError
                server.connect(self._server)
            except OSError:
                self._forget(client, server)
                continue
            is_marked = threading.Event()
            for pump in (self._queries, self._answers):
                threading.Thread(target=self._carry, args=(pump, client, server, is_marked), daemon=True).start()

    def _carry(self, pump: object, client: socket.socket, server: socket.socket, is_marked: threading.Event) -> None:
        assert callable(pump)
        with suppress(OSError):
            pump(client, server, is_marked)
        _end(client)
        _end(server)
        self._forget(client, server)

    def _queries(self, client: socket.socket, server: socket.socket, is_marked: threading.Event) -> None:
        while data := client.recv(65536):
            with self._lock:
                if self._losses_left and self._marker is not None and self._marker in data:
                    self._losses_left -= 1
                    is_marked.set()
            server.sendall(data)

    def _answers(self, client: socket.socket, server: socket.socket, is_marked: threading.Event) -> None:
        while data := server.recv(65536):
            if is_marked.is_set():
                with self._lock:
                    self._losses_open -= 1
                    if self._is_closed_after and not self._losses_open:
                        self._is_open = False
                return
            client.sendall(data)

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._ends -= set(ends)
        for end in ends:
            end.close()


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
