"""What differs between processor architectures when a microVM is described: one table.

Pure. Everything else in a command line is the same everywhere, see `qemu_spec`.
"""

import platform
from dataclasses import dataclass
from typing import Final

from magsd.model.errors import LaunchError


@dataclass(frozen=True)
class Machine:
    """How QEMU is told to be a machine of one architecture."""

    architecture: str
    program: str
    """The emulator's name."""
    package: str
    """The Debian package that has it."""
    kind: str
    """For `-M`, with its options."""
    kernel_options: str
    """What only this architecture's kernel is told."""
    has_tsc: bool
    """Its kernel must be told the frequency of the time stamp counter under emulation."""
    devices_max: int
    """So many virtio devices fit."""


MACHINES: Final = {
    machine.architecture: machine
    for machine in (
        Machine(
            architecture="x86_64",
            program="qemu-system-x86_64",
            package="qemu-system-x86",
            # The clock chip stays: without it a kernel waits two seconds for one.
            kind="microvm,x-option-roms=off,isa-serial=off",
            kernel_options="tsc=reliable no_timer_check reboot=t random.trust_cpu=on",
            has_tsc=True,
            devices_max=24,
        ),
        Machine(
            architecture="aarch64",
            program="qemu-system-aarch64",
            package="qemu-system-arm",
            kind="virt,gic-version=max,highmem=on",
            kernel_options="",
            has_tsc=False,
            devices_max=32,
        ),
    )
}


def of_host() -> Machine:
    """Return the entry for this host. Raises `LaunchError` where there is none."""
    name = platform.machine()
    if name not in MACHINES:
        raise LaunchError(f"there is no microVM for {name}: use another engine")
    return MACHINES[name]
