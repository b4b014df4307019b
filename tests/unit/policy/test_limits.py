"""How many sessions, and how much memory, a node gives; and whom it counts as one."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.policy.limits import LimitsPolicy, NodeLimits, Usage, client_network, is_in
from mailgate.policy.stage import Request, Role, SessionView, Stage
from mailgate.policy.verdict import Continue, Defer


def request(stage: Stage, address: str = "192.0.2.7") -> Request:
    network = client_network(address, 32, 64)
    return Request(stage, SessionView(1, "mx", Role.MX, address, 1, network, "192.0.2.25", 25, 0.0))


def code(policy: LimitsPolicy, stage: Stage, address: str = "192.0.2.7") -> int:
    verdict = policy.decide(request(stage, address))
    if isinstance(verdict, Continue):
        return 0
    assert isinstance(verdict, Defer), "refusals for being full are temporary"
    return verdict.reply.code


@pytest.mark.parametrize(("sessions", "expected"), [(1, 0), (2, 0), (3, 421)])
def test_the_bound_of_sessions_counts_this_one(sessions: int, expected: int) -> None:
    usage = Usage()
    for number in range(sessions):
        usage.opened(f"192.0.2.{number}/32")
    assert code(LimitsPolicy(NodeLimits(sessions=2), usage), Stage.CONNECT) == expected


@pytest.mark.parametrize(("sessions", "expected"), [(1, 0), (2, 0), (3, 421)])
def test_the_bound_of_a_network_counts_this_one(sessions: int, expected: int) -> None:
    usage = Usage()
    for _ in range(sessions):
        usage.opened("192.0.2.7/32")
    policy = LimitsPolicy(NodeLimits(sessions_per_network=2), usage)
    assert code(policy, Stage.CONNECT) == expected
    assert code(policy, Stage.CONNECT, "192.0.2.8") == 0


def test_an_unlimited_network_counts_for_the_node_all_the_same() -> None:
    usage = Usage()
    limits = NodeLimits(sessions=3, sessions_per_network=1, unlimited_networks=(ip_network("192.0.2.0/24"),))
    policy = LimitsPolicy(limits, usage)
    for expected in (0, 0, 0, 421):
        usage.opened("192.0.2.7/32")
        assert code(policy, Stage.CONNECT) == expected


@pytest.mark.parametrize(("held", "expected"), [(0, 0), (99, 0), (100, 452), (101, 452)])
def test_no_message_begins_without_room_for_it(held: int, expected: int) -> None:
    usage = Usage()
    usage.held_octets = held
    assert code(LimitsPolicy(NodeLimits(memory_octets=100), usage), Stage.DATA) == expected


def test_it_is_asked_where_something_new_begins() -> None:
    assert LimitsPolicy.stages == {Stage.CONNECT, Stage.RCPT, Stage.DATA}


@given(st.lists(st.sampled_from(["a", "b", "c"])))
def test_what_is_opened_and_closed_leaves_nothing(networks: list[str]) -> None:
    usage = Usage()
    for network in networks:
        usage.opened(network)
    assert usage.sessions == usage.networks.total() == len(networks)
    for network in sorted(networks):
        usage.closed(network)
    assert usage.sessions == 0
    assert len(usage.networks) == 0


@pytest.mark.parametrize(
    ("address", "bits4", "bits6", "expected"),
    [
        ("192.0.2.7", 32, 64, "192.0.2.7/32"),
        ("192.0.2.7", 24, 64, "192.0.2.0/24"),
        ("2001:db8::1:2:3:4", 32, 64, "2001:db8::/64"),
        ("2001:db8:0:1::1", 32, 64, "2001:db8:0:1::/64"),
        ("2001:db8:ffff::1", 32, 48, "2001:db8:ffff::/48"),
    ],
)
def test_a_client_is_counted_by_its_network(address: str, bits4: int, bits6: int, expected: str) -> None:
    assert client_network(address, bits4, bits6) == expected


@pytest.mark.parametrize(
    ("address", "networks", "expected"),
    [
        ("192.0.2.7", [], False),
        ("192.0.2.7", ["192.0.2.0/24"], True),
        ("192.0.3.7", ["192.0.2.0/24", "192.0.3.0/24"], True),
        ("192.0.2.7", ["::/0"], False),
        ("2001:db8::1", ["0.0.0.0/0"], False),
        ("2001:db8::1", ["2001:db8::/32"], True),
    ],
)
def test_an_address_lies_in_networks_of_its_kind(address: str, networks: list[str], expected: bool) -> None:
    assert is_in(address, [ip_network(network) for network in networks]) is expected


def test_recipients_without_a_message_count_as_memory_too() -> None:
    """A client that names recipients and sends nothing is refused more of them once there is no room."""
    usage = Usage()
    policy = LimitsPolicy(NodeLimits(memory_octets=1000), usage)
    assert policy.decide(request(Stage.RCPT)) == Continue()
    usage.held_octets = 1000
    verdict = policy.decide(request(Stage.RCPT))
    assert isinstance(verdict, Defer)
    assert verdict.reply.code == 452
