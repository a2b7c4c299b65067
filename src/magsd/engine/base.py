"""The engine contract: what every way of running a VM offers, in at most ten calls.

A VM's life is owned by its shim, a process that outlives the daemon. An engine
prepares what the shim needs (disk, layers, cgroup, network slot), starts it and
later finds it again. Nothing here knows what runs inside.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from magsd.model.errors import JobCode, LaunchError
from magsd.model.names import VmId


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; callers ask here and never for its class."""

    name: str
    """`gvisor`, `qemu` or `fake`."""
    isolation: str
    """What stands between guest and host, in a word: `application-kernel`, `microvm`, …"""
    suspend: bool
    """`suspend` and `restore` work."""
    live_fork: bool
    """`suspend` with `keep_running` too, and its snapshot can be restored any number of times."""
    template: bool
    special_files_kept: bool
    """FIFOs and extended attributes made inside are seen in a capture. Where not, such an
    attribute cannot be set, and a FIFO lives as long as its VM."""
    max_vcpus: int
    needs_root: bool
    accelerator: str = ""
    """What carries out a guest's instructions where that is a choice: `kvm` or `tcg`."""


@dataclass(frozen=True)
class Plan:
    """What one VM is to be. Everything in it is decided; an engine adds nothing."""

    vm: VmId
    epoch: int
    """Which life of its run this is; fences older ones."""
    image: str
    """Name of the image, for the record."""
    layers: tuple[Path, ...]
    """Read-only layer files (squashfs), lowest first."""
    hostname: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    pids_limit: int
    waits: bool = False
    """It is made ahead of need, and nobody's until it is claimed: VMs that have something to do
    go first, and where a shim can see its maker's end it ends with it, whoever holds it by then."""
    network: bool = True
    """Egress as the deny table allows, and DNS; without it the guest has only loopback."""
    log_rate_bytes: int = 16 << 20
    """What its scripts may print in a second, in the long run; 0 is no limit."""
    log_burst_bytes: int = 64 << 20
    """What they may print at once when they have been silent; at least 64 KiB."""
    own_layers: int = 0
    """So many of `layers`, the highest, are a workspace's, which differ from run to run."""
    has_disk: bool = False
    """Its disk is the one that `Engine.stop` kept of a VM of this name, which had these layers; it
    goes on from what that had written. It stays, as it is by then, when the launch fails."""


@dataclass(frozen=True)
class Handle:
    """Where a live VM is found. Plain data: may be stored, copied, sent."""

    vm: VmId
    epoch: int
    run_directory: Path
    """Absolute; holds `record.json`, `sock`, `state` and the journal."""


class EndReason(StrEnum):
    """Why a VM is no more."""

    KILLED = "killed"
    """Somebody asked for it."""
    OUT_OF_MEMORY = "out_of_memory"
    TOO_MANY_PROCESSES = "too_many_processes"
    ENGINE_DIED = "engine_died"
    AGENT_DIED = "agent_died"
    SHIM_DIED = "shim_died"
    FENCED = "fenced"
    HOST_DISK_FULL = "host_disk_full"
    HOST_RESTARTED = "host_restarted"

    @property
    def job_code(self) -> JobCode:
        """The code of a job whose VM ended like this before its script did."""
        return _JOB_CODES[self]


_JOB_CODES = {
    EndReason.KILLED: JobCode.STOPPED,
    EndReason.OUT_OF_MEMORY: JobCode.OUT_OF_MEMORY,
    EndReason.TOO_MANY_PROCESSES: JobCode.TOO_MANY_PROCESSES,
    EndReason.ENGINE_DIED: JobCode.ENGINE_DIED,
    EndReason.AGENT_DIED: JobCode.AGENT_DIED,
    EndReason.SHIM_DIED: JobCode.SHIM_DIED,
    EndReason.FENCED: JobCode.NODE_LOST,
    EndReason.HOST_DISK_FULL: JobCode.HOST_DISK_FULL,
    EndReason.HOST_RESTARTED: JobCode.HOST_RESTARTED,
}


@dataclass(frozen=True)
class VmEnd:
    """The end of a VM, told once and readable for as long as its run directory stands."""

    reason: EndReason
    detail: str = ""
    """For the log and the job's system log: what was seen."""


@dataclass(frozen=True)
class Stats:
    """What a VM uses at this moment."""

    memory_bytes: int
    cpu_ns: int
    """Since the VM began, host side: guest and engine together."""
    processes: int
    """Host-side processes of the VM."""


@dataclass(frozen=True)
class Capture:
    """What a VM has changed, at one moment: `directory` or `tar`, unless it is what it was before."""

    directory: Path | None = None
    """An OverlayFS upper directory to read, valid inside the context: below /proc/<pid>/fd, so
    that other processes of root can open it too."""
    tar: AsyncIterator[bytes] | None = None
    """A PAX tar of such a directory, which comes from a guest and is trusted no more than one.
    Names are relative; the first is the directory itself. Whiteouts are character devices 0:0,
    opaque directories have `SCHILY.xattr.trusted.overlay.opaque=y`, files with holes are in GNU's
    sparse format 1.0. It raises `LaunchError` when it does not come to its end."""
    stamp: str = ""
    """Of the moment, for `Engine.still` to be told; empty where the engine has none."""
    is_unchanged: bool = False
    """Nothing was written since the moment of the stamp that `Engine.still` was told."""


class SnapshotError(LaunchError):
    """No VM can go on from a snapshot, now or later; the message says why."""


class Engine(Protocol):
    """One way of running VMs."""

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do. Constant after `prepare`."""

    async def prepare(self) -> None:
        """Check the host and build what launches need. Idempotent.

        Raises `LaunchError` whose message names what is missing and the next step.
        """

    async def launch(self, plan: Plan) -> Handle:
        """Start a VM; return when its agent has joined.

        Who it is it does not know yet, and one that is a copy has what others
        have: nothing may run in it before `guest.identity.introduce`.
        On failure (`LaunchError`) or cancellation nothing of it is left, but
        for its run directory's journal when the caller made one before: the
        directory belongs to the caller, its other content to the engine. Where
        the plan says that there is a disk and there is none, the error's code is `STATE_LOST`.
        """

    async def adopt(self, run_directory: Path) -> Handle | None:
        """Find the VM that an earlier daemon started there. Never kills.

        None when it has ended, or belongs to another boot of the host.
        """

    async def wait(self, handle: Handle) -> VmEnd:
        """Return when the VM has ended, with the reason. May be called at any
        time, also long after the end and by several callers."""

    def still(self, handle: Handle, since: str = "") -> AbstractAsyncContextManager[Capture]:
        """Have one consistent moment of what a VM has changed since it began.

        A live one is held meanwhile, for 50 ms at most whatever the size of its
        disk, then goes on; who is killed in the middle leaves nothing held. Or
        one that has ended, and that `stop` was told to keep. What the block
        reads does not change any more. With the stamp of an earlier capture of this
        VM it may say that nothing has changed `since`. Raises `LookupError` when there is no
        such VM or its disk is gone, `LaunchError` when it cannot be had.
        """

    async def stop(self, handle: Handle, *, keep_changes: bool = False) -> VmEnd:
        """End the VM now and give back all it held (processes, cgroup,
        network, disk); done when nothing of it is left but the run
        directory's journal, state and record. Idempotent, also for a VM that
        has ended by itself: then it only gives back.

        With `keep_changes` its disk stays for `still`, also for later daemons,
        until `stop` is called without."""

    async def suspend(self, handle: Handle, into: Path, *, keep_running: bool = False) -> None:
        """Write a live VM's memory, devices and durable streams into the new directory `into`.

        Its parent must be there; it appears whole or not at all. Then the VM has
        ended, with nothing left but what `stop` with `keep_changes` leaves: its disk
        belongs to the snapshot too, and holds all that was written by then also for
        whoever reads it without the memory (`still`). `stop` without that gives it up.

        With `keep_running`, where `capabilities.live_fork` says so, the VM goes on
        instead, with all its streams, after a pause; the snapshot has a disk of its
        own then, which the engine gives back some time after `into` is deleted.

        Raises `LookupError` when there is no such VM, `LaunchError` when it cannot be
        done, then and when it is cancelled nothing is left, and the VM goes on; it
        does so also when this process dies.
        """

    async def restore(self, snapshot: Path, plan: Plan) -> Handle:
        """Have a VM go on from where one was suspended; return when it has.

        `plan` has a vm id of its own, or with `has_disk` that of a VM that was suspended, which
        then goes on with its own disk; and a higher epoch, where it is the same run;
        layers, sizes, limits and network are those of before. Clock and randomness
        are renewed before anything runs inside. A VM that was suspended keeps its
        machine id and `hostname`; one that goes on from a live fork gets new ones.
        Its durable streams go on, with their ids, offsets and what is left of their
        deadlines, in the journal of the plan's run directory: their later output
        follows what the journal of the VM before holds. All other streams have ended.

        The snapshot stays as it was, also after a failure; it is the caller's to delete
        (and the disk, see `suspend`). Of a VM that was suspended only one may go on.
        Raises `LaunchError`, and leaves nothing, as `launch` does. `SnapshotError`
        when it never will: it is damaged, or was made by another QEMU, kernel or
        processor. The disk is good all the same.
        """

    async def stats(self, handle: Handle) -> Stats:
        """Measure a live VM. Raises `LookupError` when it has ended."""

    async def sweep(self, keep: frozenset[VmId]) -> list[str]:
        """Give back what VMs other than `keep` left behind after a crash; the disks of
        those in `keep` stay, whether they live or not.

        Returns one line for each thing that was removed.
        """
