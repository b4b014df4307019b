"""The policies `dkim` and `arc` on a zone in memory, with time in the test's hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mailgate.auth.arc import ArcOptions
from mailgate.auth.canonical import STEP_OCTETS
from mailgate.auth.dkim import DkimOptions
from mailgate.auth.results import ArcResult, DkimResult, Result, TrustedForwarder
from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from mailgate.interfaces import IPolicy
from mailgate.policy.arc import ArcPolicy
from mailgate.policy.dkim import DkimPolicy
from mailgate.policy.stage import Request, Role, SessionView, Stage
from mailgate.policy.verdict import Continue
from mailgate.toml import Reader
from tests.support.signed import DOMAIN, ED25519, MESSAGE, NOW, RECORDS, RSA_1024, RSA_1024_RECORD, content_of, sign
from tests.unit.auth.test_arc import forward

SESSION = SessionView(1, "mx", Role.MX, "192.0.2.1", 1, "192.0.2.1/32", "192.0.2.2", 25, NOW)


class TurningClock(Clock):
    """A clock on which what is called later for now waits for the next turn, as on a reactor."""

    def turn(self) -> float:
        """Call what is due; the processor's seconds that it took."""
        began = time.process_time()
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)
        return time.process_time() - began


@dataclass(slots=True)
class World:
    """A zone, a clock, and the policies that use them."""

    zone: Zone
    clock: TurningClock

    def dkim(self, *, allows_body_length: bool = False) -> DkimPolicy:
        return DkimPolicy(DkimOptions(allows_body_length=allows_body_length), self.zone, self.clock)

    def arc(self, *trusted: str) -> ArcPolicy:
        return ArcPolicy(ArcOptions(trusted_sealers=trusted), self.zone, self.clock)


def world(records: Mapping[str, bytes] = RECORDS) -> World:
    clock = TurningClock()
    clock.advance(NOW)
    zone = Zone("", clock)
    for name, record in records.items():
        zone.add(name, RecordType.TXT, record)
    return World(zone, clock)


def request(message: bytes) -> Request:
    cuts = range(65_536, len(message), 65_536)
    return Request(Stage.END_OF_DATA, SESSION, content=content_of(message, *cuts))


def notes_of(verdict: object) -> tuple[object, ...]:
    assert isinstance(verdict, Continue)
    return verdict.notes


def dkim_results(verdict: object) -> list[Result]:
    notes = notes_of(verdict)
    assert all(isinstance(note, DkimResult) for note in notes)
    return [note.result for note in notes if isinstance(note, DkimResult)]


LARGE = MESSAGE + b"The game was long.\r\n" * (5 * STEP_OCTETS // 20)


@pytest.mark.parametrize("make", [World.dkim, World.arc])
def test_it_is_a_policy_that_waits_for_the_dns_at_the_end_of_data(make: object) -> None:
    """The chain asks it beside others that wait."""
    policy = world().dkim() if make is World.dkim else world().arc()
    verifyObject(IPolicy, policy)
    assert policy.stages == {Stage.END_OF_DATA}
    assert policy.waits_for_dns


def test_a_key_that_is_known_gives_the_verdict_at_once() -> None:
    """No Deferred is made where nobody has to wait."""
    assert dkim_results(world().dkim().decide(request(sign()))) == [Result.PASS]


def test_a_signature_that_fails_is_no_objection() -> None:
    """RFC 6376 section 6.3: mail is not to be refused for that alone."""
    verdict = world().dkim().decide(request(sign() + b"Buy this.\r\n"))
    assert dkim_results(verdict) == [Result.FAIL]


def test_a_message_without_signatures_says_none_and_asks_nothing() -> None:
    """RFC 8601 section 2.7.1: that nothing was there is a result too."""
    here = world()
    assert dkim_results(here.dkim().decide(request(MESSAGE))) == [Result.NONE]
    assert notes_of(here.arc().decide(request(MESSAGE))) == (ArcResult(Result.NONE),)
    assert here.zone.asked == []


def test_an_earlier_stage_gives_it_nothing_to_say() -> None:
    """It is asked at the end of data only; without content it has no opinion."""
    assert world().dkim().decide(Request(Stage.DATA, SESSION)) == Continue()
    assert world().arc().decide(Request(Stage.DATA, SESSION)) == Continue()


def test_keys_are_waited_for_side_by_side() -> None:
    """Two look-ups of two seconds take two seconds."""
    here = world()
    for name in RECORDS:
        here.zone.delay(name, 2.0)
    message = sign(sign(selector="brisbane", key=ED25519, algorithm="ed25519-sha256"))
    verdicts: list[object] = []
    waiting = here.dkim().decide(request(message))
    assert isinstance(waiting, Deferred)
    waiting.addCallback(verdicts.append)
    here.clock.advance(1.9)
    assert verdicts == []
    here.clock.advance(0.2)
    assert dkim_results(verdicts[0]) == [Result.PASS, Result.PASS]


def test_a_key_that_can_not_be_looked_up_is_a_temperror() -> None:
    """What to do about it is for DMARC."""
    here = world()
    here.zone.fail(f"rsa._domainkey.{DOMAIN}")
    assert dkim_results(here.dkim().decide(request(sign()))) == [Result.TEMPERROR]


def test_options_reach_the_verifier() -> None:
    """Config: `allows_body_length`."""
    message = sign(has_length=True) + b"Buy this.\r\n"
    assert dkim_results(world().dkim().decide(request(message))) == [Result.POLICY]
    assert dkim_results(world().dkim(allows_body_length=True).decide(request(message))) == [Result.PASS]


def turns_of(clock: TurningClock, waiting: object, verdicts: list[object]) -> list[float]:
    """Let the reactor turn until there is a verdict; how long each turn took."""
    assert isinstance(waiting, Deferred)
    waiting.addCallback(verdicts.append)
    turns = []
    while not verdicts:
        assert clock.calls, "nothing is going on"
        turns.append(clock.turn())
    return turns


def test_a_large_body_is_hashed_between_turns_of_the_reactor() -> None:
    """So that other sessions are served meanwhile; the result is the same."""
    here = world()
    verdicts: list[object] = []
    message = sign(LARGE)
    turns = turns_of(here.clock, here.dkim().decide(request(message)), verdicts)
    assert len(turns) >= len(message) // STEP_OCTETS
    assert dkim_results(verdicts[0]) == [Result.PASS]


@pytest.mark.parametrize("line", [b"plain text\r\n", b"\t \r\n", b"a\t", b"\r\n"], ids=repr)
def test_ten_megabytes_never_hold_the_reactor_up_for_a_tenth_of_a_second(line: bytes) -> None:
    """Two signatures with different forms: two walks. Only the processor's time counts: machines are busy."""
    here = world()
    message = sign(canonicalization=("relaxed", "simple"), selector="test", key=RSA_1024)
    message = sign(message) + line * (10_000_000 // len(line)) + b"end\r\n"
    verdicts: list[object] = []
    assert max(turns_of(here.clock, here.dkim().decide(request(message)), verdicts)) < 0.1
    assert len(dkim_results(verdicts[0])) == 2


def test_a_large_body_with_a_key_that_takes_time_is_verified() -> None:
    """Both kinds of waiting, one after the other."""
    here = world()
    here.zone.delay(f"rsa._domainkey.{DOMAIN}", 2.0)
    verdicts: list[object] = []
    waiting = here.dkim().decide(request(sign(LARGE)))
    assert isinstance(waiting, Deferred)
    waiting.addCallback(verdicts.append)
    here.clock.pump([0.0] * 20 + [2.0])
    assert dkim_results(verdicts[0]) == [Result.PASS]


def test_a_client_that_goes_ends_the_hashing() -> None:
    """Cancelled when the client goes: nothing is left on the clock."""
    here = world()
    failures: list[object] = []
    waiting = here.dkim().decide(request(sign(LARGE)))
    assert isinstance(waiting, Deferred)
    waiting.addErrback(lambda failure: failures.append(failure.trap(CancelledError)))
    here.clock.turn()
    assert here.clock.calls
    waiting.cancel()
    assert failures == [CancelledError]
    assert here.clock.calls == []


ARC_RECORDS = {f"arc._domainkey.{sealer}": RSA_1024_RECORD for sealer in ("one.example", "two.example")}
GOOD = f"arc=none; dmarc=pass header.from={DOMAIN}"


def test_a_chain_gives_its_result_as_a_note() -> None:
    """RFC 8617 section 5.2."""
    (result,) = notes_of(world(ARC_RECORDS).arc().decide(request(forward(MESSAGE, "one.example", GOOD))))
    assert isinstance(result, ArcResult)
    assert (result.result, result.sealers) == (Result.PASS, ("one.example",))


def test_a_trusted_sealer_that_found_the_author_genuine_is_named() -> None:
    """The policy `dmarc` goes by that note."""
    message = forward(MESSAGE, "one.example", GOOD)
    _, forwarder = notes_of(world(ARC_RECORDS).arc("one.example").decide(request(message)))
    assert forwarder == TrustedForwarder("one.example", "one.example")


@pytest.mark.parametrize(
    "said", ["arc=none; dmarc=fail header.from=" + DOMAIN, "arc=none; dmarc=pass header.from=evil.example", "arc=none"]
)
def test_a_trusted_sealer_that_did_not_find_the_author_genuine_vouches_for_nobody(said: str) -> None:
    """An honest forwarder seals forgeries too."""
    message = forward(MESSAGE, "one.example", said)
    assert len(notes_of(world(ARC_RECORDS).arc("one.example").decide(request(message)))) == 1


def test_a_broken_chain_vouches_for_nobody() -> None:
    """Whoever sealed it."""
    message = forward(MESSAGE, "one.example", GOOD).replace(b"dinner", b"supper")
    (result,) = notes_of(world(ARC_RECORDS).arc("one.example").decide(request(message)))
    assert isinstance(result, ArcResult)
    assert result.result is Result.FAIL


def test_a_message_without_a_single_author_has_no_witness() -> None:
    """Two authors of two domains: there is no domain that anybody could vouch for."""
    message = forward(MESSAGE.replace(b"From: ", b"From: eve@evil.example, "), "one.example", GOOD)
    assert len(notes_of(world(ARC_RECORDS).arc("one.example").decide(request(message)))) == 1


def test_the_keys_of_a_chain_are_waited_for() -> None:
    """First those of the newest set, then all others at once."""
    here = world(ARC_RECORDS)
    for name in ARC_RECORDS:
        here.zone.delay(name, 1.0)
    message = forward(forward(MESSAGE, "one.example", GOOD), "two.example", "arc=pass")
    verdicts: list[object] = []
    waiting = here.arc("one.example", "two.example").decide(request(message))
    assert isinstance(waiting, Deferred)
    waiting.addCallback(verdicts.append)
    here.clock.advance(1.0)
    assert verdicts == []
    here.clock.advance(1.0)
    result, forwarder = notes_of(verdicts[0])
    assert isinstance(result, ArcResult)
    assert result.result is Result.PASS
    assert forwarder == TrustedForwarder("two.example", "one.example")


def test_a_large_message_in_a_chain_is_hashed_between_turns() -> None:
    """As for DKIM."""
    here = world(ARC_RECORDS)
    verdicts: list[object] = []
    message = forward(LARGE, "one.example", GOOD)
    assert len(turns_of(here.clock, here.arc("one.example").decide(request(message)), verdicts)) >= 5
    assert len(notes_of(verdicts[0])) == 2


def test_both_policies_agree_on_a_message_that_has_both() -> None:
    """A signed message that was forwarded: the signature holds, and so does the chain."""
    message = forward(sign(selector="test", key=RSA_1024), "one.example", GOOD)
    here = world({**RECORDS, **ARC_RECORDS})
    assert dkim_results(here.dkim().decide(request(message))) == [Result.PASS]
    (result,) = notes_of(here.arc().decide(request(message)))
    assert isinstance(result, ArcResult)
    assert result.result is Result.PASS


# A table of the configuration file, and what is read from it; or what is wrong with it.
TABLES: list[tuple[type, dict[str, object], object]] = [
    (DkimOptions, {}, DkimOptions()),
    (
        DkimOptions,
        {"maximum_signatures": 3, "allows_body_length": True},
        DkimOptions(maximum_signatures=3, allows_body_length=True),
    ),
    (DkimOptions, {"minimum_rsa_bits": 512}, "minimum_rsa_bits"),
    (DkimOptions, {"maximum_rsa_bits": 65_536}, "maximum_rsa_bits"),
    (DkimOptions, {"maximum_signatures": 0}, "maximum_signatures"),
    (
        ArcOptions,
        {"trusted_sealers": ["Google.COM", "bücher.example"]},
        ArcOptions(trusted_sealers=("google.com", "xn--bcher-kva.example")),
    ),
    (ArcOptions, {"trusted_sealers": ["com"]}, "trusted_sealers[1]"),
    (ArcOptions, {"trusted_sealers": [1]}, "trusted_sealers[1]"),
    (ArcOptions, {"maximum_sets": 51}, "maximum_sets"),
]


@pytest.mark.parametrize(("kind", "table", "expected"), TABLES)
def test_options_are_read_from_the_configuration_file(kind: type, table: dict[str, object], expected: object) -> None:
    """Nobody can loosen what RFC 8301 forbids; sealers are compared in A-form and lower case."""
    reader = Reader(Path("mailgate.toml"), opens_files=False, now=datetime.now(UTC))
    options = reader.read_table(kind, table, "policy")
    if isinstance(expected, str):
        assert [fault.key for fault in reader.faults] == [f"policy.{expected}"]
    else:
        assert reader.faults == []
        assert options == expected
