"""Samples, and how they are taken: in turn.

A result is a list of raw samples of one subject. Ratios are made of subjects
that were measured in turn in the same run: a machine's speed drifts, and what
else it does goes up and down.
"""

import os
import platform
import statistics
import subprocess
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.table import Table
from magsd.engines import GVISOR, QEMU

_PROGRAMS: Final = {
    GVISOR: ["runsc", "--version"],
    QEMU: ["qemu-system-x86_64", "--version"],
}


@dataclass
class Samples:
    """Times of one subject, in milliseconds, in the order they were taken."""

    subject: str
    values_ms: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.values_ms)

    @property
    def p99(self) -> float:
        """What 99 of 100 samples stay within; with fewer samples than that, the largest."""
        ordered = sorted(self.values_ms)
        return ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.values_ms)

    def short(self) -> str:
        """Return what is said of them in a sentence."""
        return f"{self.median:.1f} ms (p99 {self.p99:.1f})"


Subject = Callable[[], Awaitable[float]]
"""Does the thing once and returns how long it took, in milliseconds; ends when all is as before."""


async def in_turn(
    subjects: Mapping[str, Subject],
    count: int,
    warm_up: int = 2,
    seldom: Mapping[str, Subject] | None = None,
    seldom_count: int = 3,
) -> dict[str, Samples]:
    """Measure every subject `count` times, one after the other in each round.

    Those of `seldom`, which take long, are measured in `seldom_count` of the
    rounds, evenly spread, without a warm-up.
    """
    seldom = seldom or {}
    samples = {name: Samples(name) for name in (*subjects, *seldom)}
    their_turns = evenly(count, seldom_count)
    for turn in range(-warm_up, count):
        for name, subject in subjects.items():
            took_ms = await subject()
            if turn >= 0:
                samples[name].values_ms.append(took_ms)
        for name, subject in seldom.items() if turn in their_turns else ():
            samples[name].values_ms.append(await subject())
    return samples


def evenly(count: int, chosen: int) -> Collection[int]:
    """Return `chosen` of the numbers below `count`, evenly spread."""
    return {count * (2 * i + 1) // (2 * chosen) for i in range(min(count, chosen))}


def samples_table(title: str, samples: Sequence[Samples], note: str = "") -> Table:
    """Return a table of samples; ratios are to the first of them."""
    first = samples[0].median
    rows = [
        (
            each.subject,
            f"{each.median:.1f} ms",
            f"{each.p99:.1f} ms",
            str(each.n),
            f"{each.median / first:.2f}",
        )
        for each in samples
    ]
    return Table(title, ("", "median", "p99", "n", "ratio"), rows, note)


def raw(samples: Mapping[str, Samples]) -> dict[str, list[float]]:
    """Return samples as they are kept, to the microsecond."""
    return {name: [round(value, 3) for value in each.values_ms] for name, each in samples.items()}


def machine(engines: Collection[str]) -> dict[str, Any]:
    """Return what the numbers depend on: processor, kernel, versions, and the load before."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engines": [_first_line(_PROGRAMS[engine]) for engine in engines],
        "load_before": os.getloadavg(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(about: Mapping[str, Any]) -> str:
    """Return a sentence about the machine and the moment."""
    return (
        f"{about['processor']}, {about['cpus']} CPUs, {about['memory_mb']} MB, "
        f"Linux {about['kernel']}, {', '.join(about['engines'])}, Python {about['python']}, "
        f"load {about['load_before'][0]:.1f} before, {about['at']}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]
