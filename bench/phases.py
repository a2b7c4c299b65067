"""Where the time of one claim goes, step by step: submit to completed, pool hit.

The steps are told by a server that is watched from outside, see `traced`; a
job is the only one of its moment, so what it did is what was written down
between its submit and its end.
"""

import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import traced
from bench.client import connected
from bench.measure import Samples, raw
from bench.session import POOL_MIN, Session
from bench.table import Table

N: Final = 50
_WARM_UP: Final = 2

PATH: Final = (
    "HTTP in, token, checks",
    "commit of job and claim",
    "until the actor begins",
    "VM claimed, script handed over",
    "script begins, runs, its exit arrives",
    "commit of the end",
    "held request answered",
)
"""One after the other, they are the whole time."""
BESIDE: Final = (
    "the verb `claim` alone",
    "the reply to the submit",
)


@dataclass(frozen=True)
class Step:
    """Something the server did."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Job:
    """What the client saw, by the same clock: sent, accepted, over."""

    submitted: float
    accepted: float
    over: float


async def phases(session: Session) -> None:
    """Run jobs one after the other on a watched server; show what they did."""
    count = session.options.samples(N)
    folder = session.folder / "traced"
    folder.mkdir()
    trace = folder / "trace"
    jobs: list[Job] = []
    with session.serving(
        folder,
        0,
        pool_min=POOL_MIN,
        command=(sys.executable, "-m", "bench.traced", str(trace)),
    ) as server:
        async with connected(server.url, server.token) as client:
            for _ in range(count + _WARM_UP):
                await server.at_rest()
                submitted = time.perf_counter()
                name = await client.submit("echo hello")
                accepted = time.perf_counter()
                await client.completed(name)
                jobs.append(Job(submitted, accepted, time.perf_counter()))
    steps = read(trace)
    samples = {name: Samples(name) for name in (*PATH, *BESIDE)}
    total = Samples("submit to completed")
    for job in jobs[_WARM_UP:]:
        took = phases_of(job, [step for step in steps if job.submitted < step.ended <= job.over])
        if took is None:
            continue  # A pool miss goes another way.
        for name, took_s in zip(samples, took, strict=True):
            samples[name].values_ms.append(took_s * 1000)
        total.values_ms.append((job.over - job.submitted) * 1000)
    if not total.values_ms:
        session.report.say("Where a claim's time goes: no job found a VM that waited.\n")
        return
    session.report.keep("phases_ms", raw(samples))
    session.report.show(_table(samples, total))


def _table(samples: dict[str, Samples], total: Samples) -> Table:
    rows = [(name, *_numbers(samples[name])) for name in PATH]
    rows.append(("all of it", *_numbers(total)))
    rows += [(f"beside it: {name}", *_numbers(samples[name])) for name in BESIDE]
    columns = ("", "median", "p99", "n")
    return Table(
        "Where a claim's time goes", columns, rows, "Watched: each step is told in a file."
    )


def _numbers(samples: Samples) -> tuple[str, str, str]:
    return f"{samples.median:.2f} ms", f"{samples.p99:.2f} ms", str(samples.n)


def read(trace: Path) -> list[Step]:
    """Return what a watched server wrote down."""
    lines = (line.split() for line in trace.read_text(encoding="ascii").splitlines())
    return [Step(name, float(began), float(ended)) for name, began, ended in lines]


def phases_of(job: Job, steps: Sequence[Step]) -> list[float] | None:
    """Return how long each of `PATH` and `BESIDE` took, in seconds; None for a job that claimed
    no VM that waited."""
    begun, claim, opened = (
        _first(steps, name) for name in (traced.BEGIN, traced.CLAIM, traced.EXEC)
    )
    commits = sorted(
        (step for step in steps if step.name == traced.COMMIT), key=lambda step: step.ended
    )
    if not (begun and claim and opened) or len(commits) < 2:
        return None
    # A short script is over before anybody asks for its end.
    ended = _first(steps, traced.ENDED) or opened
    moments = (
        job.submitted,
        commits[0].began,
        commits[0].ended,
        begun.began,
        opened.began,
        max(ended.ended, opened.ended),
        commits[-1].ended,
        job.over,
    )
    path = [end - begin for begin, end in itertools.pairwise(moments)]
    return [*path, claim.ended - claim.began, job.accepted - commits[0].ended]


def _first(steps: Iterable[Step], name: str) -> Step | None:
    return min((step for step in steps if step.name == name), key=lambda s: s.began, default=None)
