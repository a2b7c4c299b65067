"""What QEMU is told: its command lines, and the kernel's.

Pure. Everything that QEMU opens it is given as a descriptor; what it is and
where it comes from is `qemu_launch`'s part. The devices and their order are
the same in a machine that is booted, in a template and in a clone of it: a
state that was saved can be loaded in no other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from magsd.engine.base import Plan
from magsd.engine.network import GUEST_MAC
from magsd.engine.network.layout import GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_PREFIX
from magsd.engine.qemu_machine import Machine

OVERHEAD_MB: Final = 320
"""Memory of the emulator beside the guest's own: its code, its devices' queues, and up to
`_CODE_MB` of translated code."""
OVERHEAD_TASKS: Final = 64
"""Threads of the emulator: one for each processor, its loop, its workers for input and output."""
FAILED_STATUSES: Final = (1, 127, 128 + 6, 128 + 11)
"""Exit statuses that mean the emulator failed itself; a guest that ended leaves 0."""
ROOT: Final = "m/q"
"""What the emulator sees of the host, in the run directory."""

_CODE_MB: Final = 128
_KERNEL_OPTIONS: Final = (
    "quiet panic=-1 cryptomgr.notests rcupdate.rcu_expedited=1 rcupdate.rcu_cpu_stall_suppress=1 "
    "nowatchdog audit=0 lsm= init_on_alloc=0"
)
_PLACEHOLDER: Final = f"driver=null-co,size={1 << 40},read-zeroes=on"
"""Stands for an image that whoever goes on from a saved state has."""
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Accelerator:
    """What carries out the guest's instructions; the only difference between KVM and none."""

    name: str
    """`kvm` or `tcg`."""

    @property
    def options(self) -> str:
        """For `-accel`."""
        return "kvm" if self.name == "kvm" else f"tcg,thread=multi,tb-size={_CODE_MB}"

    @property
    def processor(self) -> str:
        """For `-cpu`."""
        return "host" if self.name == "kvm" else "max"


@dataclass(frozen=True)
class Size:
    """What a guest has."""

    processors: int
    memory_mb: int

    @classmethod
    def of(cls, plan: Plan) -> "Size":
        """Return the size of a VM: whole processors, at least one; the quota is what limits."""
        return cls(max(1, math.ceil(plan.vcpus)), plan.memory_mb)


@dataclass(frozen=True)
class Descriptors:
    """What the emulator inherits, by number. The agent's link is its standard input."""

    monitor: int
    """A listening socket."""
    layers: tuple[int | None, ...]
    """Lowest first. None: a placeholder for one."""
    disk: int | None
    tap: int | None
    """None: a network that goes nowhere."""

    @property
    def all(self) -> list[int]:
        """Return the numbers."""
        given = (self.monitor, *self.layers, self.disk, self.tap)
        return [descriptor for descriptor in given if descriptor is not None]


def layer_device(number: int) -> str:
    """Return what the guest calls layer `number` (0 is the lowest)."""
    return f"vd{chr(ord('a') + number)}"


def disk_device(layers: int) -> str:
    """Return what the guest calls its writable disk."""
    return layer_device(layers)


def root_fields(plan: Plan, slots: int) -> dict[str, str | list[str]]:
    """Return what the agent is told to make its root of. `slots`: drives for layers."""
    return {
        "layer": [layer_device(number) for number in range(len(plan.layers))],
        "disk": disk_device(slots),
        "pids": str(plan.pids_limit),
    }


def network_fields(plan: Plan) -> dict[str, str]:
    """Return the address that every guest with a network has, as the agent is told it."""
    if not plan.network:
        return {}
    return {"address": f"{GUEST_ADDRESS}/{GUEST_PREFIX}", "gateway": GATEWAY_ADDRESS}


def kernel_command_line(machine: Machine, accelerator: Accelerator, tsc_khz: int | None) -> str:
    """Return what the kernel is told. `tsc_khz`: under emulation, where there is such a thing.

    Left to measure it, a kernel that is emulated on a busy host may spin for ever.
    """
    frequency = f"tsc_early_khz={tsc_khz}" if tsc_khz is not None else ""
    # What is translated is found by its address: a program at another one each time would be
    # translated each time. Scripts are root inside, and may switch it on again.
    places = "" if accelerator.name == "kvm" else "norandmaps"
    return " ".join(filter(None, (_KERNEL_OPTIONS, machine.kernel_options, places, frequency)))


def boot(kernel: int, initramfs: int, command_line: str) -> list[str]:
    """Return the arguments of a machine that boots, from two descriptors."""
    return [
        *("-kernel", f"/proc/self/fd/{kernel}"),
        *("-initrd", f"/proc/self/fd/{initramfs}"),
        *("-append", command_line),
    ]


def command(
    machine: Machine,
    accelerator: Accelerator,
    size: Size,
    descriptors: Descriptors,
    memory: Sequence[str],
    rest: Sequence[str],
) -> list[str]:
    """Return the emulator's command line; `memory` describes the object `mem`, see below."""
    return [
        f"/usr/bin/{machine.program}",
        *("-M", f"{machine.kind},memory-backend=mem"),
        *("-accel", accelerator.options),
        *("-cpu", accelerator.processor),
        *("-smp", str(size.processors)),
        *("-m", f"{size.memory_mb}M"),
        *("-object", ",".join([*memory, f"size={size.memory_mb}M"])),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-chardev", f"socket,id=monitor,fd={descriptors.monitor},server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=control"),
        *_devices(descriptors),
        *("-sandbox", _SANDBOX),
        *rest,
    ]


def second_monitor(descriptor: int) -> list[str]:
    """Return what gives the emulator another monitor, by a socket that is connected."""
    return [
        *("-chardev", f"socket,id=control,fd={descriptor}"),
        *("-mon", "chardev=control,mode=control"),
    ]


def going_on(*, has_configuration: bool) -> list[str]:
    """Return what has a machine wait for a state to go on from.

    `has_configuration`: it is all that is sent of a machine; else its devices' state alone.
    """
    arguments = ["-incoming", "defer"]
    if not has_configuration:
        arguments += ["-global", "migration.send-configuration=off"]
        arguments += ["-machine", "suppress-vmdesc=on"]
    return arguments


def file_memory(descriptor: int, *, is_shared: bool) -> list[str]:
    """Return memory that is a file's: written to it, or a private copy of it."""
    share = "on" if is_shared else "off"
    return [
        "memory-backend-file",
        "id=mem",
        f"mem-path=/proc/self/fd/{descriptor}",
        f"share={share}",
    ]


def _devices(descriptors: Descriptors) -> Iterator[str]:
    yield from ("-chardev", "socket,id=agent,fd=0")
    yield from ("-device", "virtio-serial-device,id=serial")
    yield from ("-device", "virtserialport,chardev=agent,name=agent")
    for number, descriptor in enumerate(descriptors.layers):
        yield from _drive(number, descriptor, is_writable=False)
    yield from _drive(len(descriptors.layers), descriptors.disk, is_writable=True)
    if descriptors.tap is None:
        yield from ("-netdev", "hubport,id=net,hubid=0")
    else:
        yield from ("-netdev", f"tap,id=net,fd={descriptors.tap}")
    yield from ("-device", f"virtio-net-device,netdev=net,mac={GUEST_MAC}")
    yield from ("-device", "virtio-rng-device")


def _drive(number: int, descriptor: int | None, *, is_writable: bool) -> Iterator[str]:
    read_only = "off" if is_writable else "on"
    if descriptor is None:
        yield from ("-blockdev", f"{_PLACEHOLDER},node-name=disk{number},read-only={read_only}")
    else:
        yield from _image(number, descriptor, is_writable=is_writable)
    # Otherwise a full disk of the host would stop the VM where it stands.
    yield from ("-device", f"virtio-blk-device,drive=disk{number},id=blk{number},werror=report")


def _image(number: int, descriptor: int, *, is_writable: bool) -> Iterator[str]:
    read_only = "off" if is_writable else "on"
    # Freed and zeroed blocks of the guest take no room on the host. What the guest writes
    # need not outlast a crash of the host, which its VM does not outlast either.
    trim = ",discard=unmap,detect-zeroes=unmap" if is_writable else ""
    scratch = ",discard=unmap,cache.no-flush=on" if is_writable else ""
    file = f"driver=file,node-name=file{number},filename=/dev/fdset/{number},read-only={read_only}"
    yield from ("-add-fd", f"fd={descriptor},set={number}")
    yield from ("-blockdev", f"{file}{scratch}")
    yield from (
        "-blockdev",
        f"driver=raw,node-name=disk{number},file=file{number},read-only={read_only}{trim}",
    )
