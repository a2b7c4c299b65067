"""The machine itself: user, kernel, memory, limits, clock, programs and versions."""

import ctypes
import os
import platform
import re
import resource
import shutil
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Final

from magsd import __version__
from magsd.config import Settings
from magsd.doctor.check import Check, Verdict

_ARCHITECTURES: Final = ("x86_64", "aarch64")
_OLDEST_KERNEL: Final = (5, 8)
"""Has LOOP_CONFIGURE, open_tree and pidfd_open."""
_PACKAGE_OF_PROGRAM: Final = {
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "tar2sqfs": "squashfs-tools-ng",
    "mmdebstrap": "mmdebstrap",
}
_TASKS_PER_VM: Final = 100
"""Threads of shim, runsc, sentry and gofer; 60 were measured for an idle VM."""
_FILES_PER_VM: Final = 32
"""Open files of the daemon for a VM and for those who follow it."""
_FILES_OTHER: Final = 256
_VM_OVERHEAD_MB: Final = 128
_VMS_GOOD: Final = 4
_TIME_ERROR: Final = 5
"""What adjtimex(2) returns when nothing keeps the clock right."""


def root() -> Check:
    """Look at who runs this."""
    if os.geteuid() == 0:
        return Check("user", Verdict.OK, "root")
    return Check("user", Verdict.FAIL, f"user id {os.geteuid()}", "run it as root, with sudo")


def kernel() -> Check:
    """Look at processor and kernel."""
    machine, release = platform.machine(), platform.release()
    seen = f"Linux {release} on {machine}, {os.cpu_count()} processors"
    if machine not in _ARCHITECTURES:
        return Check("host", Verdict.FAIL, seen, f"use one of {', '.join(_ARCHITECTURES)}")
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < _OLDEST_KERNEL:
        oldest = ".".join(map(str, _OLDEST_KERNEL))
        return Check("host", Verdict.FAIL, seen, f"boot Linux {oldest} or newer")
    return Check("host", Verdict.OK, seen)


def versions() -> Check:
    """Name what else a report of a fault should name."""
    seen = f"magsd {__version__}, Python {platform.python_version()}, SQLite "
    return Check("versions", Verdict.OK, seen + sqlite3.sqlite_version)


def programs() -> Check:
    """Look for the programs that the service starts, but the engine's."""
    missing = [name for name in _PACKAGE_OF_PROGRAM if shutil.which(name) is None]
    if not missing:
        return Check("programs", Verdict.OK, ", ".join(_PACKAGE_OF_PROGRAM))
    packages = " ".join(_PACKAGE_OF_PROGRAM[name] for name in missing)
    step = f"run `apt-get install {packages}`"
    return Check("programs", Verdict.FAIL, f"missing: {', '.join(missing)}", step)


def memory(settings: Settings) -> Check:
    """Look at how many VMs of the usual size fit into what is free."""
    amounts = _meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))
    free_mb, total_mb = amounts["MemAvailable"] >> 10, amounts["MemTotal"] >> 10
    fitting = free_mb // (settings.default_memory_mb + _VM_OVERHEAD_MB)
    seen = (
        f"{free_mb / 1024:.1f} of {total_mb / 1024:.1f} GiB free: room for {fitting} VMs of "
        f"{settings.default_memory_mb} MiB that use all of it"
    )
    step = "give the machine more memory, or lower MAGSD_DEFAULT_MEMORY_MB"
    if fitting >= _VMS_GOOD:
        return Check("memory", Verdict.OK, seen)
    return Check("memory", Verdict.WARN if fitting else Verdict.FAIL, seen, step)


def _meminfo(text: str) -> dict[str, int]:
    """Return the amounts of a `/proc/meminfo`, KiB."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines}


def limits(settings: Settings) -> Check:
    """Look for limits of the kernel that `vms_max` VMs would reach."""
    vms = settings.vms_max
    wanted = {
        "kernel/pid_max": vms * _TASKS_PER_VM,
        "kernel/threads-max": vms * _TASKS_PER_VM,
        "vm/max_map_count": 65530,
        "fs/file-max": vms * _FILES_PER_VM * 4,
        "fs/inotify/max_user_instances": 64,
        "user/max_user_namespaces": vms * 4,
        "user/max_net_namespaces": vms * 4,
        "user/max_mnt_namespaces": vms * 4,
        "user/max_pid_namespaces": vms * 4,
    }
    short = {name: least for name, least in wanted.items() if (_limit(name) or least) < least}
    if "user/max_user_namespaces" in short and _limit("user/max_user_namespaces") == 0:
        step = "run `sysctl -w user.max_user_namespaces=65536`"
        return Check("limits", Verdict.FAIL, "user namespaces are switched off", step)
    if short:
        seen = ", ".join(f"{name.replace('/', '.')} is {_limit(name)}" for name in short)
        words = " ".join(f"{name.replace('/', '.')}={least}" for name, least in short.items())
        step = f"run `sysctl -w {words}`, or lower MAGSD_VMS_MAX"
        return Check("limits", Verdict.WARN, f"too low for {vms} VMs: {seen}", step)
    return Check("limits", Verdict.OK, f"high enough for {vms} VMs")


def _limit(name: str) -> int | None:
    try:
        return int((Path("/proc/sys") / name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # not in every kernel
        return None


def open_files(daemon: int | None, settings: Settings) -> Check:
    """Look at how many files the daemon may have open; `daemon` None: this process instead."""
    soft, _hard = (
        resource.getrlimit(resource.RLIMIT_NOFILE)
        if daemon is None
        else resource.prlimit(daemon, resource.RLIMIT_NOFILE)
    )
    wanted = _FILES_OTHER + settings.vms_max * _FILES_PER_VM
    who = "here" if daemon is None else f"for the service (process {daemon})"
    seen = f"{'no limit' if soft == resource.RLIM_INFINITY else soft} open files {who}"
    if soft != resource.RLIM_INFINITY and soft < wanted:
        step = f"`LimitNOFILE=1048576` in its unit, or `ulimit -n {wanted}` before it starts"
        return Check("files", Verdict.WARN, f"{seen}, {wanted} may be needed", step)
    return Check("files", Verdict.OK, seen)


def clock(now: datetime, built_at: datetime | None) -> Check:
    """Look whether the clock can be right; `built_at` is when the image was made."""
    if built_at is not None and now < built_at:
        seen = f"it is {now:%Y-%m-%d %H:%M} here, before the image was built"
        step = "set the clock: certificates and tokens are judged by it"
        return Check("clock", Verdict.WARN, seen, step)
    kept = (
        "kept right by a time service" if _is_kept() else "nothing on this machine keeps it right"
    )
    return Check("clock", Verdict.OK, f"{now:%Y-%m-%d %H:%M} UTC, {kept}")


def _is_kept() -> bool:
    # modes 0: a question. The structure has 208 bytes on 64-bit machines; all zero asks.
    timex = ctypes.create_string_buffer(256)
    return int(ctypes.CDLL(None).adjtimex(timex)) not in (-1, _TIME_ERROR)
