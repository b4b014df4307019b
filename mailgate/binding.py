"""What a listener binds: which places an endpoint string means, when two of them clash, and binding an address.

Twisted's endpoints do the rest; what is accepted there is `mailgate.listener`'s.

Standards: RFC 3493 section 5.3 (IPV6_V6ONLY).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorSocket
from twisted.internet.protocol import ServerFactory

_HAS_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


@dataclass(frozen=True, slots=True)
class Place:
    """One place to bind: an address and a port, or something else, known by its name alone."""

    name: str  # the address, where there is a port
    port: int = 0
    is_dual_stack: bool = False  # an IPv6 wildcard that takes IPv4 connections too

    def __str__(self) -> str:
        """The place as a person would say it."""
        return f"port {self.port} of {self.name}" if self.port else self.name

    def clashes(self, other: Place) -> bool:
        """Whether only one of the two can be bound."""
        if not self.port or not other.port:
            return (self.name, self.port) == (other.name, other.port)
        if self.port != other.port:
            return False
        one, two = ipaddress.ip_address(self.name), ipaddress.ip_address(other.name)
        if one.version == two.version:
            return one == two or one.is_unspecified or two.is_unspecified
        return self.is_dual_stack or other.is_dual_stack


def place_of(endpoint: str) -> Place | None:
    """What that endpoint string, which Twisted could parse, binds; None where that is nobody else's: any free port."""
    kind, *arguments = re.split(r"(?<!\\):", endpoint)
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    plain = [argument for argument in arguments if "=" not in argument]

    def argument(name: str, position: int) -> str:
        return named.get(name) or (plain[position] if position < len(plain) else "")

    match kind:
        case "tcp":
            return _tcp(argument("port", 0), argument("interface", 1).replace("\\", "") or "0.0.0.0", endpoint)  # noqa: S104  # Twisted's default
        case "tcp6":
            return _tcp(argument("port", 0), argument("interface", 2).replace("\\", "") or "::", endpoint)
        case "unix":
            return Place(f"unix:{argument('address', 0)}")
        case "systemd":
            return Place(f"systemd's socket {named.get('name') or named.get('index')}")
    return Place(endpoint)


def _tcp(port: str, address: str, endpoint: str) -> Place | None:
    if int(port) == 0:
        return None
    try:
        is_wildcard = ipaddress.ip_address(address).is_unspecified
    except ValueError:  # an interface's name, or a host's
        return Place(endpoint)
    return Place(address, int(port), is_dual_stack=is_wildcard and ":" in address)


def name_of(address: IAddress) -> str:
    """What a person calls a bound address: "192.0.2.1:25", "[2001:db8::1]:25", or the path of a Unix socket."""
    match address:
        case IPv4Address():
            return f"{address.host}:{address.port}"
        case IPv6Address():
            return f"[{address.host}]:{address.port}"
        case UNIXAddress():
            return os.fsdecode(address.name) if address.name else "a socket without a name"
        case _:
            return str(address)


def listen_tcp(
    reactor: IReactorSocket,
    factory: ServerFactory[Any],  # Any: whatever protocol it makes
    *,
    address: str,
    port: int,
    backlog: int,
) -> IListeningPort | None:
    """Listen there. None where the address is a wildcard of a family that this machine doesn't have.

    An IPv6 address is for IPv6 alone. Twisted's own `listenTCP` leaves that to the system, and on most of them "::"
    then takes IPv4 too, so that it can't be bound beside "0.0.0.0".

    @raises CannotListenError: the address is taken, not ours, or not for us.
    """
    is_ipv6 = ":" in address
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_ipv6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address, port))
            listening.listen(backlog)
            return reactor.adoptStreamPort(listening.fileno(), family, factory)  # which has a descriptor of its own
    except OSError as error:
        if error.errno in _HAS_NO_SUCH_FAMILY and ipaddress.ip_address(address).is_unspecified:
            return None
        raise CannotListenError(address, port, error) from error
