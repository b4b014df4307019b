"""`python -m benchmarks` (`make bench`) measures everything; `profile`, `signing` and `drain` look at less, closer."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from rich.console import Console
from rich.table import Table

from benchmarks import authentication, drain, memory, profiling, signing, throughput
from benchmarks.gate import Gate
from benchmarks.machine import description, make_certificate
from benchmarks.measure import set_priority
from benchmarks.postfix import Postfix
from benchmarks.report import (
    CASE_COLUMNS,
    DRAINED_COLUMNS,
    SIGNED_COLUMNS,
    CaseResult,
    Results,
    case_rows,
    drained_rows,
    goals,
    markdown,
    signed_rows,
)
from benchmarks.server import MAILBOX, LeftOut, ServerFailed

if TYPE_CHECKING:
    from collections.abc import Generator

    from benchmarks.server import Server
    from benchmarks.signed_mail import MailFile

_IDLE_PLAIN, _IDLE_TLS = 2000, 500
_MEMORY_TOPICS = ("memory-idle-plain", "memory-idle-tls", "memory-big-1", "memory-big-1000")
_SENDING_TOPICS = ("signing", "drain")
_DRAINED_MESSAGES = 20_000

console = Console(width=150 if not sys.stdout.isatty() else None, highlight=False)


@dataclass(frozen=True, slots=True)
class _Extent:
    """How long to measure."""

    our_seconds: float  # of load for mailgate, about
    reference_seconds: float  # of load for the reference at most, about
    latency_seconds: float
    rounds: int  # of cases with a goal; others have one
    total_seconds: float  # no case begins after that


_FULL = _Extent(2.0, 7.0, 1.0, 3, 480.0)
_QUICK = _Extent(1.0, 4.0, 0.6, 1, 75.0)
_QUICK_CASES = (
    "4KB-20-one-plain",
    "4KB-200-one-plain",
    "4KB-20-many-plain",
    "100KB-20-one-plain",
    "4KB-20-many-tls",
    "auth-4KB-20",
)


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="The cases with a goal and a few more, once: about a minute and a half.")
@click.option("--only", multiple=True, metavar="NAME", help="Only what matches (4KB-20-*, memory-*); may be repeated.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the results there.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(path_type=Path, dir_okay=False), help="The same for people."
)
@click.option("--list", "is_listed", is_flag=True, help="Say what there is to measure.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each case: ours, Postfix, ours, Postfix.")
@click.option("--load", type=click.Choice(["auto", "smtp-source", "own"]), default="auto", help="What loads.")
@click.option(
    "--postfix-parameter",
    "postfix_parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A line more of Postfix's main.cf, as default_process_limit=250; may be repeated.",
)
@click.option(
    "--haraka",
    "haraka_modules",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Measure signed mail with Haraka too: where npm installed it, with haraka-plugin-{spf,dkim} and pg.",
)
@click.option("--no-postfix", is_flag=True, help="Leave the reference out.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where both servers keep their files: on the disk to measure.  [default: the system's temporary folder]",
)
@click.option(
    "--nice",
    type=click.IntRange(-20, 19),
    help="Run servers and load at this priority: -15 keeps what else the machine does out of the figures. Needs root.",
)
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    only: tuple[str, ...],
    json_file: Path | None,
    markdown_file: Path | None,
    is_listed: bool,
    rounds: int | None,
    load: str,
    postfix_parameters: tuple[str, ...],
    haraka_modules: Path | None,
    no_postfix: bool,
    folder: Path | None,
    nice: int | None,
) -> None:
    """Measure mailgate, with Postfix beside it where it is installed. Nothing is asserted."""
    context.obj = folder
    if nice is not None:
        try:
            set_priority(os.getpid(), nice)
        except PermissionError:
            raise click.UsageError(f"--nice {nice} needs root") from None
    if context.invoked_subcommand is not None:
        return
    wanted = _wanted(only, is_quick=quick)
    if is_listed:
        for name in wanted:
            click.echo(name)
        return
    if not wanted:
        raise click.UsageError("nothing matches --only; see --list")
    _end_on_sigterm()
    with _folder(folder) as place:
        results = Results(description(place))
        console.print(", ".join(f"{key} {value}" for key, value in results.machine.items()))
        try:
            parameters = None if no_postfix else postfix_parameters
            if parameters:
                results.machine["postfix"] += f" ({', '.join(parameters)})"
            _run(place, wanted, results, _QUICK if quick else _FULL, rounds, load, parameters, haraka_modules)
        except ServerFailed as why:
            raise click.ClickException(str(why)) from why
        finally:
            _say(results)
            if json_file is not None:
                json_file.write_text(json.dumps(results.as_json(), indent=1) + "\n")
            if markdown_file is not None:
                markdown_file.write_text(markdown(results))


@main.command("profile")
@click.option("--case", "case_name", default="4KB-20-one-plain", show_default=True, help="The load; see --list.")
@click.option("--seconds", type=click.IntRange(1, 300), default=10, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("profile.speedscope.json"),
    show_default=True,
    help="For https://www.speedscope.app.",
)
@click.option("--top", type=click.IntRange(1), default=40, show_default=True, help="How many functions to print.")
@click.pass_obj
def profile_command(folder: Path | None, case_name: str, seconds: int, output: Path, top: int) -> None:
    """Sample the gate with py-spy under load, and say which functions take the time."""
    by_name = {case.name: case for case in (*throughput.cases(), *throughput.checked_cases())}
    if case_name not in by_name:
        raise click.UsageError(f"no such case: {case_name}")
    case = by_name[case_name]
    _end_on_sigterm()
    memory.raise_open_files(8192)
    with _folder(folder) as place, contextlib.ExitStack() as stack:
        certificate, key = make_certificate(place, "mx.bench.test")
        try:
            name_server: str | None = None
            surroundings: authentication.Surroundings | None = None
            if case.is_checked:
                surroundings = authentication.Surroundings(place / "surroundings", [case])
                names = stack.enter_context(surroundings.name_server)
                name_server = f"{names.host}:{names.port}"
            gate = stack.enter_context(Gate(place / "gate", certificate, key, name_server=name_server))

            def mail(messages: int) -> MailFile | None:
                return None if surroundings is None else surroundings.mail(case, gate, messages)

            trial = 10 if case.size_octets >= 1_000_000 else 200 if case.is_cold else 500
            rate = throughput.measure(gate, case, trial, "own", mail(trial)).stored_per_second
            found = profiling.profile(gate, case, seconds, rate, output, mail(int(rate * seconds)))
        except (LeftOut, ServerFailed) as error:
            raise click.ClickException(str(error)) from error
    console.print(
        f"{found.messages} messages, {found.cpu_us:.0f} us of the gate's CPU each, "
        f"in Python {found.python_share:.0%} of the time; {output}"
    )
    for title, entries in (
        ("by file", found.file_us),
        ("in itself", found.own_us),
        ("with what it calls", found.total_us),
    ):
        table = Table("us a message", "where", title=title, title_justify="left", box=None)
        for name, microseconds in entries[:top]:
            table.add_row(f"{microseconds:.1f}", name)
        console.print(table)


@main.command("signing")
def signing_command() -> None:
    """Time signatures by the library `cryptography`, and dkimpy's beside them. Goal: 1 ms for both of 4 KB."""
    _print(SIGNED_COLUMNS, signed_rows(signing.rows()))


@main.command("drain")
@click.option("--messages", type=click.IntRange(100), default=_DRAINED_MESSAGES, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Ours, Postfix, ours, Postfix.")
@click.option("--no-postfix", is_flag=True, help="Leave the reference out.")
@click.pass_obj
def drain_command(folder: Path | None, messages: int, rounds: int, no_postfix: bool) -> None:
    """Time how long a full queue of signed 4 KB messages takes to reach smtp-sink. Goal: 1.5 times Postfix."""
    _end_on_sigterm()
    found = []
    with _folder(folder) as place:
        try:
            for number in range(1, rounds + 1):
                found += drained_rows(number, drain.rows(place / f"{number}", messages, has_postfix=not no_postfix))
        except (LeftOut, ServerFailed) as error:
            raise click.ClickException(str(error)) from error
    _print(DRAINED_COLUMNS, found)


def _wanted(only: tuple[str, ...], *, is_quick: bool) -> list[str]:
    names = [
        *(case.name for case in (*throughput.cases(), *throughput.checked_cases())),
        *_MEMORY_TOPICS,
        *_SENDING_TOPICS,
    ]
    if only:
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in only)]
    return [name for name in names if name in _QUICK_CASES or name in _MEMORY_TOPICS] if is_quick else names


def _run(
    place: Path,
    wanted: list[str],
    results: Results,
    extent: _Extent,
    rounds: int | None,
    load: str,
    postfix_parameters: tuple[str, ...] | None,
    haraka_modules: Path | None,
) -> None:
    """`postfix_parameters` is None where Postfix is left out."""
    deadline = time.monotonic() + extent.total_seconds
    files = memory.raise_open_files(8192)
    certificate, key = make_certificate(place, "mx.bench.test")
    if shutil.which("smtp-source") is None and load != "own":
        results.left_out.append("smtp-source (not installed): our own loader loads")
        load = "own"
    if any(name in _MEMORY_TOPICS for name in wanted):
        _measure_memory(place, wanted, results, certificate, key, files)
    cases = [case for case in throughput.cases() if case.name in wanted]
    if cases:
        _measure_plain(place, cases, results, extent, rounds, load, postfix_parameters, certificate, key, deadline)
    if checked := [case for case in throughput.checked_cases() if case.name in wanted]:
        _measure_checked(
            place, checked, results, rounds or extent.rounds, postfix_parameters, haraka_modules, certificate, key
        )
    if "signing" in wanted:
        results.signed += signing.rows()
        _print(SIGNED_COLUMNS, signed_rows(results.signed))
    if "drain" in wanted:
        _measure_drain(place, results, rounds or 1, has_postfix=postfix_parameters is not None)


def _measure_drain(place: Path, results: Results, rounds: int, *, has_postfix: bool) -> None:
    """A full queue, and the reference's beside it in the same run."""
    for number in range(1, rounds + 1):
        try:
            found = drain.rows(place / f"drain-{number}", _DRAINED_MESSAGES, has_postfix=has_postfix)
        except (LeftOut, ServerFailed) as why:
            results.left_out.append(f"drain ({why})")
            return
        results.drained.append(found)
        _print(DRAINED_COLUMNS, drained_rows(number, found))


def _measure_checked(
    place: Path,
    cases: list[throughput.Case],
    results: Results,
    rounds: int,
    postfix_parameters: tuple[str, ...] | None,
    haraka_modules: Path | None,
    certificate: Path,
    key: Path,
) -> None:
    """Signed mail; these cases are few, and have the time that they take."""
    try:
        surroundings = authentication.Surroundings(place / "surroundings", cases)
        servers = authentication.started(
            place,
            surroundings.name_server,
            certificate,
            key,
            parameters=postfix_parameters,
            haraka_modules=haraka_modules,
            left_out=results.left_out,
        )
        with servers as running:
            console.print(_table_of([CASE_COLUMNS]))
            for case in cases:
                result = CaseResult(case)
                results.cases.append(result)
                try:
                    authentication.measure(running, surroundings, result, rounds if case.is_target else 1)
                except ServerFailed as why:
                    results.left_out.append(f"{case.name} ({why})")
                console.print(_table_of(case_rows(result)))
    except LeftOut as why:
        results.left_out.append(f"auth-* ({why})")


def _measure_plain(
    place: Path,
    cases: list[throughput.Case],
    results: Results,
    extent: _Extent,
    rounds: int | None,
    load: str,
    postfix_parameters: tuple[str, ...] | None,
    certificate: Path,
    key: Path,
    deadline: float,
) -> None:
    with contextlib.ExitStack() as servers:
        gate = servers.enter_context(Gate(place / "gate", certificate, key))
        reference: Postfix | None = None
        if postfix_parameters is not None:
            try:
                reference = servers.enter_context(Postfix(place / "postfix", certificate, key, postfix_parameters))
            except (LeftOut, ServerFailed) as why:
                results.left_out.append(f"Postfix ({why})")
        if (nice := os.getpriority(os.PRIO_PROCESS, 0)) != 0:
            for pid in (*gate.leaders(), *(reference.leaders() if reference is not None else ())):
                set_priority(pid, nice)
        console.print(_table_of([CASE_COLUMNS]))
        for case in cases:
            if time.monotonic() > deadline:
                results.left_out.append(f"{case.name} (no time left)")
                continue
            result = CaseResult(case)
            results.cases.append(result)
            try:
                _measure_case(gate, reference, result, extent, rounds or (extent.rounds if case.is_target else 1), load)
            except ServerFailed as why:
                results.left_out.append(f"{case.name} ({why})")
            console.print(_table_of(case_rows(result)))


def _measure_case(
    gate: Server, reference: Server | None, result: CaseResult, extent: _Extent, rounds: int, load: str
) -> None:
    case = result.case
    program = throughput.load_program(case, load)
    trial = 100 + case.sessions
    our_rate = throughput.measure(gate, case, trial, program).stored_per_second
    messages = our_rate * extent.our_seconds
    reference_rate = our_rate
    if reference is not None:
        reference_rate = throughput.measure(reference, case, trial, program).stored_per_second
        messages = min(messages, reference_rate * extent.reference_seconds)
    work = max(int(messages), trial)
    for _ in range(rounds):
        result.ours.append(throughput.measure(gate, case, work, program))
        if reference is not None:
            result.reference.append(throughput.measure(reference, case, work, program))
    result.our_latency = throughput.measure_latency(gate, case, max(int(our_rate * extent.latency_seconds), trial))
    if reference is not None:
        sample = max(int(reference_rate * extent.latency_seconds), trial)
        result.reference_latency = throughput.measure_latency(reference, case, sample)


def _measure_memory(place: Path, wanted: list[str], results: Results, certificate: Path, key: Path, files: int) -> None:
    """On a gate that has done nothing else; big messages on another one, whose base is small."""
    idle = [(_IDLE_PLAIN, False, "memory-idle-plain"), (_IDLE_TLS, True, "memory-idle-tls")]
    for count, is_tls, name in idle:
        if name not in wanted:
            continue
        possible = min(count, (files - 500) * 10 // 11)
        try:
            with Gate(place / name, certificate, key, mailboxes=(MAILBOX,)) as gate:
                found = memory.idle_sessions(gate, possible, is_tls=is_tls)
        except ServerFailed as why:
            results.left_out.append(f"{name} ({why})")
            continue
        results.idle.append(found)
        console.print(f"{found.sessions} idle {found.kind} sessions: {found.kib_each:.1f} KiB each")
    for recipients, name in ((1, "memory-big-1"), (1000, "memory-big-1000")):
        if name not in wanted:
            continue
        try:
            with Gate(place / name, certificate, key) as gate:
                big = memory.big_message(gate, recipients)
        except ServerFailed as why:
            results.left_out.append(f"{name} ({why})")
            continue
        results.big.append(big)
        console.print(
            f"{big.size_mib:.0f} MiB for {recipients}: {big.base_rss_mib:.0f} MiB before, "
            f"{big.peak_rss_mib:.0f} at most, {big.times_size:.2f} times its size, {big.seconds:.2f} s"
        )


def _say(results: Results) -> None:
    for what in results.left_out:
        console.print(f"left out: {what}", markup=False)
    if found := goals(results):
        table = Table("aim", "", "found", "met", box=None)
        for one in found:
            table.add_row(one.what, one.aim, one.found, "yes" if one.is_met else "no")
        console.print(table)


def _print(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _table_of(rows: list[tuple[str, ...]]) -> str:
    widths = (22, 11, 12, 9, 7, 6, 9, 8, 8, 12, 7, 6)
    return "\n".join("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


@contextlib.contextmanager
def _folder(parent: Path | None) -> Generator[Path]:
    """A folder for the run, which the users that PostgreSQL and Postfix run as may search; removed at the end."""
    place = Path(tempfile.mkdtemp(prefix="mailgate-bench-", dir=parent))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _end_on_sigterm() -> None:
    """Make SIGTERM unwind like Ctrl-C, so that all that was started is stopped."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
