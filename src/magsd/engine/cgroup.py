"""The control groups of VMs: limits, what was used of them, freezing.

Owns one folder for each VM under `mags-<instance>`, in every hierarchy that
has a controller VMs need: version 1 with a hierarchy for each controller,
version 2 with one for all, or both side by side. Who is put into a group and
when it is frozen is the shim's part; it gets open files for that.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from magsd.aio import Clock
from magsd.model.errors import LaunchError

_NEEDED: Final = ("memory", "pids", "cpu")
_USED: Final = ("cpuacct", "freezer")
_CPU_PERIOD_US: Final = 100_000
_REMOVE_S: Final = 5.0
_REMOVE_STEP_S: Final = 0.002
_NOT_YET: Final = {errno.EBUSY, errno.ENOTEMPTY}


@dataclass(frozen=True)
class Limits:
    """What a VM may use, guest and engine together."""

    memory_bytes: int
    cpus: float
    pids: int
    is_last: bool = False
    """Other groups go first when there is not enough processor time."""


@dataclass(frozen=True)
class Usage:
    """What a VM uses now."""

    memory_bytes: int
    cpu_ns: int
    processes: int


@dataclass(frozen=True)
class Controller:
    """Where one controller is found."""

    root: Path
    version: int


@dataclass(frozen=True)
class Weight:
    """The share of processor time that a group gets when there is not enough."""

    file: Path
    usual: str
    last: str


@dataclass(frozen=True)
class Freezer:
    """How the processes of a group are stopped and let go on."""

    file: Path
    frozen: str
    thawed: str
    events: Path | None = None
    """Says `frozen 1` once all have stopped; None where `file` itself tells."""


def find_controllers(mountinfo: str) -> dict[str, Controller]:
    """Return the controllers VMs use that a `/proc/self/mountinfo` shows, by name.

    `freezer` and `cpuacct` are among them; in version 2 they are parts of the
    core and of `cpu`.
    """
    found: dict[str, Controller] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        where = Path(before.split()[4])
        kind, _, options = [*after.split(), "", "", ""][:3]
        if kind == "cgroup2":
            unified = unified or where
        elif kind == "cgroup":
            for name in set(options.split(",")) & {*_NEEDED, *_USED}:
                found.setdefault(name, Controller(where, 1))
    if unified is not None:
        offered = (unified / "cgroup.controllers").read_text().split()
        for name in set(offered) & {*_NEEDED, *_USED}:
            found.setdefault(name, Controller(unified, 2))
        found.setdefault("freezer", Controller(unified, 2))
        if "cpu" in offered:
            found.setdefault("cpuacct", Controller(unified, 2))
    return found


class CgroupTree:
    """The groups of one instance."""

    def __init__(self, controllers: Mapping[str, Controller], instance: str) -> None:
        """Raises `LaunchError` when the host lacks a controller that limits need."""
        if missing := [name for name in _NEEDED if name not in controllers]:
            raise LaunchError(
                f"this host has no cgroup controller for {', '.join(missing)}: "
                "enable it in the kernel, or mount cgroup2 at /sys/fs/cgroup"
            )
        names = (*_NEEDED, *_USED)
        self._controllers = {n: controllers[n] for n in names if n in controllers}
        self.name = f"mags-{instance}"

    @classmethod
    def of_host(cls, instance: str) -> "CgroupTree":
        """Return the tree on this host. Raises `LaunchError`, see the constructor."""
        return cls(find_controllers(Path("/proc/self/mountinfo").read_text()), instance)

    def prepare(self) -> None:
        """Make the instance's own groups. Idempotent. Raises `LaunchError`."""
        try:
            for controller in set(self._controllers.values()):
                parent = controller.root / self.name
                if controller.version == 2:
                    _delegate(controller.root, self._of(controller))
                parent.mkdir(exist_ok=True)
                if controller.version == 2:
                    _delegate(parent, self._of(controller))
        except OSError as error:
            raise LaunchError(
                "control groups cannot be made here: run as root, "
                "and in a container give it a writable /sys/fs/cgroup",
                str(error),
            ) from error

    def _of(self, controller: Controller) -> list[str]:
        return [n for n in _NEEDED if self._controllers[n] == controller]

    def group(self, name: str) -> "Cgroup":
        """Return the group of VM `name`, whether it is there or not."""
        places = {
            controller: Controller(found.root / self.name / name, found.version)
            for controller, found in self._controllers.items()
        }
        return Cgroup(places)

    def create(self, name: str, limits: Limits) -> "Cgroup":
        """Make the group of VM `name` with its limits. Raises `OSError`; nothing is left then."""
        group = self.group(name)
        try:
            group.make(limits)
        except OSError:
            group.try_remove()
            raise
        return group

    def names(self) -> list[str]:
        """Return the names of all groups there are."""
        found: set[str] = set()
        for controller in self._controllers.values():
            with contextlib.suppress(FileNotFoundError):
                entries = (controller.root / self.name).iterdir()
                found.update(path.name for path in entries if path.is_dir())
        return sorted(found)

    def remove(self) -> None:
        """Remove the instance's own groups if they are empty."""
        for controller in set(self._controllers.values()):
            with contextlib.suppress(OSError):
                (controller.root / self.name).rmdir()


class Cgroup:
    """The group of one VM, in every hierarchy."""

    def __init__(self, places: Mapping[str, Controller]) -> None:
        self._places = places
        self._directories = sorted({place.root for place in places.values()})

    def make(self, limits: Limits) -> None:
        """Make it and set its limits. Raises `OSError`."""
        for directory in self._directories:
            directory.mkdir(exist_ok=True)
        self._limit_memory(limits.memory_bytes)
        self._limit_cpu(limits.cpus)
        if limits.is_last:
            weight = self.weight
            _set(weight.file, weight.last)
        (self._places["pids"].root / "pids.max").write_text(str(limits.pids))

    def _limit_memory(self, limit_bytes: int) -> None:
        memory = self._places["memory"]
        if memory.version == 1:
            _set(memory.root / "memory.limit_in_bytes", str(limit_bytes))
            # Together with swap, so that none is used; not every kernel counts it.
            _set(memory.root / "memory.memsw.limit_in_bytes", str(limit_bytes), optional=True)
            return
        _set(memory.root / "memory.max", str(limit_bytes))
        _set(memory.root / "memory.swap.max", "0", optional=True)
        # A VM that lost a part of its engine is no VM: all of it goes, in one step.
        _set(memory.root / "memory.oom.group", "1", optional=True)

    def _limit_cpu(self, cpus: float) -> None:
        cpu = self._places["cpu"]
        quota = max(1000, round(cpus * _CPU_PERIOD_US))
        if cpu.version == 1:
            _set(cpu.root / "cpu.cfs_period_us", str(_CPU_PERIOD_US))
            _set(cpu.root / "cpu.cfs_quota_us", str(quota))
        else:
            _set(cpu.root / "cpu.max", f"{quota} {_CPU_PERIOD_US}")

    @property
    def weight(self) -> Weight:
        """How its share of processor time is said."""
        cpu = self._places["cpu"]
        if cpu.version == 1:
            return Weight(cpu.root / "cpu.shares", usual="1024", last="64")
        return Weight(cpu.root / "cpu.weight", usual="100", last="6")

    @property
    def procs_files(self) -> list[Path]:
        """The files that a process writes itself to."""
        return [directory / "cgroup.procs" for directory in self._directories]

    @property
    def freezer(self) -> Freezer | None:
        """None where the host has no freezer."""
        place = self._places.get("freezer")
        if place is None:
            return None
        if place.version == 1:
            return Freezer(place.root / "freezer.state", "FROZEN", "THAWED")
        return Freezer(place.root / "cgroup.freeze", "1", "0", place.root / "cgroup.events")

    @property
    def is_frozen(self) -> bool:
        """Whether its processes are stopped, or on their way. Raises `OSError`."""
        freezer = self.freezer
        return freezer is not None and freezer.file.read_text().strip() != freezer.thawed

    @property
    def oom_file(self) -> Path:
        """The file with the line `oom_kill <count>`."""
        memory = self._places["memory"]
        name = "memory.oom_control" if memory.version == 1 else "memory.events"
        return memory.root / name

    @property
    def pids_file(self) -> Path:
        """The file with the line `max <count>`: how often a process was refused."""
        return self._places["pids"].root / "pids.events"

    @property
    def memory(self) -> Controller:
        """The group's own place in the hierarchy that counts memory."""
        return self._places["memory"]

    def memory_kills(self) -> int:
        """Return how many of its processes were killed because memory ran out."""
        return _counters(self.oom_file).get("oom_kill", 0)

    def shared_memory_bytes(self) -> int:
        """Return how much of its memory is shared memory: memfds and tmpfs."""
        return _counters(self.memory.root / "memory.stat").get("shmem", 0)

    def usage(self) -> Usage:
        """Measure it. Raises `LookupError` when there is no such group."""
        try:
            return Usage(self._memory_bytes(), self._cpu_ns(), len(self.pids()))
        except OSError as error:
            raise LookupError("this VM has no control group: it has ended") from error

    def _memory_bytes(self) -> int:
        memory = self._places["memory"]
        # Cache that the kernel gives back at need is nobody's use.
        if memory.version == 1:
            used, spare = "memory.usage_in_bytes", "total_inactive_file"
        else:
            used, spare = "memory.current", "inactive_file"
        total = int((memory.root / used).read_text())
        return max(0, total - _counters(memory.root / "memory.stat").get(spare, 0))

    def _cpu_ns(self) -> int:
        place = self._places.get("cpuacct")
        if place is None:
            return 0
        if place.version == 1:
            return int((place.root / "cpuacct.usage").read_text())
        return _counters(place.root / "cpu.stat").get("usage_usec", 0) * 1000

    def pids(self) -> list[int]:
        """Return its processes. Raises `OSError` when there is no such group."""
        procs = self._places["pids"].root / "cgroup.procs"
        return [int(word) for word in procs.read_text().split()]

    def spread(self, cpus: set[int]) -> None:
        """Let all its threads run on `cpus`, also those that are made meanwhile."""
        memory = self._places["memory"]
        listing = memory.root / ("tasks" if memory.version == 1 else "cgroup.threads")
        done: set[int] = set()
        while fresh := {int(word) for word in listing.read_text().split()} - done:
            for thread in fresh:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, cpus)
            done |= fresh

    def thaw(self) -> None:
        """Let its processes go on, and die; nothing happens when it is not there."""
        with contextlib.suppress(OSError):
            if (freezer := self.freezer) is not None:
                freezer.file.write_text(freezer.thawed)

    def kill(self) -> None:
        """Thaw it and kill what is in it; nothing happens when it is not there."""
        self.thaw()
        with contextlib.suppress(OSError):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def try_remove(self) -> bool:
        """Remove it; False when a process is still in it."""
        is_gone = True
        for directory in self._directories:
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in _NOT_YET:
                    raise
                is_gone = False
        return is_gone

    async def remove(self, clock: Clock) -> None:
        """Remove it as soon as what was in it has ended; kill what has not.

        Idempotent. Raises `LaunchError` when a process does not go for 5 s.
        """
        step_s = _REMOVE_STEP_S
        deadline = clock.monotonic() + _REMOVE_S
        while not self.try_remove():
            self.kill()
            if clock.monotonic() > deadline:
                raise LaunchError(
                    "a sandbox's processes do not end: see the host's kernel log",
                    f"{self._directories[0]} holds {self.pids()}",
                )
            await clock.sleep(step_s)
            step_s = min(0.1, step_s * 1.5)


def _delegate(directory: Path, controllers: Iterable[str]) -> None:
    words = " ".join(f"+{name}" for name in controllers)
    if words:
        (directory / "cgroup.subtree_control").write_text(words)


def _set(file: Path, value: str, *, optional: bool = False) -> None:
    if optional and not file.exists():
        return
    file.write_text(value)


def _counters(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}
