"""Hosts that cut the connection or fall silent, wherever they can: each message goes to the next host, and only there.

The unit tests of the client know every state of the dialogue; here it is a real mailgate, and TCP.

Standards: RFC 5321 section 4.5.3.2 (time-outs of a client), section 5.1 (the next host), RFC 1047 (duplicates).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.sink import PHASES, Conduct, Fault

if TYPE_CHECKING:
    from tests.fault.conftest import MakeWorld

IMPATIENT = """
connect_seconds = 1.0
reply_seconds = 1.0
data_seconds = 1.0
end_of_data_seconds = 1.0
"""


def test_a_host_that_breaks_off_anywhere_leaves_the_mail_to_the_next(make_world: MakeWorld) -> None:
    """Twice it arrives only where the first host was gone behind the final dot and before its reply."""
    cases = [(phase, fault) for phase in PHASES for fault in (Fault.CUT, Fault.STALL)]
    conducts = [Conduct(faults=((phase, fault, 1.0),)) for phase, fault in cases]
    world = make_world(conducts=[*conducts, Conduct()], nodes=1, settings=IMPATIENT)
    *broken, good = world.sinks
    recipients = {case: f"to@{case[0]}-{case[1].name}.test".lower() for case in cases}
    for recipient, sink in zip(recipients.values(), broken, strict=True):
        world.publish(recipient.partition("@")[2], sink, good)
    world.start()
    world.dispatch.hand_in(world.nodes[0], *recipients.values())
    world.dispatch.wait_until_drained()
    for (phase, fault), sink in zip(cases, broken, strict=True):
        recipient = recipients[phase, fault]
        first, then = ([each.recipient for each in host.takings].count(recipient) for host in (sink, good))
        assert (first, then) == {"dot": (1, 1), "reply": (1, 0)}.get(phase, (0, 1)), (phase, fault)
    assert world.dispatch.findings() == []
    assert world.tracebacks() == []


def test_a_host_that_cuts_its_replies_at_any_octet_leaves_the_mail_to_the_next(make_world: MakeWorld) -> None:
    """A reply that is not whole is none."""
    world = make_world(conducts=[Conduct(cuts_each_elsewhere=True), Conduct()], nodes=1)
    domains = [f"d{number}.test" for number in range(220)]
    for domain in domains:
        world.publish(domain, *world.sinks)
    world.start()
    world.dispatch.hand_in(world.nodes[0], *(f"to@{domain}" for domain in domains))
    world.dispatch.wait_until_drained()
    broken, good = world.sinks
    assert world.dispatch.findings() == []
    assert {taking.recipient for taking in world.dispatch.hosts.takings()} == {f"to@{domain}" for domain in domains}
    doubtful = [taking.recipient for taking in broken.takings if taking.is_doubtful]
    assert len(doubtful) == len("250 2.0.0 Taken\r\n")
    assert sorted(taking.recipient for taking in world.dispatch.duplicates()) == sorted(doubtful)
    assert len(good.takings) > 100
    assert world.tracebacks() == []
