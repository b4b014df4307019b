"""Where the gate's time goes: py-spy samples it under load.

Only moments in which the interpreter runs are counted. A system call that lets the client go on looks long from
outside, since the client then runs in our stead; and on a busy machine most samples would be of such calls.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.server import LeftOut, ServerFailed
from benchmarks.throughput import Case, run_loader

if TYPE_CHECKING:
    from benchmarks.gate import Gate
    from benchmarks.signed_mail import MailFile

_SAMPLES_PER_SECOND = 500
_WAITING = "Condition.wait"  # a thread of the pool without work, which py-spy takes for a busy one


@dataclass(frozen=True, slots=True)
class Profile:
    """How the gate spent its time, a message."""

    messages: int
    cpu_us: float  # a message, by the process's own account, the sampler's brake included
    python_share: float  # of the time, in the interpreter; the rest is system calls, libpq, and waiting
    own_us: list[tuple[str, float]]  # function, microseconds of interpreter a message in itself, most first
    total_us: list[tuple[str, float]]  # the same, what it calls included
    file_us: list[tuple[str, float]]  # by the file that the time is spent in


def profile(
    gate: Gate, case: Case, seconds: int, messages_per_second: float, file: Path, mail: MailFile | None = None
) -> Profile:
    """Sample the gate for that time under load; `file` is for https://www.speedscope.app.

    @raises LeftOut: py-spy is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    py_spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if py_spy is None:
        raise LeftOut("py-spy is not installed (pip install py-spy)")
    command = [
        *(py_spy, "record", "--pid", str(gate.pid), "--duration", str(seconds), "--rate", str(_SAMPLES_PER_SECOND)),
        *("--format", "speedscope", "--output", str(file), "--gil"),
    ]
    messages = int(messages_per_second * (seconds + 1))
    before = gate.cpu()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as sampler:
        try:
            load = run_loader(gate, case, messages, mail)
            said, _ = sampler.communicate(timeout=seconds + 30)
        finally:
            sampler.kill()
    if sampler.returncode != 0:
        raise ServerFailed(f"py-spy failed: {said[-500:]}")
    cpu_us = (gate.cpu().server - before.server) * 1e6 / load.accepted
    sums = _sums(json.loads(file.read_text()))
    if sums.samples == 0:
        raise ServerFailed("py-spy saw nothing")
    sampled = load.accepted * seconds / (load.ended - load.started)  # messages while py-spy looked, about
    scale = 1e6 / _SAMPLES_PER_SECOND / sampled
    return Profile(
        messages=load.accepted,
        cpu_us=cpu_us,
        python_share=sums.samples / (seconds * _SAMPLES_PER_SECOND),
        own_us=[(name, count * scale) for name, count in sums.own.most_common()],
        total_us=[(name, count * scale) for name, count in sums.total.most_common()],
        file_us=[(name, count * scale) for name, count in sums.by_file.most_common()],
    )


@dataclass(slots=True)
class _Sums:
    """Samples a function in itself, with what it calls, a file, and in all."""

    own: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    by_file: Counter[str] = field(default_factory=Counter)
    samples: int = 0


def _sums(speedscope: dict[str, Any]) -> _Sums:  # Any: JSON of speedscope's schema
    files = ["/".join(Path(frame["file"]).parts[-2:]) for frame in speedscope["shared"]["frames"]]
    frames = [f"{frame['name']} ({file})" for frame, file in zip(speedscope["shared"]["frames"], files, strict=True)]
    sums = _Sums()
    for thread in speedscope["profiles"]:
        for stack in thread["samples"]:
            if not stack or frames[stack[-1]].startswith(_WAITING):
                continue
            sums.samples += 1
            sums.own[frames[stack[-1]]] += 1
            sums.by_file[files[stack[-1]]] += 1
            sums.total.update({frames[index] for index in stack})
    return sums
