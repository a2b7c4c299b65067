"""`make bench`: measure on this machine, print tables, keep the samples in `bench/results/`."""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import engines, rates, rounds, starts
from bench.measure import Samples, machine, raw, save, table
from bench.peers import PlainBundle
from bench.server import serving
from magsd import log
from magsd.storage.images import ImageStore

FOLDER = "MAGS_BENCH_FOLDER"
"""In the environment of the process that measures, which has mounts of its own."""


def main() -> int:
    """Measure in a process whose mounts end with it; remove its folder afterwards."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("-n", type=int, default=50, help="samples of each start (50)")
    parser.add_argument("--rounds", type=int, default=300, help="samples of each exec (300)")
    parser.add_argument("--no-load", action="store_true", help="leave out the rates of the API")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: sandboxes need root: run it with sudo", file=sys.stderr)
        return 1
    if (folder := os.environ.get(FOLDER)) is not None:
        asyncio.run(measure(Path(folder), arguments))
        return 0
    folder = tempfile.mkdtemp(prefix="mags-bench-", dir="/var/tmp")
    try:
        unshare = ["unshare", "--mount", "--propagation", "private"]
        command = [*unshare, sys.executable, "-m", "bench", *sys.argv[1:]]
        environment = os.environ | {FOLDER: folder}
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        shutil.rmtree(folder)


async def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Do all of it, table by table."""
    log.configure("error")
    about = machine()
    print(
        f"{about['processor']}, {about['cpus']} CPUs, {about['memory_mb']} MB, "
        f"Linux {about['kernel']}, {about['runsc']}, load {about['load_before'][0]:.1f}\n",
        flush=True,
    )
    results: dict[str, object] = {"machine": about}
    with serving(folder / "server") as server:
        image = ImageStore(server.data).get("standard")
        plain = PlainBundle(folder / "plain", image.layers[0])
        plain.make()
        async with engines.bare(folder / "bare", image) as bare:
            begun = await starts.measure(server, bare, plain, arguments.n)
            results["starts_ms"] = raw(begun)
            print(table("Start of a script, from nothing", begun), flush=True)
            print(overhead(begun), flush=True)
            execs = await rounds.measure(bare, plain, arguments.rounds)
            results["execs_ms"] = raw(execs)
            print(table("\n`true` in a VM that runs", execs), flush=True)
        if not arguments.no_load:
            measured, drained_s = await rates.measure(server)
            results["rates"] = [
                {
                    "what": rate.what,
                    "per_s": rate.per_s,
                    "cpu_ms": rate.cpu_ms,
                    "latencies_ms": rate.latencies.values_ms,
                }
                for rate in measured
            ]
            results["drained_s"] = drained_s
            print("\n".join(["\nThe API", rates.HEADING, *(rate.line() for rate in measured)]))
            print(
                f"  {rates.SUBMITS} jobs submitted at once were over after {drained_s:.1f} s: "
                f"{rates.SUBMITS / drained_s:.1f} a second"
            )
        results["daemon_mb"] = server.memory_mb()
        print(f"\nThe daemon holds {server.memory_mb():.0f} MB.")
    print(f"Samples: {save('all', results)}")


def overhead(samples: list[Samples]) -> str:
    """Return what the platform adds to the engine."""
    by_name = {each.subject: each for each in samples}
    added = by_name[starts.API].median - by_name[starts.BARE].median
    return f"  the platform adds {added:.1f} ms to the engine (medians)"


if __name__ == "__main__":
    sys.exit(main())
