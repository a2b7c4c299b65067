"""What runs sandboxes: what there is of each engine, how old it is, and a real script."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from magsd.config import Settings
from magsd.doctor import slots
from magsd.doctor.check import Check, Verdict
from magsd.doctor.network import Ran
from magsd.engine import accelerator, accelerator_probe, qemu_machine
from magsd.engine.accelerator import Finding
from magsd.engine.gvisor_host import find_runsc
from magsd.engine.kernel import Kernel
from magsd.engine.qemu_host import find_qemu
from magsd.model.errors import MagsError
from magsd.model.lifecycle import Status

HELLO: Final = "hello from a sandbox"
_OLD_MONTHS: Final = 24
_KERNEL_OLD_DAYS: Final = 60
_LOOKED: Final = ".looked"
"""Its time is when a newer kernel was looked for last, see `storage.kernel_package`."""


async def engines(settings: Settings, now: datetime) -> AsyncIterator[Check]:
    """Look at each engine without running anything in it."""
    kvm = await accelerator_probe.known_verdict(settings.data_dir)
    found = {"gvisor": await _gvisor(now), "qemu": await _qemu(settings, kvm, now)}
    for check in judge_engines(found, settings.engine):
        yield check
    if found["qemu"].verdict is not Verdict.FAIL:
        yield judge_kvm(kvm, settings.accelerator, settings.data_dir)
        is_only = settings.engine == "qemu" or found["gvisor"].verdict is Verdict.FAIL
        if os.geteuid() == 0:
            yield await asyncio.to_thread(slots.taps, is_needed=is_only or kvm.is_proven)
    seen = "always there; it runs no program, and isolates nothing: for tests of clients"
    yield Check("fake", Verdict.OK, seen)


def judge_engines(found: Mapping[str, Check], wanted: str) -> list[Check]:
    """Judge all engines together; of those that run programs one is enough, or the one wanted.

    `found`: by name, `fail` where an engine cannot be used.
    """
    usable = [name for name, check in found.items() if check.verdict is not Verdict.FAIL]
    step = f"optional: {' and '.join(usable)} can be used"
    return [
        replace(check, verdict=Verdict.OK, step=step)
        if usable and name not in (*usable, wanted)
        else check
        for name, check in found.items()
    ]


async def _gvisor(now: datetime) -> Check:
    try:
        path, version = await find_runsc(None)
    except MagsError as error:
        return Check("gvisor", Verdict.FAIL, error.message)
    return judge_runsc(f"runsc {version} at {path}", version, now)


def judge_runsc(seen: str, version: str, now: datetime) -> Check:
    """Judge a version of runsc by its age, which is in its name."""
    months = age_months(version, now)
    if months is None:
        return Check("gvisor", Verdict.OK, seen)
    seen = f"{seen}, {months} months old"
    if months > _OLD_MONTHS:
        step = "no longer mended by anybody: install a newer one, see gvisor.dev"
        return Check("gvisor", Verdict.WARN, seen, step)
    return Check("gvisor", Verdict.OK, seen)


def age_months(version: str, now: datetime) -> int | None:
    """Return how old a release of runsc is; None when its name holds no date."""
    date = re.search(r"20\d{6}", version)
    if date is None:
        return None
    released = datetime.strptime(date.group(), "%Y%m%d").replace(tzinfo=UTC)
    return (now - released).days * 12 // 365


async def _qemu(settings: Settings, kvm: accelerator.Verdict, now: datetime) -> Check:
    folder = settings.data_dir / "kernel"
    try:
        emulator = await find_qemu(qemu_machine.of_host())
        kernel = Kernel.read(folder)
    except MagsError as error:
        return Check("qemu", Verdict.FAIL, error.message)
    seen = f"QEMU {emulator.build} at {emulator.path}, guest kernel {kernel.version}"
    if refusal := accelerator.chosen(settings.accelerator, _once_tried(kvm)).refusal:
        return Check("qemu", Verdict.FAIL, f"{seen}: {refusal}")
    return judge_kernel(seen, (now - _looked_at(folder, kernel)).days)


def _once_tried(kvm: accelerator.Verdict) -> accelerator.Verdict:
    """Return what the service will go by, as far as is known: what is untried may work."""
    return replace(kvm, finding=Finding.WORKS) if kvm.finding is Finding.UNTRIED else kvm


def _looked_at(folder: Path, kernel: Kernel) -> datetime:
    looked, came = folder / _LOOKED, kernel.image.with_name("kernel.json")
    since = looked if looked.exists() else came
    return datetime.fromtimestamp(since.stat().st_mtime, UTC)


def judge_kernel(seen: str, days: int) -> Check:
    """Judge the guest's kernel by how long ago somebody looked for a newer one."""
    seen = f"{seen}, looked for {days} days ago"
    if days > _KERNEL_OLD_DAYS:
        step = "it may lack security updates: run `apt-get update` and `magsd kernel install`"
        return Check("qemu", Verdict.WARN, seen, step)
    return Check("qemu", Verdict.OK, seen)


def judge_kvm(kvm: accelerator.Verdict, wanted: str, directory: Path) -> Check:
    """Say what is known of KVM and what follows; never a fault: microVMs are emulated without."""
    if wanted == accelerator.TCG:
        return Check(
            "kvm", Verdict.OK, "not used, as MAGSD_ACCELERATOR says; microVMs are emulated"
        )
    if kvm.is_proven:
        seen = f"it was tried on this host and works: {kvm.why}. {accelerator.KVM_REMARK}"
        return Check("kvm", Verdict.OK, seen)
    if kvm.finding is Finding.UNTRIED:
        return Check("kvm", Verdict.OK, f"not tried yet: {kvm.why}. {accelerator.KVM_REMARK}")
    seen = f"not used, microVMs are emulated: {kvm.why}. {accelerator.KVM_REMARK}"
    return Check("kvm", Verdict.OK, seen, accelerator.how_to_try_again(directory))


def judge_hello(ran: Ran) -> Check:
    """Judge a script that says hello."""
    status = ran.status
    if status.status is Status.COMPLETED and ran.output.strip() == HELLO:
        seen = f"{status.engine} ({status.isolation}) ran a script in {ran.took_s * 1000:.0f} ms"
        return Check("sandbox", Verdict.OK, seen)
    seen = f"{status.engine}: {status.error or 'the output was not as expected'} {ran.output}"
    return Check("sandbox", Verdict.FAIL, seen, "the service's log tells more")
