"""A host for the engine `qemu` with KVM, on machines where a probe proves that it works."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from magsd.aio import SystemClock
from magsd.engine import accelerator, accelerator_probe
from magsd.engine.accelerator import Verdict
from magsd.engine.network import instance_of
from magsd.engine.qemu import QemuEngine
from magsd.engine.vm_host import VmHost, VmHostSettings
from tests.conformance.qemu_host import QemuHost
from tests.conformance.roots import REPOSITORY


class KvmHost(QemuHost):
    @override
    def make(self, vm_host: VmHost, **settings: Any) -> QemuEngine:
        return super().make(vm_host, **{"accelerator": accelerator.KVM, **settings})


def verdict_on_kvm(directory: Path) -> Verdict:
    """Try KVM, from a data directory that is made for it; no more than a look where that will do."""
    (directory / "tmp").mkdir()
    (directory / "kernel").symlink_to(REPOSITORY / "build/kernel")
    settings = VmHostSettings(directory, instance_of(directory))
    # Tests that ask for it may run on a loop already.
    with ThreadPoolExecutor(1) as thread:
        work = partial(accelerator_probe.verdict, settings, SystemClock())
        return thread.submit(lambda: asyncio.run(work())).result()
