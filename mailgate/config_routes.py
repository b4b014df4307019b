"""What the configuration says of routes, as the values that the router takes.

Standards: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from mailgate.dns.wire import normal_name
from mailgate.outbound.delivery import Limits
from mailgate.outbound.mx import AddressOrder
from mailgate.outbound.plan import Credentials, TlsLevel
from mailgate.outbound.route import RouterSettings
from mailgate.outbound.transport import DomainTable, TlsRule, Transport, read_transport

if TYPE_CHECKING:
    from mailgate.config_sending import Outbound, RouteTable
    from mailgate.outbound.plan import Route

_ORDERS: Final[dict[str, AddressOrder]] = {
    "ipv6 first": "ipv6",
    "ipv4 first": "ipv4",
    "ipv6 only": "ipv6-only",
    "ipv4 only": "ipv4-only",
}


def router_settings(
    outbound: Outbound,
    routes: Sequence[RouteTable],
    *,
    own_names: Iterable[str],
    own_addresses: Iterable[str] = (),
    reads_passwords: bool = True,
) -> RouterSettings:
    """The settings of a router. `own_names` are host names of the gate, `own_addresses` where it listens.

    Where passwords are not read, they are empty: for whoever shows routes and connects to none.

    @raises OSError: a file with a password can't be read.
    """
    transports: list[tuple[Sequence[str], Transport]] = []
    tls_rules: list[tuple[Sequence[str], TlsRule]] = []
    for route in routes:
        transport = _transport(route, reads_password=reads_passwords)
        transports.append((route.domains, transport))
        if transport.is_by_mx and route.tls is not None:
            tls_rules.append((route.domains, TlsRule(TlsLevel(route.tls))))
    return RouterSettings(
        transports=DomainTable(transports),
        tls_rules=DomainTable(tls_rules),
        own_names=frozenset(normal_name(name) for name in own_names),
        own_addresses=frozenset(own_addresses),
        address_order=_ORDERS[outbound.families],
        allows_private_addresses=outbound.allows_private_addresses,
        least_tls=TlsLevel(outbound.tls),
        uses_dane=outbound.dane,
        mx_port=outbound.port,
    )


def delivery_limits(outbound: Outbound, routes: Sequence[RouteTable]) -> Callable[[Route], Limits]:
    """How much of a route's destination may be used."""
    by_domain: list[tuple[Sequence[str], Limits]] = []
    by_key: dict[str, Limits] = {}
    for route in routes:
        limits = Limits(
            max_connections=route.connections or outbound.connections_per_destination,
            messages_per_connection=outbound.messages_per_connection,
            messages_per_second=(
                outbound.messages_per_second if route.messages_per_second is None else route.messages_per_second
            ),
        )
        transport = _transport(route, reads_password=False)
        if transport.is_by_mx:
            by_domain.append((route.domains, limits))
        else:
            by_key.setdefault(transport.key, limits)
    usual = Limits(
        max_connections=outbound.connections_per_destination,
        messages_per_connection=outbound.messages_per_connection,
        messages_per_second=outbound.messages_per_second,
    )
    domains = DomainTable(by_domain)
    return lambda route: by_key.get(route.key) or domains.find(route.key) or usual


def _transport(route: RouteTable, *, reads_password: bool) -> Transport:
    level = None if route.tls is None else TlsLevel(route.tls)
    return read_transport(route.to, credentials=_credentials(route, reads_password=reads_password), tls=level)


def _credentials(route: RouteTable, *, reads_password: bool) -> Credentials | None:
    """The user's name with the first line of the password file."""
    if not route.username or route.password_file is None:
        return None
    if not reads_password:
        return Credentials(route.username, "")
    password = route.password_file.read_text("utf-8").split("\n", 1)[0].rstrip("\r")
    return Credentials(route.username, password)
