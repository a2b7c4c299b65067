"""`make bench`: measure on this machine, print the table of goals, keep every sample.

    python -m bench [--engine ENGINE] [PART …]     all engines and parts, unless some are named

Samples are kept in `bench/results/`, as JSON.
"""

import argparse
import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import uvloop

from bench.burst import burst
from bench.clones import clones
from bench.daemon import daemon
from bench.execs import execs
from bench.hits import hits
from bench.idle import idle, idle_claims
from bench.ingress import ingress
from bench.measure import machine, machine_line
from bench.phases import phases
from bench.rates import rates
from bench.refill import refill
from bench.report import Report
from bench.scale import scale
from bench.session import Options, Session
from bench.starts import claims, starts
from bench.wake import wake
from bench.workspaces import workspaces
from magsd import log
from magsd.engines import GVISOR, QEMU

Part = Callable[[Session], Awaitable[None]]

PARTS: Final[Mapping[str, Part]] = {
    "claims": claims,
    "starts": starts,
    "hits": hits,
    "clones": clones,
    "refill": refill,
    "burst": burst,
    "execs": execs,
    "rates": rates,
    "ingress": ingress,
    "idle": idle,
    "idle-claims": idle_claims,
    "phases": phases,
    "workspaces": workspaces,
    "wake": wake,
    "daemon": daemon,
    "scale": scale,
}
"""In the order in which they are done: `daemon` looks at what those before it left."""
_SERVERS_OWN: Final = frozenset({"rates", "daemon", "scale"})
"""Parts that say nothing of an engine: done once, with the first."""
ENGINES: Final = (GVISOR, QEMU)
_FOLDER: Final = "MAGS_BENCH_FOLDER"
"""In the environment of the process that measures, which has mounts of its own."""
_LOCK: Final = Path("/run/mags-bench.lock")
"""Two runs at once would measure each other."""


def main() -> int:
    """Measure in a process whose mounts end with it; remove its folder afterwards."""
    arguments = _arguments()
    if os.geteuid() != 0:
        print("bench: sandboxes need root: run it with sudo", file=sys.stderr)
        return 1
    if (folder := os.environ.get(_FOLDER)) is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(measure(Path(folder), arguments))
    with _LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("bench: another one is running on this machine", file=sys.stderr)
            return 1
        return _measured_apart()


def _measured_apart() -> int:
    folder = tempfile.mkdtemp(prefix="mags-bench-", dir="/var/tmp")
    try:
        unshare = ["unshare", "--mount", "--propagation", "private"]
        command = [*unshare, sys.executable, "-m", "bench", *sys.argv[1:]]
        environment = os.environ | {_FOLDER: folder}
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all of them)"
    )
    parser.add_argument(
        "--engine",
        action="append",
        choices=ENGINES,
        help="measure with this engine only, and without parts named only what is about engines; "
        "may be given again (both of them, and all parts)",
    )
    parser.add_argument("-n", type=int, help="samples of each start and claim")
    parser.add_argument(
        "--idle-minutes",
        type=float,
        default=10,
        help="how long nothing is asked for before claims are measured again; 0: not done (10)",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables as the documentation has them"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return arguments


async def measure(folder: Path, arguments: argparse.Namespace) -> int:
    """Do one part after the other, then print the table of goals; return an exit code.

    What a part that failed would have found is left out, and the others are done.
    """
    log.configure("error")
    engines = tuple(dict.fromkeys(arguments.engine or ENGINES))
    about = machine(engines)
    report = Report(about, is_markdown=arguments.markdown)
    report.say(f"{machine_line(about)}\n")
    took_s: dict[str, float] = {}
    failed = []
    options = Options(arguments.n, arguments.idle_minutes)
    for engine in engines:
        async with AsyncExitStack() as stack:
            own = folder / engine
            own.mkdir()
            session = Session(own, engine, options, report, stack)
            for name in chosen(arguments.parts, arguments.engine, is_first=engine == engines[0]):
                began = time.monotonic()
                try:
                    await PARTS[name](session)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - told, and in the exit code
                    report.say(f"The part {name} failed with {engine}: {error!r}\n")
                    failed.append(f"{name} with {engine}")
                took_s[f"{engine} {name}"] = time.monotonic() - began
    report.keep("parts_s", took_s)
    if (goals := report.goals("Goals")).rows:
        report.show(goals)
    times = ", ".join(f"{name} {seconds:.0f}" for name, seconds in took_s.items())
    report.say(f"{sum(took_s.values()):.0f} s ({times}), load {os.getloadavg()[0]:.1f} at the end.")
    if failed:
        report.say(f"Failed: {', '.join(failed)}.")
    report.say(f"Samples: {report.save()}")
    return 1 if failed else 0


def chosen(parts: Collection[str], engines: Collection[str] | None, *, is_first: bool) -> list[str]:
    """Return the parts to do with an engine, in their order.

    `parts` and `engines`: what was named, if anything was; `is_first`: of the engines.
    """
    return [
        name
        for name in PARTS
        if (name in parts if parts else name not in _SERVERS_OWN or not engines)
        and (name not in _SERVERS_OWN or is_first)
    ]


if __name__ == "__main__":
    sys.exit(main())
