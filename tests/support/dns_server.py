"""DNS servers for tests, on loopback: a real one, and one that does whatever a test wants, however wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.protocols.basic import Int16StringReceiver

from mailgate.dns.answer import Outcome, RecordType
from mailgate.dns.wire import from_wire_name
from mailgate.dns.zone import Zone

HOST = "127.0.0.1"
_START_SECONDS = 20.0
ZONE_START = """\
$ORIGIN {origin}.
$TTL 300
@ SOA ns hostmaster 1 3600 900 86400 {minimum}
@ NS ns
"""


# ---------------------------------------------------------------- a real one


@contextlib.contextmanager
def nsd(zones: Mapping[str, str], *, minimum_seconds: int = 60) -> Iterator[int]:
    """An NSD that serves these zones, and its port, for UDP and TCP. Each zone gets a SOA and an NS record.

    A test that needs it is skipped where it is not installed.
    """
    program = shutil.which("nsd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("nsd is not installed (Debian's package nsd)")
    folder = Path(tempfile.mkdtemp(prefix="mailgate-nsd-"))
    try:
        for attempt in range(5):
            port = free_port()
            process = _start_nsd(program, folder, port, zones, minimum_seconds)
            try:
                if _answers(process, port, next(iter(zones))):
                    yield port
                    return
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            said = (folder / "log").read_text()
            if attempt == 4 or "in use" not in said:
                raise AssertionError(f"nsd did not answer: {said}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_nsd(
    program: str, folder: Path, port: int, zones: Mapping[str, str], minimum_seconds: int
) -> subprocess.Popen[bytes]:
    lines = [
        "server:",
        f"  ip-address: {HOST}@{port}",
        "  server-count: 1",
        "  rrl-ratelimit: 0",  # else it drops what comes more often than 200 times a second
        "  rrl-whitelist-ratelimit: 0",
        '  username: ""',
        '  chroot: ""',
        '  database: ""',
        f'  zonesdir: "{folder}"',
        f'  pidfile: "{folder}/pid"',
        f'  xfrdfile: "{folder}/xfrd.state"',
        f'  zonelistfile: "{folder}/zone.list"',
        f'  xfrdir: "{folder}"',
        "remote-control:",
        "  control-enable: no",
    ]
    for number, (origin, text) in enumerate(zones.items()):
        path = folder / f"{number}.zone"
        path.write_text(f"{ZONE_START.format(origin=origin, minimum=minimum_seconds)}{text}\n", "utf-8")
        lines += ["zone:", f'  name: "{origin}"', f'  zonefile: "{path}"']
    (folder / "nsd.conf").write_text("\n".join([*lines, ""]), "utf-8")
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([program, "-d", "-c", folder / "nsd.conf"], stdout=log, stderr=log, cwd=folder)


def _answers(process: subprocess.Popen[bytes], port: int, origin: str) -> bool:
    """Whether it comes to answer, over both transports."""
    query = dns.message.make_query(f"{origin}.", dns.rdatatype.SOA)
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            dns.query.tcp(query, HOST, timeout=1, port=port)
            response = dns.query.udp(query, HOST, timeout=1, port=port)
        except (OSError, EOFError, dns.exception.DNSException):
            time.sleep(0.02)
            continue
        return response.rcode() == dns.rcode.NOERROR
    return False


def free_port() -> int:
    """A port that nobody has now, for UDP and TCP."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
        ):
            datagrams.bind((HOST, 0))
            port: int = datagrams.getsockname()[1]
            with contextlib.suppress(OSError):
                stream.bind((HOST, port))
                return port


# ---------------------------------------------------------------- one of our own


@dataclass(frozen=True, slots=True)
class Query:
    """What came to the server, and the way back."""

    message: dns.message.QueryMessage
    client_port: int
    is_tcp: bool
    send: Callable[[bytes], None]  # one message
    transport: Any  # Any: of a datagram socket or of a connection
    server: LoopbackServer


Respond = Callable[[Query], Iterable[bytes] | None]


class LoopbackServer:
    """A server on UDP and TCP that answers each query with the messages that a function gives it."""

    def __init__(
        self,
        reactor: Any,  # Any: Twisted types the reactor as less than it is
        respond: Respond,
        host: str = HOST,
    ) -> None:
        self.host = host
        self.queries: list[Query] = []
        self.connections: list[Protocol] = []
        self.respond = respond
        self._reactor = reactor
        for _ in range(20):
            self._datagrams = reactor.listenUDP(0, _Datagrams(self), interface=host, maxPacketSize=65_535)
            self.port: int = self._datagrams.getHost().port
            factory = Factory.forProtocol(lambda: _Connection(self))
            try:
                self._stream = reactor.listenTCP(self.port, factory, interface=host)
            except CannotListenError:
                self._datagrams.stopListening()
                continue
            return
        raise AssertionError("no port is free for both")

    @property
    def place(self) -> tuple[str, int]:
        """As a resolver is told of it."""
        return self.host, self.port

    def stop_stream(self) -> None:
        """Take no more connections."""
        self._stream.stopListening()

    async def stop(self) -> None:
        """Close everything."""
        for port in (self._datagrams, self._stream):
            await maybeDeferred(port.stopListening)
        for connection in list(self.connections):
            connection.transport.abortConnection()  # type: ignore[union-attr]  # Twisted: ITransport lacks it
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(0, turn.callback, None)
        await turn

    def received(self, wire: bytes, client_port: int, is_tcp: bool, send: Callable[[bytes], None], way: Any) -> None:
        """Answer one query, or don't."""
        message = dns.message.from_wire(wire)
        assert isinstance(message, dns.message.QueryMessage)
        query = Query(message, client_port, is_tcp, send, way, self)
        self.queries.append(query)
        for response in self.respond(query) or ():
            send(response)


class _Datagrams(DatagramProtocol):
    def __init__(self, server: LoopbackServer) -> None:
        self._server = server

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # Any: an address
        """A query."""
        transport: Any = self.transport  # Any: as for the reactor
        self._server.received(datagram, addr[1], False, lambda wire: transport.write(wire, addr), transport)


class _Connection(Int16StringReceiver):
    def __init__(self, server: LoopbackServer) -> None:
        self._server = server

    def connectionMade(self) -> None:
        """Note it."""
        self._server.connections.append(self)

    def connectionLost(self, reason: object = None) -> None:
        """Forget it."""
        self._server.connections.remove(self)

    def stringReceived(self, string: bytes) -> None:
        """A query."""
        transport: Any = self.transport  # Any: as for the reactor
        self._server.received(string, transport.getPeer().port, True, self.sendString, transport)


def from_zone(zone: Zone, *, is_authenticated: bool = False) -> Respond:
    """Answers as a recursive server would that knows this zone. Failures of the zone without an rcode are silence."""

    def respond(query: Query) -> Iterable[bytes]:
        (question,) = query.message.question
        name = from_wire_name(question.name)
        answer = zone.lookup(name, RecordType(dns.rdatatype.to_text(question.rdtype)))
        assert not isinstance(answer, Deferred)
        if answer.outcome is Outcome.FAILURE and not answer.rcode:
            return
        response = dns.message.make_response(query.message, recursion_available=True)
        response.set_rcode(dns.rcode.from_text(answer.rcode))
        if is_authenticated:
            response.flags |= dns.flags.AD
        if answer.records:
            texts = [_text_of(record) for record in answer.records]
            rdatas = [dns.rdata.from_text(dns.rdataclass.IN, question.rdtype, text) for text in texts]
            response.answer.append(dns.rrset.from_rdata_list(question.name, answer.ttl_seconds, rdatas))
        elif answer.outcome is not Outcome.FAILURE:
            soa = f"ns.invalid. hostmaster.invalid. 1 3600 900 86400 {answer.ttl_seconds}"
            response.authority.append(dns.rrset.from_text(".", answer.ttl_seconds, "IN", "SOA", soa))
        wire = response.to_wire(max_size=65_535)
        if not query.is_tcp and len(wire) > max(query.message.payload, 512):
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        yield wire

    return respond


def _text_of(record: object) -> str:
    """The record as a master file has it."""
    match record:
        case bytes():
            strings = [record[start : start + 255] for start in range(0, len(record), 255)] or [b""]
            return " ".join('"' + "".join(f"\\{octet:03d}" for octet in string) + '"' for string in strings)
        case (int() as preference, str() as name):
            return f"{preference} {name}."
        case (usage, selector, matching_type, bytes() as data):
            return f"{usage} {selector} {matching_type} {data.hex()}"
        case str() if record.replace(".", "").isdigit() or ":" in record:
            return record
    return f"{record}."
