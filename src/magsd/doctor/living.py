"""Which daemons and shims live on this host, whatever their data directory.

A daemon holds the lock of its data directory; a shim works in the run
directory of its VM. The kernel tells both, so what is found here is true also
of directories that were deleted meanwhile. Where others could hide from this
process (in a container that shares the host's network), nothing is certain.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from magsd.engine.network import instance_of
from magsd.engine.process import read_start_time
from magsd.engine.record import VmRecord

_FIRST_PIDS: Final = 4026531836
_FIRST_CGROUPS: Final = 4026531835
"""Inodes of the first namespaces of every host (linux/proc_ns.h)."""
_ONLY_IN_FIRST_NETWORK: Final = Path("/proc/sys/net/core/netdev_max_backlog")
_DELETED: Final = " (deleted)"


@dataclass(frozen=True)
class Shim:
    """A living shim."""

    pid: int
    run_directory: Path
    is_deleted: bool
    """Whether its run directory is no more."""

    @property
    def data_directory(self) -> Path:
        """Of the daemon that started it."""
        return self.run_directory.parent.parent

    @property
    def is_known(self) -> bool:
        """Whether a daemon could find it again by its record."""
        # By the process: another mount namespace may show another folder under that name.
        record = VmRecord.read(Path(f"/proc/{self.pid}/cwd"))
        return (
            record is not None
            and record.shim_pid == self.pid
            and record.shim_start_time == read_start_time(self.pid)
        )


@dataclass(frozen=True)
class Living:
    """Everything of ours that lives."""

    daemons: dict[Path, int]
    """By data directory: their processes."""
    shims: tuple[Shim, ...]

    @property
    def instances(self) -> frozenset[str]:
        """The instances that something living belongs to."""
        directories = {*self.daemons, *(shim.data_directory for shim in self.shims)}
        return frozenset(map(instance_of, directories))


def living(but: int | None = None) -> Living:
    """Look at all processes, `but` one that only keeps a daemon from starting. Needs root."""
    daemons = {directory: pid for directory, pid in _daemons() if pid != but}
    return Living(daemons, tuple(_shims()))


def sees_all() -> bool:
    """Say whether whatever uses this host's network and control groups can be seen here."""
    if os.stat("/proc/self/ns/pid").st_ino == _FIRST_PIDS:
        return True
    is_shared = os.stat("/proc/self/ns/cgroup").st_ino == _FIRST_CGROUPS
    return not is_shared and not _ONLY_IN_FIRST_NETWORK.exists()


def _daemons() -> Iterator[tuple[Path, int]]:
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        # A line about who waits for a lock has an arrow there.
        if words[1] != "FLOCK" or not words[4].isdecimal():
            continue
        for path in _files_of(int(words[4]), int(words[5].rpartition(":")[2])):
            if path.name == "lock":
                yield path.parent, int(words[4])


def _files_of(pid: int, inode: int) -> Iterator[Path]:
    """Yield the names of an open file of a process, without a mark that it was deleted."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if entry.stat().st_ino == inode:
                    yield Path(os.readlink(entry).removesuffix(_DELETED))


def _shims() -> Iterator[Shim]:
    for pid in processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() != "mags-shim":
                continue
            if read_start_time(pid) is None:
                continue
            link = os.readlink(f"/proc/{pid}/cwd")
            directory = Path(link.removesuffix(_DELETED))
            if directory.parent.name == "run":
                yield Shim(pid, directory, link.endswith(_DELETED))


def processes() -> Iterator[int]:
    """Yield the numbers of all processes."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
