"""The half of P8 that is the engine's: how long a VM takes to be saved with its memory, and to wake.

A wake is timed from the first word to the engine until a command that was sent to the
VM has ended. What a live fork costs is beside it: how long the VM stood still, and how
long until its copy has done a command.
"""

import shutil
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog
from structlog.testing import capture_logs

from bench.engines import Bare
from bench.measure import Samples, raw, samples_table
from bench.session import Session
from magsd.engine.base import Handle, Plan
from magsd.guest import streams
from magsd.guest.shim import ShimConnection
from magsd.model.names import new_vm_id

N: Final = 10
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_BUSY: Final = "head -c 20000000 /dev/urandom > /root/file; python3 -c pass; sleep 1000 &"


async def wake(session: Session) -> None:
    """Measure it; nothing for an engine that keeps no memory."""
    bare = await session.bare()
    if not bare.engine.capabilities.suspend:
        return
    names = ("suspend", "wake to first command done", "live fork", "stood still", "copy")
    samples = {name: Samples(name) for name in names}
    sizes: list[int] = []
    for _ in range(session.options.samples(N)):
        await _once(bare, samples, sizes)
    report = session.report
    report.keep("wake_ms", raw(samples))
    report.keep("snapshot_bytes", sizes)
    mean = sum(sizes) / len(sizes) / (1 << 20)
    text = f"512 MB, 20 MB written; {mean:.0f} MiB of memory kept."
    report.show(samples_table("Suspend and wake", list(samples.values()), text))


async def _once(bare: Bare, samples: dict[str, Samples], sizes: list[int]) -> None:
    folder = bare.folder / "snapshots"
    folder.mkdir(exist_ok=True)
    plan = bare.plan()
    first = await bare.engine.launch(plan)
    await _run(first, _BUSY)
    with _all_logs() as logs:
        samples["live fork"].values_ms.append(
            await _saved(bare, first, folder / "fork", keep_running=True)
        )
    samples["stood still"].values_ms.append(
        next(line["stood_s"] * 1000 for line in logs if line["event"] == "saved")
    )
    copy, took_ms = await _woken(bare, folder / "fork", plan)
    samples["copy"].values_ms.append(took_ms)
    await bare.engine.stop(copy)
    samples["suspend"].values_ms.append(await _saved(bare, first, folder / "sleep"))
    second, took_ms = await _woken(bare, folder / "sleep", plan)
    samples["wake to first command done"].values_ms.append(took_ms)
    sizes.append((folder / "sleep/memory").stat().st_blocks * 512)
    await bare.engine.stop(first)
    await bare.engine.stop(second)
    shutil.rmtree(folder)


@contextmanager
def _all_logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """Capture what is logged in the block, at every level."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("debug"))
    try:
        with capture_logs() as logs:
            yield logs
    finally:
        structlog.configure(**before)


async def _saved(bare: Bare, handle: Handle, into: Path, *, keep_running: bool = False) -> float:
    began = time.perf_counter()
    await bare.engine.suspend(handle, into, keep_running=keep_running)
    return (time.perf_counter() - began) * 1000


async def _woken(bare: Bare, snapshot: Path, plan: Plan) -> tuple[Handle, float]:
    began = time.perf_counter()
    handle = await bare.engine.restore(snapshot, replace(plan, vm=new_vm_id()))
    await _run(handle, "true")
    return handle, (time.perf_counter() - began) * 1000


async def _run(handle: Handle, script: str) -> None:
    connection = await ShimConnection.open(handle.run_directory)
    try:
        argv = ["/bin/sh", "-c", script]
        done = await streams.run(connection, argv, environment=_ENVIRONMENT)
        if done.wait_status != 0:
            raise SystemExit(f"bench: {script} failed: {done}")
    finally:
        await connection.aclose()
