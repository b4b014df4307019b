"""The results as tables for people, as Markdown to keep, and as JSON for programs."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks import drain, signing
    from benchmarks.memory import BigMessage, IdleSessions
    from benchmarks.throughput import Case, Figures, Latency

_BIG_OCTETS = 1_000_000


@dataclass(slots=True)
class CaseResult:
    """All rounds of one case; the reference's lists are empty where it is left out."""

    case: Case
    ours: list[Figures] = field(default_factory=list)
    unchecked: list[Figures] = field(default_factory=list)  # ours without policies, with the same mail
    reference: list[Figures] = field(default_factory=list)
    haraka: list[Figures] = field(default_factory=list)
    our_latency: Latency | None = None
    reference_latency: Latency | None = None

    @property
    def cpu_ms(self) -> float:
        """CPU a message, of the gate and the database: the median over the rounds."""
        return _cpu_ms(self.ours)

    @property
    def chain_cpu_ms(self) -> float | None:
        """What of it the policies take: what the same mail takes less without them."""
        return self.cpu_ms - _cpu_ms(self.unchecked) if self.unchecked else None

    @property
    def ratio(self) -> float | None:
        """Our stored messages a second to the reference's: the median over the rounds."""
        return _ratio(self.ours, self.reference)

    @property
    def haraka_ratio(self) -> float | None:
        """The same to Haraka's."""
        return _ratio(self.ours, self.haraka)


@dataclass(slots=True)
class Results:
    """Everything that a run found."""

    machine: dict[str, str]
    cases: list[CaseResult] = field(default_factory=list)
    idle: list[IdleSessions] = field(default_factory=list)
    big: list[BigMessage] = field(default_factory=list)
    signed: list[signing.Row] = field(default_factory=list)
    drained: list[list[drain.Row]] = field(default_factory=list)  # by round: ours, and the reference's
    left_out: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Plain values, names and derived figures included."""
        return {
            "machine": self.machine,
            "cases": [
                {
                    "name": one.case.name,
                    "ratio": one.ratio,
                    "haraka_ratio": one.haraka_ratio,
                    "chain_cpu_ms": one.chain_cpu_ms if one.ours else None,
                    **asdict(one),
                }
                for one in self.cases
            ],
            "idle": [asdict(one) for one in self.idle],
            "big": [{"times_size": one.times_size, **asdict(one)} for one in self.big],
            "signed": [asdict(one) for one in self.signed],
            "drained": [[asdict(one) for one in rows] for rows in self.drained],
            "left_out": self.left_out,
        }


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that was aimed at, and what came out."""

    what: str
    aim: str
    found: str
    is_met: bool


CASE_COLUMNS = (
    "case",
    "server",
    "load",
    "stored/s",
    "CPU ms",
    "+ db",
    "peak MiB",
    "p50 ms",
    "p99 ms",
    "stall ms",
    "others",
    "ratio",
)
SIGNED_COLUMNS = ("message", "signed with", "ms each", "longest step, ms")
DRAINED_COLUMNS = ("round", "queue of", "messages", "messages/s", "seconds", "us of CPU each", "of it the database's")


def case_rows(result: CaseResult) -> list[tuple[str, ...]]:
    """A row a server: medians over the rounds."""
    rows: list[tuple[str, ...]] = []
    for figures, latency, ratio in (
        (result.ours, result.our_latency, None),
        (result.unchecked, None, None),
        (result.reference, result.reference_latency, result.ratio),
        (result.haraka, None, result.haraka_ratio),
    ):
        if not figures:
            continue
        waits = ("", "") if latency is None else (f"{latency.p50_ms:.1f}", f"{latency.p99_ms:.1f}")
        stall = ""
        if latency is not None and latency.stall_ms is not None:
            stall = f"{latency.stall_ms:.0f} ({latency.control_ms:.0f})"
        rows.append(
            (
                result.case.name,
                figures[0].server,
                figures[0].load,
                f"{_median(figures, 'stored_per_second'):.0f}",
                f"{_median(figures, 'server_cpu_ms'):.2f}",
                f"{_median(figures, 'database_cpu_ms'):.2f}",
                f"{max(one.peak_rss_mib for one in figures):.0f}"
                if not figures[0].server.startswith("Postfix")
                else "",
                *waits,
                stall,
                f"{max(one.others_share for one in figures):.0%}",
                "" if ratio is None else f"{ratio:.2f}",
            )
        )
    return rows


def signed_rows(rows: list[signing.Row]) -> list[tuple[str, ...]]:
    """A row a size and way of signing."""
    return [
        (
            row.size,
            row.what,
            f"{row.milliseconds:.2f}",
            "" if row.longest_step is None else f"{row.longest_step:.1f}",
        )
        for row in rows
    ]


def drained_rows(number: int, rows: list[drain.Row]) -> list[tuple[str, ...]]:
    """A row a server, of that round."""
    return [
        (
            f"{number}",
            row.what,
            f"{row.messages}",
            f"{row.messages / row.seconds:.0f}",
            f"{row.seconds:.1f}",
            f"{(row.cpu.server + row.cpu.database) / row.messages * 1e6:.0f}",
            f"{row.cpu.database / row.messages * 1e6:.0f}",
        )
        for row in rows
    ]


def goals(results: Results) -> list[Goal]:
    """What was aimed at, for all that this run measured."""
    found: list[Goal] = _goals_of_sending(results)
    by_name = {one.case.name: one for one in results.cases if one.ours}
    for name, aim in (
        ("4KB-20-one-plain", 4.0),
        ("4KB-200-one-plain", 6.0),
        ("4KB-20-many-plain", 5.0),
        ("100KB-20-one-plain", 2.0),
        ("auth-4KB-20", 4.0),
        ("auth-4KB-200", 6.0),
        ("auth-100KB-20", 2.0),
    ):
        if name in by_name and (ratio := by_name[name].ratio) is not None:
            found.append(Goal(f"stored/s to Postfix's, {name}", f">= {aim:g}", f"{ratio:.2f}", ratio >= aim))
    if "auth-4KB-20" in by_name and (ratio := by_name["auth-4KB-20"].haraka_ratio) is not None:
        found.append(Goal("stored/s to Haraka's, auth-4KB-20", ">= 2", f"{ratio:.2f}", ratio >= 2))
    for name, most in (("4KB-20-one-plain", 0.8), ("auth-4KB-20", 2.0)):
        if name in by_name:
            cpu = by_name[name].cpu_ms
            what = f"CPU ms a message, gate and database, {name}"
            found.append(Goal(what, f"<= {most:g}", f"{cpu:.2f}", cpu <= most))
    if "auth-4KB-20" in by_name and (chain := by_name["auth-4KB-20"].chain_cpu_ms) is not None:
        found.append(Goal("of it for the policies, auth-4KB-20", "<= 1.2", f"{chain:.2f}", chain <= 1.2))
    for idle in results.idle:
        aim = 10 if idle.kind == "plain" else 50
        found.append(
            Goal(f"KiB an idle {idle.kind} session", f"<= {aim}", f"{idle.kib_each:.1f}", idle.kib_each <= aim)
        )
    for big in results.big:
        what = f"RSS over base, in sizes of one message of {big.size_mib:.0f} MiB for {big.recipients}"
        found.append(Goal(what, "<= 2", f"{big.times_size:.2f}", big.times_size <= 2))
    small = [one for one in results.cases if one.case.size_octets < _BIG_OCTETS]
    for what, those in (
        ("longest wait of a NOOP, ms", small),
        (
            "longest wait of a NOOP beside 10 MB through the chain, ms",
            [one for one in results.cases if one not in small],
        ),
    ):
        latencies = [one.our_latency for one in those if one.our_latency is not None]
        stalls = [(one.stall_ms, one.control_ms) for one in latencies if one.stall_ms is not None]
        if stalls:
            stall, control = max(stalls)
            said = f"{stall:.0f} (an echo meanwhile: {control:.0f})"
            found.append(Goal(what, "<= 100", said, stall <= 100))
    return found


def _goals_of_sending(results: Results) -> list[Goal]:
    found: list[Goal] = []
    if results.signed:
        both = results.signed[0]
        what = f"ms to sign {both.size} with {both.what}"
        found.append(Goal(what, "<= 1", f"{both.milliseconds:.2f}", both.milliseconds <= 1))
        longest = max(row.longest_step for row in results.signed if row.longest_step is not None)
        found.append(Goal("longest step of signing, ms", "<= 100", f"{longest:.1f}", longest <= 100))
    # Both have as many messages, so that the ratio of the times is that of the rates.
    ratios = [rows[1].seconds / rows[0].seconds for rows in results.drained if len(rows) > 1]
    if ratios:
        ratio = statistics.median(ratios)
        found.append(Goal("messages/s to Postfix's from a full queue", ">= 1.5", f"{ratio:.2f}", ratio >= 1.5))
    return found


def markdown(results: Results) -> str:
    """The whole result as a page."""
    lines = [
        "# A run",
        "",
        "On: " + ", ".join(f"{key} {value}" for key, value in results.machine.items()) + ".",
        "",
        "Compare the ratios, not the figures, and give little for rows in which others used more than a few percent.",
        "",
    ]
    if found := goals(results):
        lines += _markdown_table(
            ("aim", "", "found", "met"), [(one.what, one.aim, one.found, _yes(one.is_met)) for one in found]
        )
    rows = [row for one in results.cases for row in case_rows(one)]
    if rows:
        lines += _markdown_table(CASE_COLUMNS, rows)
    if results.signed:
        lines += _markdown_table(SIGNED_COLUMNS, signed_rows(results.signed))
    if results.drained:
        drained = [row for number, rows in enumerate(results.drained, 1) for row in drained_rows(number, rows)]
        lines += _markdown_table(DRAINED_COLUMNS, drained)
    lines += [f"Left out: {what}." for what in results.left_out]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _ratio(ours: list[Figures], theirs: list[Figures]) -> float | None:
    ratios = [one.stored_per_second / other.stored_per_second for one, other in zip(ours, theirs, strict=False)]
    return statistics.median(ratios) if ratios else None


def _cpu_ms(figures: list[Figures]) -> float:
    return statistics.median(one.server_cpu_ms + one.database_cpu_ms for one in figures)


def _median(figures: list[Figures], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in figures))


def _yes(is_met: bool) -> str:
    return "yes" if is_met else "no"
