"""How long a live VM stands still for a moment of its disk, with a disk pool and without one.

Run by itself, as root: `python -m bench.stills --engine gvisor`. Both ways are
measured in turn in one run, in two data directories below one folder, so on
one filesystem, which should have no reflinks. How long is what the engine
itself writes to its log: from the first word to the VM until the last.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from structlog.testing import capture_logs

from bench.server import add_kernel
from magsd import engines
from magsd.aio import SystemClock, Tasks
from magsd.config import Settings
from magsd.engine.base import Engine, Handle, Plan
from magsd.guest import streams
from magsd.guest.shim import ShimConnection
from magsd.model.names import new_vm_id
from magsd.storage.build import build_standard
from magsd.storage.images import Image, ImageStore

_IMAGES: Final = Path(__file__).parent.parent / "build/images"
_SLOT_NETS: Final = {"off": "198.19.240.0/24", "on": "198.19.241.0/24"}
_DISK_GB: Final = 4
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_WRITE: Final = "dd if=/dev/urandom of=/root/data bs=1M count={mb} 2> /dev/null; sync"
_TICK: Final = "while :; do date +%N >> /root/ticks; sleep 0.01; done > /dev/null 2>&1 &"
_AT_RANDOM: Final = """\
import os, random
file = os.open("/root/data", os.O_RDWR)
pages = os.fstat(file).st_size // 4096
for _ in range(20000):
    os.pwrite(file, os.urandom(4096), random.randrange(pages) * 4096)
os.fsync(file)
"""


def _plan(image: Image) -> Plan:
    return Plan(
        vm=new_vm_id(),
        epoch=1,
        image=image.name,
        layers=image.layers,
        hostname="still",
        vcpus=1.0,
        memory_mb=512,
        disk_gb=_DISK_GB,
        pids_limit=4096,
    )


@asynccontextmanager
async def _prepared(folder: Path, engine: str, mode: str) -> AsyncIterator[tuple[Engine, Image]]:
    (folder / "run").mkdir(mode=0o700, parents=True)
    images = ImageStore(folder)
    build_standard(images, _IMAGES, False, lambda _: None)
    add_kernel(folder, engine)
    settings = Settings(
        data_dir=folder,
        engine=engine,
        slot_net=_SLOT_NETS[mode],
        accelerator="tcg",
        disk_pool=mode,
        default_disk_gb=_DISK_GB,
    )
    async with AsyncExitStack() as stack:
        tasks = Tasks(lambda name, error: print(name, repr(error)))
        stack.push_async_callback(tasks.aclose)
        there = await stack.enter_async_context(engines.opened(settings, tasks, SystemClock()))
        chosen = there.by_name[engine]
        await chosen.prepare()
        yield chosen, images.get("standard")


async def _run(handle: Handle, *command: str) -> None:
    connection = await ShimConnection.open(handle.run_directory)
    try:
        done = await streams.run(connection, list(command), environment=_ENVIRONMENT)
        if done.wait_status != 0:
            raise SystemExit(f"bench: {command} failed: {done}")
    finally:
        await connection.aclose()


async def _held_ms(engine: Engine, handle: Handle, count: int, pause: str) -> list[float]:
    held = []
    for _ in range(count):
        with capture_logs() as logs:
            async with engine.still(handle):
                if pause:
                    await _run(handle, "python3", "-c", pause)
        held += [line["took_s"] * 1000 for line in logs if line["event"] == "held"]
    return held


async def _launch_ms(engine: Engine, image: Image) -> float:
    began = time.perf_counter()
    handle = await engine.launch(_plan(image))
    took_ms = (time.perf_counter() - began) * 1000
    await engine.stop(handle)
    await asyncio.sleep(0.3)  # Those that are made ahead are.
    return took_ms


def _show(what: str, samples: dict[str, list[float]], unit: str = "ms") -> None:
    for mode, values in samples.items():
        middle, most = statistics.median(values), max(values)
        text = f"median {middle:.1f} {unit}, most {most:.1f}, n={len(values)}"
        print(f"{what:34} pool {mode:4} {text}", flush=True)


async def _measure(engine: str, data_mb: int, launches: int, stills: int) -> None:
    async with AsyncExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        those = {}
        for mode in _SLOT_NETS:
            prepared = _prepared(work / mode, engine, mode)
            those[mode] = await stack.enter_async_context(prepared)
        took: dict[str, list[float]] = {mode: [] for mode in those}
        for number in range(launches + 2):
            for mode, (it, image) in those.items():
                took_ms = await _launch_ms(it, image)
                if number >= 2:  # The first ones make templates and mount layers.
                    took[mode].append(took_ms)
        _show("launch", took)
        handles = {mode: await it.launch(_plan(image)) for mode, (it, image) in those.items()}
        for mode, handle in handles.items():
            await _run(handle, "sh", "-c", _WRITE.format(mb=data_mb))
            await _run(handle, "sh", "-c", _TICK)
            stack.push_async_callback(those[mode][0].stop, handle)
        for what, pause in (
            ("written in a row", ""),
            ("20000 pages at random meanwhile", _AT_RANDOM),
        ):
            held: dict[str, list[float]] = {mode: [] for mode in those}
            for _ in range(stills):
                for mode, handle in handles.items():
                    held[mode] += await _held_ms(those[mode][0], handle, 1, pause)
            _show(f"held, {data_mb} MB {what}", held)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("gvisor", "qemu"), default="gvisor")
    parser.add_argument("--data-mb", type=int, default=1024)
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--stills", type=int, default=7)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(10))
    asyncio.run(_measure(options.engine, options.data_mb, options.launches, options.stills))


if __name__ == "__main__":
    main()
