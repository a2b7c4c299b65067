"""Samples, what is said of them, and where they are kept.

A result is a list of raw samples of one subject. Ratios are made of subjects
that were measured in turn in the same run: a machine's speed drifts, and what
else it does goes up and down.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


Subject = Callable[[], Awaitable[float]]
"""Does the thing once and returns how long it took, in milliseconds; ends when all is as before."""


async def in_turn(subjects: Mapping[str, Subject], count: int, warm_up: int = 2) -> list[Samples]:
    """Measure every subject `count` times, one after the other in each round."""
    samples = {name: Samples(name) for name in subjects}
    for turn in range(-warm_up, count):
        for name, subject in subjects.items():
            took_ms = await subject()
            if turn >= 0:
                samples[name].values_ms.append(took_ms)
    return list(samples.values())


def table(title: str, samples: Sequence[Samples], unit: str = "ms") -> str:
    """Return a table of samples; ratios are to the first of them."""
    width = max(len(each.subject) for each in samples)
    lines = [title, f"  {'':{width}}  {'median':>9} {'p99':>9} {'n':>5} {'ratio':>7}"]
    first = samples[0].median
    lines += [
        f"  {each.subject:{width}}  {each.median:>6.1f} {unit} {each.p99:>6.1f} {unit} "
        f"{len(each.values_ms):>5} {each.median / first:>7.2f}"
        for each in samples
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, kernel, versions."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "runsc": _first_line(["runsc", "--version"]),
        "load_before": os.getloadavg(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def save(name: str, content: Mapping[str, Any]) -> Path:
    """Keep the raw numbers of a run; return where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def raw(samples: Sequence[Samples]) -> dict[str, list[float]]:
    """Return samples as they are kept, to the microsecond."""
    return {each.subject: [round(value, 3) for value in each.values_ms] for each in samples}
