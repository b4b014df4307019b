"""Signed mail through the full chain, beside the same mail through a gate without policies, through Postfix with
policyd-spf, opendkim and opendmarc, and through Haraka with spf and dkim.

What the chain costs is the difference between the two gates. Familiar mail comes from 40 domains over and over, so
that all answers are at hand after the first run; cold, each message comes from a domain that none of the servers has
heard of, and every answer is asked of the name server.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks import throughput
from benchmarks.checkers import Checkers
from benchmarks.gate import Gate
from benchmarks.haraka import Haraka
from benchmarks.measure import set_priority
from benchmarks.name_server import NameServer
from benchmarks.postfix import Postfix
from benchmarks.server import LeftOut, ServerFailed
from benchmarks.signed_mail import Post

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.report import CaseResult
    from benchmarks.server import Server
    from benchmarks.signed_mail import MailFile
    from benchmarks.throughput import Case

_DOMAINS = 40
_STRANGERS = 2000
_COLD_MOST = 450  # messages in a run: all runs of a server together must not come to the end of the strangers
_BIG_OCTETS = 1_000_000
_BIG_MESSAGES = 10
_OUR_SECONDS, _REFERENCE_SECONDS, _LATENCY_SECONDS = 2.0, 6.0, 0.7
_DEPTH = 300  # different messages of each size


class Surroundings:
    """The mail, the name server that knows about it, and what each server has had of the mail from strangers."""

    def __init__(self, place: Path, cases: list[Case]) -> None:
        """@raises LeftOut: there is no name server."""
        self._strangers: dict[str, int] = {}
        self._files: dict[tuple[int, bool], MailFile] = {}
        place.mkdir()
        post = Post(_DOMAINS, _STRANGERS if any(case.is_cold for case in cases) else 0)
        self.name_server = NameServer(place / "names", post.zone())
        for size_octets, is_cold in {(case.size_octets, case.is_cold) for case in cases}:
            path = place / f"mail-{size_octets}-{is_cold}"
            if is_cold:
                file = post.write_once(path, size_octets)
            else:
                file = post.write(path, _BIG_MESSAGES if size_octets >= _BIG_OCTETS else _DEPTH, size_octets)
            self._files[size_octets, is_cold] = file

    def mail(self, case: Case, server: Server, messages: int) -> MailFile:
        """What to send to it next."""
        file = self._files[case.size_octets, case.is_cold]
        if not case.is_cold:
            return file
        skip = self._strangers.get(server.name, 0)
        self._strangers[server.name] = skip + messages
        return replace(file, skip=skip)


@dataclass(frozen=True, slots=True)
class Servers:
    """What is measured side by side."""

    gate: Gate
    unchecked: Gate  # the same without policies
    reference: Postfix | None
    haraka: Haraka | None


@contextlib.contextmanager
def started(
    place: Path,
    names: NameServer,
    certificate: Path,
    key: Path,
    *,
    parameters: tuple[str, ...] | None,
    haraka_modules: Path | None,
    left_out: list[str],
) -> Iterator[Servers]:
    """All of them, running. `parameters` are lines more for Postfix, or None to leave it out."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(names)
        gate = stack.enter_context(Gate(place / "checking", certificate, key, name_server=f"{names.host}:{names.port}"))
        unchecked = stack.enter_context(
            Gate(place / "unchecked", certificate, key, has_policies=False, name="unchecked", host="127.0.0.28")
        )
        reference: Postfix | None = None
        if parameters is not None:
            try:
                checkers = stack.enter_context(Checkers(place / "checkers", names))
                reference = stack.enter_context(
                    Postfix(place / "checked-postfix", certificate, key, parameters, checkers)
                )
            except (LeftOut, ServerFailed) as why:
                left_out.append(f"Postfix with policyd-spf, opendkim and opendmarc ({why})")
        haraka: Haraka | None = None
        if parameters is not None or haraka_modules is not None:
            try:
                haraka = stack.enter_context(Haraka(place / "haraka", haraka_modules, names))
            except (LeftOut, ServerFailed) as why:
                left_out.append(f"Haraka ({why})")
        if (nice := os.getpriority(os.PRIO_PROCESS, 0)) != 0:
            all_servers = [server for server in (gate, unchecked, reference, haraka) if server is not None]
            for pid in (names.pid, *(pid for server in all_servers for pid in server.leaders())):
                set_priority(pid, nice)
        yield Servers(gate, unchecked, reference, haraka)


def measure(servers: Servers, surroundings: Surroundings, result: CaseResult, rounds: int) -> None:
    """Add all figures of one case.

    @raises ServerFailed: a server did not do its work.
    """
    case = result.case

    def run(server: Server, messages: int) -> throughput.Figures:
        return throughput.measure(server, case, messages, "own", surroundings.mail(case, server, messages))

    is_big = case.size_octets >= _BIG_OCTETS
    trial = _BIG_MESSAGES if is_big else 100 + case.sessions
    our_rate = run(servers.gate, trial).stored_per_second
    _check(servers.gate)
    work = our_rate * _OUR_SECONDS
    run(servers.unchecked, trial)
    reference = servers.reference
    if reference is not None:
        work = min(work, run(reference, trial).stored_per_second * _REFERENCE_SECONDS)
        _check(reference)
    haraka = servers.haraka if not is_big else None
    if haraka is not None:
        run(haraka, trial)
        _check(haraka)
    messages = min(max(int(work), trial), _COLD_MOST if case.is_cold else int(work) + trial)
    if is_big:
        messages = _BIG_MESSAGES
    for _ in range(rounds):
        result.ours.append(run(servers.gate, messages))
        if not case.is_cold:
            result.unchecked.append(run(servers.unchecked, messages))
        if reference is not None:
            result.reference.append(run(reference, messages))
        if haraka is not None:
            result.haraka.append(run(haraka, messages))
    sample = 2 * _BIG_MESSAGES if is_big else min(max(int(our_rate * _LATENCY_SECONDS), trial), _COLD_MOST)
    result.our_latency = throughput.measure_latency(
        servers.gate, case, sample, surroundings.mail(case, servers.gate, sample)
    )


def _check(server: Gate | Postfix | Haraka) -> None:
    """@raises ServerFailed: it does not find all mail genuine, which it is, so that it is not measured at that work."""
    stored, passed = server.stored(), server.passed()
    if passed < stored:
        raise ServerFailed(f"{server.name} found {passed} of {stored} messages genuine")
