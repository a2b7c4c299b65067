"""Control groups: which there are, and whether one limits and freezes a real process."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from magsd.aio import Clock
from magsd.doctor.check import Check, Verdict
from magsd.engine.cgroup import Cgroup, CgroupTree, Controller, Limits, find_controllers
from magsd.engine.process import Detached, start_detached
from magsd.model.errors import MagsError

_CONTROLLERS: Final = ("memory", "pids", "cpu")
_LIMITS: Final = Limits(memory_bytes=64 << 20, cpus=0.5, pids=16)
_FREEZE_S: Final = 2.0
_LOOK_S: Final = 0.005


async def control_groups(clock: Clock) -> Check:
    """Look for what limits VMs; put a process under limits and freeze it."""
    found = find_controllers(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if missing := [name for name in _CONTROLLERS if name not in found]:
        step = "mount cgroup2 at /sys/fs/cgroup, or enable them in the kernel"
        return Check("cgroups", Verdict.FAIL, f"no controller for {', '.join(missing)}", step)
    seen = describe(found)
    try:
        refusal = await _try(clock)
    except (MagsError, OSError) as error:
        text = error.message if isinstance(error, MagsError) else str(error)
        step = "in a container, give it a writable /sys/fs/cgroup"
        return Check("cgroups", Verdict.FAIL, f"{seen}: {text}", step)
    if refusal is not None:
        step = "VMs of the pool are kept running instead: they use processor time"
        return Check("cgroups", Verdict.WARN, f"{seen}: {refusal}", step)
    return Check("cgroups", Verdict.OK, f"{seen}; a process was limited and frozen")


def describe(found: dict[str, Controller]) -> str:
    """Say which controllers there are, and in which version of control groups."""
    used = [name for name in (*_CONTROLLERS, "freezer") if name in found]
    versions = {found[name].version for name in used}
    kind = "hybrid" if len(versions) > 1 else f"version {versions.pop()}"
    return f"{kind}: " + ", ".join(f"{name} (v{found[name].version})" for name in used)


async def _try(clock: Clock) -> str | None:
    """Say why a process could not be frozen. Raises when groups cannot be made at all."""
    async with AsyncExitStack() as undo:
        tree = CgroupTree.of_host(f"doctor-{os.getpid()}")
        undo.callback(tree.remove)
        tree.prepare()
        group = tree.create("probe", _LIMITS)
        undo.push_async_callback(group.remove, clock)
        process = start_detached(["sleep", "60"])
        undo.push_async_callback(_end, process)
        undo.callback(group.thaw)
        for path in group.procs_files:
            path.write_text(str(process.pid))
        return await _freeze(group, clock)


async def _freeze(group: Cgroup, clock: Clock) -> str | None:
    freezer = group.freezer
    if freezer is None:
        return "there is no freezer"
    freezer.file.write_text(freezer.frozen)
    try:
        async with asyncio.timeout(_FREEZE_S):
            while not _is_frozen(freezer.file):
                await clock.sleep(_LOOK_S)
    except TimeoutError:
        return f"a process was not frozen within {_FREEZE_S:g} s"
    return None


def _is_frozen(file: Path) -> bool:
    if file.name == "freezer.state":
        return file.read_text().strip() == "FROZEN"
    return "frozen 1" in file.with_name("cgroup.events").read_text().splitlines()


async def _end(process: Detached) -> None:
    process.send_signal(signal.SIGKILL)
    await process.wait()
    process.close()
