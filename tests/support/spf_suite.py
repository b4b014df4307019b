"""The RFC 7208 test suite (tests/data/rfc7208-tests.yml): its cases, and its zones as ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from twisted.internet.defer import Deferred, ensureDeferred

from mailgate.auth.results import SpfResult
from mailgate.dns.answer import RecordType
from mailgate.dns.settle import Resolver
from mailgate.dns.wire import from_wire_name, to_wire_name
from mailgate.dns.zone import Zone
from mailgate.envelope import Address, ReversePath
from mailgate.policy.spf import SpfOptions, SpfPolicy
from mailgate.policy.stage import Request, Role, SessionView, Stage, TransactionView
from mailgate.policy.verdict import Verdict

_FILE = Path(__file__).parents[1] / "data" / "rfc7208-tests.yml"

# Whose explanation is the receiver's own; we have none.
_OWN_EXPLANATION = "DEFAULT"

RECEIVER = "receiver.example"


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `zone_data` is shared by the cases of a scenario."""

    name: str
    scenario: str
    section: str
    client_address: str
    helo: str
    sender: str
    results: tuple[str, ...]  # the first is preferred
    explanation: str | None
    zone_data: dict[str, list[Any]]  # Any: as YAML has it


@cache
def cases() -> tuple[Case, ...]:
    """Every case of the suite."""
    with _FILE.open("rb") as file:
        return tuple(case for scenario in yaml.safe_load_all(file) for case in _cases_of(scenario))


def _cases_of(scenario: dict[str, Any]) -> Iterator[Case]:  # Any: as YAML has it
    for name, test in scenario["tests"].items():
        explanation = test.get("explanation")
        yield Case(
            name=name,
            scenario=scenario["description"],
            section=str(test.get("spec")),
            client_address=test["host"],
            helo=test["helo"],
            sender=test["mailfrom"],
            results=tuple(test["result"]) if isinstance(test["result"], list) else (test["result"],),
            explanation="" if explanation == _OWN_EXPLANATION else explanation,
            zone_data=scenario["zonedata"],
        )


def zone_of(case: Case) -> Zone:
    """Its zone. Records of type SPF stand for TXT where there are none, as the suite wants it; TIMEOUT is silence."""
    zone = Zone()
    for name, entries in case.zone_data.items():
        text = name.lower()
        # A server reads a blank in a name with an escape; an evaluation asks without.
        for form in {text, from_wire_name(to_wire_name(text))}:
            _add(zone, form, entries)
    return zone


def _add(zone: Zone, name: str, entries: list[Any]) -> None:  # Any: as YAML has it
    records = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    has_text = any(kind == "TXT" for kind, _ in records)
    answered = set()
    for kind, value in records:
        if kind == "SPF" and has_text:
            continue
        record_type = RecordType("TXT" if kind == "SPF" else kind)
        if value == "TIMEOUT":
            zone.fail(name, record_type, rcode="")
        elif value != "NONE":
            zone.add(name, record_type, _record(record_type, value))
            answered.add(record_type)
    if "TIMEOUT" in entries:  # to whatever has no records
        for record_type in set(RecordType) - answered:
            zone.fail(name, record_type, rcode="")


def _record(record_type: RecordType, value: Any) -> Any:  # Any: as YAML has it, and as Answer has it
    match record_type:
        case RecordType.TXT:
            strings = [value] if isinstance(value, str) else value
            return b"".join(string.encode() for string in strings)
        case RecordType.MX:
            return value[0], value[1].lower().removesuffix(".")
        case RecordType.CNAME | RecordType.PTR:
            return value.lower().removesuffix(".")
        case _:
            return value


async def verdicts(case: Case, resolver: Resolver, options: SpfOptions) -> tuple[Verdict, Verdict]:
    """What the policy says at HELO and at MAIL."""
    policy = SpfPolicy(options, resolver, RECEIVER, lambda: 1_700_000_000.0)
    session = SessionView(
        id=1,
        listener="smtp",
        role=Role.MX,
        client_address=case.client_address,
        client_port=1025,
        client_network=f"{case.client_address}/32",
        server_address="192.0.2.254",
        server_port=25,
        started_at=0.0,
        helo=case.helo,
    )
    at_helo = await _decided(policy, Request(Stage.HELO, session))
    transaction = TransactionView(1, 0.0, _reverse_path(case.sender))
    return at_helo, await _decided(policy, Request(Stage.MAIL, session, transaction, notes=at_helo.notes))


def _reverse_path(sender: str) -> ReversePath:
    if not sender:
        return ReversePath(None)
    local, _, domain = sender.rpartition("@")
    return ReversePath(Address(local, domain))


async def _decided(policy: SpfPolicy, request: Request) -> Verdict:
    verdict = policy.decide(request)
    return await verdict if isinstance(verdict, Deferred) else verdict


def result_at(verdict: Verdict) -> SpfResult:
    """The result for MAIL that a verdict carries."""
    (result,) = (note for note in verdict.notes if isinstance(note, SpfResult) and note.identity == "mailfrom")
    return result


def at_once(case: Case, zone: Zone, options: SpfOptions) -> tuple[Verdict, Verdict]:
    """What the policy says where the resolver knows everything."""
    return ensureDeferred(verdicts(case, zone, options)).result  # type: ignore[return-value]  # it has fired
