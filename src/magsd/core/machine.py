"""What this machine has to give to VMs, looked up once."""

import os
from pathlib import Path
from typing import Final

from magsd.model.amount import Amount

_RESERVE_SHARE: Final = 0.05
_RESERVE_LEAST_MB: Final = 512
"""Of memory, for the host itself and the daemon."""


def capacity(
    data_directory: Path,
    *,
    vms_max: int,
    cpu_overcommit: float,
    memory_overcommit: float,
    disk_overcommit: float,
) -> Amount:
    """Return what VMs may be given together."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Amount(
        vms=vms_max,
        vcpus=max(1, int(cpus * cpu_overcommit)),
        memory_mb=int(_memory_mb() * memory_overcommit),
        disk_gb=int(_disk_gb(data_directory) * disk_overcommit),
    )


def _memory_mb() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return total - max(_RESERVE_LEAST_MB, int(total * _RESERVE_SHARE))


def _disk_gb(directory: Path) -> float:
    while not directory.exists():
        directory = directory.parent
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize / (1 << 30)
