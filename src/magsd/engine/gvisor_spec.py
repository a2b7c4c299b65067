"""What runsc is told: its command line and the OCI description of a VM.

Pure. The paths are those inside the VM's run directory, where `gvisor`
lays everything out through the shim.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from magsd.engine.base import Plan
from magsd.engine.vm_launch import MACHINE

ROOT: Final = f"{MACHINE}/root"
DISK: Final = f"{MACHINE}/d"
UPPER: Final = f"{DISK}/upper"
WORK: Final = f"{DISK}/work"
PLACES: Final = f"{MACHINE}/p"
"""Below all layers, see `places`."""
BUNDLE: Final = f"{MACHINE}/b"
STATE: Final = f"{MACHINE}/r"
AGENT_DIRECTORY: Final = "/run/mags"
AGENT_NAME: Final = "mags-agent"

OVERHEAD_MB: Final = 128
"""Memory of sentry, gofer and systrap's stubs beside the guest's own, and room to act in when
the guest has used up its own. Measured: 19 MB for an idle VM, 60 MB with 200 processes."""
OVERHEAD_TASKS: Final = 128
"""Threads of runsc, sentry and gofer. Measured: 60."""

FAILED_STATUSES: Final = (2, 128, 132, 134, 135, 159)
"""Exit statuses of `runsc run` that mean the engine failed itself: a panic of the sentry (2),
a container that could not be started (128), a death by SIGILL, SIGABRT, SIGBUS or by its
seccomp filter. Our agent ends with 0 or 1, or by a signal."""

_AGENT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FILES_SOFT: Final = 65536
_FILES_HARD: Final = 1048576
_CAPABILITY_NAMES: Final = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
"""
_CAPABILITIES: Final = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())
"""All: they count inside the sentry only, whose own process has none."""


@dataclass(frozen=True)
class Places:
    """Where on the host the VM's things lie."""

    run_directory: Path
    agent_directory: Path
    """Holds the agent's program and nothing else."""


def command(runsc: Path, plan: Plan) -> list[str]:
    """Return the engine's command line; its working directory is the run directory.

    It is started by `runsc run`: a sandbox made by `create` and `start` takes
    40 times as long to end. What it logs goes to standard error, where the
    last line tells how it ended, see `sandbox_was_killed`.
    """
    return [
        str(runsc),
        f"--root={STATE}",
        "--platform=systrap",
        "--directfs=false",
        "--ignore-cgroups",
        f"--network={'sandbox' if plan.network else 'none'}",
        "--overlay2=none",
        "--alsologtostderr",
        "run",
        f"--bundle={BUNDLE}",
        plan.vm,
    ]


def layer_place(number: int) -> str:
    """Return where layer `number` (0 is the lowest) is attached."""
    return f"{MACHINE}/{number}"


def overlay(plan: Plan) -> str:
    """Return the shim's description of the guest's root."""
    lowers = (layer_place(number) for number in reversed(range(len(plan.layers))))
    return ":".join([ROOT, UPPER, WORK, *lowers, PLACES])


def config(plan: Plan, places: Places) -> bytes:
    """Return the bundle's `config.json`."""
    kinds = ("bounding", "effective", "inheritable", "permitted")
    capabilities = dict.fromkeys(kinds, _CAPABILITIES)
    document = {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [f"{AGENT_DIRECTORY}/{AGENT_NAME}"],
            "env": [f"PATH={_AGENT_PATH}"],
            "cwd": "/",
            "capabilities": capabilities,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": _FILES_SOFT, "hard": _FILES_HARD},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        },
        "root": {"path": str(places.run_directory / ROOT), "readonly": False},
        "hostname": plan.hostname,
        "mounts": _mounts(places),
        "linux": {"namespaces": _namespaces(plan)},
    }
    return json.dumps(document).encode()


def _mounts(places: Places) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", safe),
        _mount("/sys", "sysfs", safe),
        _mount("/dev", "tmpfs", ["nosuid", "mode=0755", "size=16m"]),
        _mount("/dev/pts", "devpts", ["nosuid", "noexec"]),
        _mount("/dev/shm", "tmpfs", ["nosuid", "nodev", "mode=1777"]),  # noqa: S108 - the guest's
        _mount(AGENT_DIRECTORY, "bind", ["bind", "ro"], str(places.agent_directory)),
    ]


def _mount(
    destination: str, kind: str, options: list[str], source: str | None = None
) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": options,
    }


def _namespaces(plan: Plan) -> list[dict[str, str]]:
    network = {"type": "network"}
    if plan.network:
        # The shim is process 1 of its pid namespace, and in the VM's network.
        network["path"] = "/proc/1/ns/net"
    return [*({"type": kind} for kind in ("pid", "ipc", "uts", "mount")), network]


def meminfo(plan: Plan) -> bytes:
    """Return what runsc shall take for the host's `/proc/meminfo`.

    It makes the guest's memory of it, and the limit of the guest's tmpfs:
    half. Its own way to learn a limit needs cgroups that it makes itself.
    """
    return f"MemTotal:       {plan.memory_mb << 10} kB\n".encode()


def cpu_count(plan: Plan) -> int:
    """Return how many CPUs the guest sees: two at least, whatever share of them it gets.

    A sentry that has counted one CPU lets its threads wait for each other: after
    30 ms of rest every exchange with it takes 20 ms instead of 1 (measured, runsc
    20240729; its own `--cpu-num-from-quota` stops at two as well).
    """
    return max(2, math.ceil(plan.vcpus))


def sandbox_was_killed(detail: str) -> bool:
    """Say whether runsc's last words mean that its sandbox was killed from outside.

    By its exit status alone that cannot be told from a guest whose first
    process was killed from inside: both are 128 + 9. In the first case runsc
    loses the sandbox while it waits, and then sees its signal.
    """
    lines = detail.rstrip().splitlines()
    has_lost_it = any("Will try waiting on the sandbox process" in line for line in lines)
    return has_lost_it and bool(lines) and lines[-1].endswith("Exiting with status: 9")
