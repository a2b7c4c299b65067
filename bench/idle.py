"""P10: what VMs cost that wait for a script, and whether they are as quick after a long wait."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.engines import Bare, Waiting
from bench.measure import Samples, raw, samples_table
from bench.session import Session
from bench.starts import through
from bench.table import Table
from magsd.engine.record import VmRecord
from magsd.engines import GVISOR, QEMU

VMS: Final = 5
WATCHED_S: Final = 60.0
CLAIMS: Final = 100
_SHIM: Final = "shim"
_KINDS: Final = {
    GVISOR: (_SHIM, "run", "gofer", "boot", "others"),
    QEMU: (_SHIM, "qemu-system"),
}
"""By engine: the shim; runsc by the command it was started with, `boot` is the sandbox itself; the
guest's own. Or the emulator, which the guest is a part of."""


@dataclass(frozen=True)
class Use:
    """What one VM that waits used."""

    pss_mb: Mapping[str, float]
    """Memory of its processes, each page's share of it, by kind."""
    cpu_percent: float
    """Of one processor: what all its processes used, the shim included."""


async def idle(session: Session) -> None:
    """Measure memory and processor time of some VMs that wait."""
    bare, kinds = await session.bare(), _KINDS[session.engine]
    vms = [await bare.waiting() for _ in range(VMS)]
    try:
        before = [await _cpu_s(bare, vm) for vm in vms]
        began = time.perf_counter()
        await asyncio.sleep(WATCHED_S)
        watched_s = time.perf_counter() - began
        after = [await _cpu_s(bare, vm) for vm in vms]
        uses = [
            Use(_pss_mb(vm, kinds), 100 * (end - begin) / watched_s)
            for vm, begin, end in zip(vms, before, after, strict=True)
        ]
    finally:
        for vm in vms:
            await bare.let_go(vm)
    report = session.report
    report.keep("idle", [vars(use) for use in uses])
    rows = [
        (
            f"VM {number}",
            f"{sum(use.pss_mb.values()):.1f} MB",
            *(f"{use.pss_mb[kind]:.2f} MB" for kind in kinds),
            f"{use.cpu_percent:.3f} %",
        )
        for number, use in enumerate(uses, 1)
    ]
    title = f"{VMS} VMs that wait, warmed and frozen, over {WATCHED_S:.0f} s"
    report.show(Table(title, ("", "PSS", *kinds, "CPU"), rows))
    memory_mb = max(sum(use.pss_mb.values()) for use in uses)
    cpu = max(use.cpu_percent for use in uses)
    if (most_mb := report.limit("idle_memory")) is not None:
        text = f"{memory_mb:.1f} MB at most"
        report.found("idle_memory", text, VMS, is_met=memory_mb <= most_mb)
    report.found("idle_cpu", f"{cpu:.3f} % at most", VMS, is_met=cpu <= 0.2)


async def idle_claims(session: Session) -> None:
    """Claim a hundred VMs one after the other, before and after nothing was asked for long."""
    minutes = session.options.idle_minutes
    if not minutes:
        session.report.lacks("idle_claims", "left out: --idle-minutes 0")
        return
    server = session.server()
    once = through(await session.client(server), server)
    await once()
    before = Samples("before", [await once() for _ in range(CLAIMS)])
    await server.at_rest()
    await asyncio.sleep(minutes * 60)
    after = Samples(f"after {minutes:g} idle minutes", [await once() for _ in range(CLAIMS)])
    report = session.report
    report.keep("idle_claims_ms", raw({each.subject: each for each in (before, after)}))
    first = f"The first after the wait took {after.values_ms[0]:.1f} ms."
    report.show(samples_table("Claims, submit to completed", [before, after], first))
    ratio = after.median / before.median
    text = f"{ratio:.2f} x after {minutes:g} min; the first {after.values_ms[0]:.1f} ms"
    report.found("idle_claims", text, CLAIMS, is_met=ratio <= 1.1)


async def _cpu_s(bare: Bare, vm: Waiting) -> float:
    used = await bare.engine.stats(vm.handle)
    return used.cpu_ns / 1e9 + _shim_cpu_s(_shim(vm))


def _shim_cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _pss_mb(vm: Waiting, kinds: Sequence[str]) -> dict[str, float]:
    shim = _shim(vm)
    found = dict.fromkeys(kinds, 0.0)
    found[_SHIM] = _pss_of(shim)
    for pid in _descendants(shim):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        kind = next((kind for kind in kinds[1:] if kind.encode() in words), kinds[-1])
        found[kind] += _pss_of(pid)
    return found


def _descendants(pid: int) -> list[int]:
    """Return the processes below one: the engine's, which the shim has started."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [below for child in children for below in _descendants(child)]


def _pss_of(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _shim(vm: Waiting) -> int:
    record = VmRecord.read(vm.handle.run_directory)
    if record is None:
        raise SystemExit("bench: a VM has no record")
    return record.shim_pid
