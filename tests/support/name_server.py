"""A DNS server of a test's own, in a thread: for processes under test, where the test itself has no reactor.

It answers over UDP what a zone in memory has, as a recursive server would, and is silent where the zone fails so.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import dns.message

from tests.support.dns_server import HOST, Query, from_zone

if TYPE_CHECKING:
    from types import TracebackType

    from mailgate.dns.zone import Zone

_LAST_WORD = b"\0"


class NameServer:
    """Serves the zone until the end of the `with`. The zone may be changed meanwhile; what was asked stands in it."""

    def __init__(self, zone: Zone, host: str = HOST, port: int = 0) -> None:
        """Bind that address of the loopback, and by default a free port of it."""
        self.host = host
        self._respond = from_zone(zone)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="name-server", daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(_LAST_WORD, (self.host, self.port))
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            octets, client = self._socket.recvfrom(4096)
            if octets == _LAST_WORD:
                return
            message = dns.message.from_wire(octets)
            assert isinstance(message, dns.message.QueryMessage)
            # The last two belong to the other server, and a zone asks for neither.
            query = Query(message, client[1], False, lambda _wire: None, None, None)  # type: ignore[arg-type]
            for response in self._respond(query) or ():
                self._socket.sendto(response, client)
