"""The policy `limits`: how many sessions, and how much memory, this node gives.

Refusals are temporary: the client is sound, we are full. What one session may do (errors, recipients, sizes) is in
`mailgate.smtp.session`, which alone knows it.

Standards: RFC 5321 section 3.8 (421 at any time); RFC 3463 (4.3.1, 4.3.2, 4.7.0).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from zope.interface import implementer

from mailgate.interfaces import IPolicy
from mailgate.policy.stage import Request, Stage
from mailgate.policy.verdict import Continue, Defer, Verdict
from mailgate.smtp.reply import reply

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CONTINUE = Continue()
_TOO_MANY_SESSIONS = Defer(reply(421, "4.3.2", "Too many sessions; connect again later"))
_TOO_MANY_FROM_NETWORK = Defer(reply(421, "4.7.0", "Too many sessions from your network; connect again later"))
_NO_MEMORY = Defer(reply(452, "4.3.1", "Insufficient system storage; try again later"))


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """The bounds of all sessions together."""

    sessions: int = 2000
    sessions_per_network: int = 50
    ipv4_network_bits: int = 32
    ipv6_network_bits: int = 64
    unlimited_networks: Sequence[Network] = ()
    memory_octets: int = 268_435_456


class Usage:
    """What the sessions of this process use now. The listeners share one and keep it true."""

    __slots__ = ("held_octets", "networks", "sessions")

    def __init__(self) -> None:
        self.sessions = 0
        self.networks: Counter[str] = Counter()
        self.held_octets = 0  # of messages and recipients in memory

    def opened(self, network: str) -> None:
        """A session from that network has begun."""
        self.sessions += 1
        self.networks[network] += 1

    def closed(self, network: str) -> None:
        """A session from that network has ended."""
        self.sessions -= 1
        self.networks[network] -= 1
        if not self.networks[network]:
            del self.networks[network]


@implementer(IPolicy)
class LimitsPolicy:
    """Refuses what this node has no room for."""

    name = "limits"
    stages = frozenset({Stage.CONNECT, Stage.RCPT, Stage.DATA})

    def __init__(self, limits: NodeLimits, usage: Usage) -> None:
        self.limits = limits
        self._usage = usage

    def decide(self, request: Request) -> Verdict:
        """421 where there are too many sessions, this one included; 452 where there is no memory for more."""
        limits, usage = self.limits, self._usage
        if request.stage is not Stage.CONNECT:
            return _NO_MEMORY if usage.held_octets >= limits.memory_octets else _CONTINUE
        if usage.sessions > limits.sessions:
            return _TOO_MANY_SESSIONS
        network = request.session.client_network
        if usage.networks[network] > limits.sessions_per_network and not is_in(
            request.session.client_address, limits.unlimited_networks
        ):
            return _TOO_MANY_FROM_NETWORK
        return _CONTINUE


def is_in(address: str, networks: Sequence[Network]) -> bool:
    """Whether an IP address lies in one of the networks."""
    if not networks:
        return False
    parsed = ipaddress.ip_address(address)
    return any(parsed.version == network.version and parsed in network for network in networks)


@lru_cache(maxsize=8192)
def client_network(address: str, ipv4_network_bits: int, ipv6_network_bits: int) -> str:
    """The network that a client is counted by, as "192.0.2.7/32" or "2001:db8::/64"."""
    bits = ipv6_network_bits if ":" in address else ipv4_network_bits
    return str(ipaddress.ip_network((address, bits), strict=False))
