"""What a listener binds."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorSocket
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from mailgate.binding import Place, listen_tcp, name_of, place_of


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (IPv4Address("TCP", "192.0.2.1", 25), "192.0.2.1:25"),
        (IPv6Address("TCP", "2001:db8::1", 25), "[2001:db8::1]:25"),
        (UNIXAddress(b"/run/a.sock"), "/run/a.sock"),
        (UNIXAddress(None), "a socket without a name"),
    ],
)
def test_an_address_is_named_as_a_person_would(address: IAddress, name: str) -> None:
    """Twisted keeps the path of a Unix socket as bytes."""
    assert name_of(address) == name


@pytest.mark.parametrize(
    ("endpoint", "place"),
    [
        ("tcp:25", Place("0.0.0.0", 25)),
        ("tcp:port=25", Place("0.0.0.0", 25)),
        ("tcp:25:interface=192.0.2.1", Place("192.0.2.1", 25)),
        ("tcp:25:192.0.2.1:50", Place("192.0.2.1", 25)),
        (r"tcp:25:interface=\:\:1", Place("::1", 25)),
        (r"tcp:25:interface=\:\:", Place("::", 25, is_dual_stack=True)),
        ("tcp6:25", Place("::", 25, is_dual_stack=True)),
        (r"tcp6:25:interface=2001\:db8\:\:1", Place("2001:db8::1", 25)),
        ("tcp:0:interface=127.0.0.1", None),
        ("tcp:25:interface=lo", Place("tcp:25:interface=lo")),
        ("unix:/run/a.sock:mode=660", Place("unix:/run/a.sock")),
        ("unix:address=/run/a.sock", Place("unix:/run/a.sock")),
        ("systemd:domain=INET6:name=smtp", Place("systemd's socket smtp")),
        ("systemd:domain=INET:index=0", Place("systemd's socket 0")),
        ("other:thing", Place("other:thing")),
    ],
)
def test_an_endpoint_binds_a_place(endpoint: str, place: Place | None) -> None:
    """As Twisted's endpoint strings are defined."""
    assert place_of(endpoint) == place


@pytest.mark.parametrize(
    ("one", "two", "do_clash"),
    [
        (Place("192.0.2.1", 25), Place("192.0.2.1", 25), True),
        (Place("192.0.2.1", 25), Place("192.0.2.1", 26), False),
        (Place("192.0.2.1", 25), Place("192.0.2.2", 25), False),
        (Place("0.0.0.0", 25), Place("192.0.2.1", 25), True),
        (Place("::", 25), Place("2001:db8::1", 25), True),
        (Place("0.0.0.0", 25), Place("::", 25), False),
        (Place("0.0.0.0", 25), Place("::1", 25), False),
        (Place("0.0.0.0", 25), Place("::", 25, is_dual_stack=True), True),
        (Place("192.0.2.1", 25), Place("::", 25, is_dual_stack=True), True),
        (Place("0:0::1", 25), Place("::1", 25), True),
        (Place("unix:/a"), Place("unix:/a"), True),
        (Place("unix:/a"), Place("unix:/b"), False),
        (Place("unix:/a"), Place("192.0.2.1", 25), False),
    ],
)
def test_two_places_clash_if_only_one_can_be_bound(one: Place, two: Place, do_clash: bool) -> None:
    """A wildcard takes every address of its family."""
    assert one.clashes(two) is do_clash
    assert two.clashes(one) is do_clash


class _Greeter(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"220 ")
        self.transport.loseConnection()


# Twisted names the type of a factory's protocols since 26; older ones know it for the type checker only.
if TYPE_CHECKING:
    _Factory = ServerFactory[Protocol]
else:
    _Factory = ServerFactory


class _Greeting(_Factory):
    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Greeter()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ListenTests(TestCase):
    """Real sockets on loopback."""

    timeout = 10

    def listen(self, address: str, port: int) -> IListeningPort | None:
        assert IReactorSocket.providedBy(reactor)
        listening = listen_tcp(reactor, _Greeting(), address=address, port=port, backlog=5)
        if listening is not None:
            self.addCleanup(listening.stopListening)
        return listening

    def test_an_ipv6_address_is_for_ipv6_alone(self) -> None:
        """Else "::" could not be bound beside "0.0.0.0", and these two are the default."""
        try:
            listening: Any = self.listen("::1", _free_port())  # Any: the interface of ports doesn't have the socket
        except CannotListenError as error:
            raise SkipTest("this machine has no IPv6") from error
        assert listening.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1

    async def test_a_client_is_served(self) -> None:
        """The descriptor lives on in the reactor."""
        port = _free_port()
        self.listen("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as client:
            heard = await deferToThread(client.recv, 10)
        assert heard == b"220 "

    def test_a_port_that_is_taken_is_an_error_that_names_it(self) -> None:
        """Which the operator reads."""
        port = _free_port()
        self.listen("127.0.0.1", port)
        with pytest.raises(CannotListenError, match=f"127.0.0.1:{port}"):
            self.listen("127.0.0.1", port)

    def test_a_wildcard_of_a_family_that_is_not_there_is_no_error(self) -> None:
        """A default address is "::"; a machine without IPv6 has nothing to listen on there."""
        for number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            with mock.patch("mailgate.binding.socket.socket", side_effect=OSError(number, "no")):
                assert self.listen("::", 2525) is None
                with pytest.raises(CannotListenError):
                    self.listen("::1", 2525)
