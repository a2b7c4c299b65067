"""`FakeEngine`: VMs that are only pretended, in one process that outlives the daemon.

Owns the contract's side: run directories and records, how VMs are found again
and how they ended. The VMs themselves are `host`'s, the link to it
`host_client`'s. Runs no program, needs no root, touches nothing but the data
directory.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from magsd import __version__
from magsd.aio import Clock, SingleFlight, Tasks, finish
from magsd.engine import run_directory
from magsd.engine.base import Capabilities, Capture, Handle, Plan, Stats, VmEnd
from magsd.engine.disks import failure
from magsd.engine.ends import read_end
from magsd.engine.fake import upper
from magsd.engine.fake.faults import Fault, FaultPlan, Moment
from magsd.engine.fake.host_client import HostClient, HostRefusedError
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord, boot_id
from magsd.model.errors import JobCode, LaunchError, MagsError
from magsd.model.names import VmId, is_vm_id

_log: Final = structlog.get_logger()

NAME: Final = "fake"
_VCPUS_MAX: Final = 1024
_MOMENT: Final = "moment-"
"""What a VM has written at one moment, in its run directory."""


@dataclass(frozen=True)
class FakeSettings:
    """What is decided about the engine."""

    data_directory: Path
    launch_s: float = 0.0
    """How long every launch takes longer than it must."""
    claim_s: float = 0.0
    """How long every claim of a held VM takes longer than it must."""
    faults: FaultPlan = field(default_factory=FaultPlan)


class FakeEngine:
    """The Engine contract with VMs that are only pretended."""

    def __init__(self, settings: FakeSettings, clock: Clock) -> None:
        self._settings = settings
        self._faults = settings.faults
        self._clock = clock
        self._run = settings.data_directory.resolve() / "run"
        self._tasks = Tasks(_report)
        self._flights = SingleFlight()
        self._host: HostClient | None = None
        self._known: set[VmId] = set()
        """Launched or adopted here, and not stopped."""
        self._launching: set[VmId] = set()
        self._is_prepared = False

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name=NAME,
            isolation="none",
            suspend=False,
            live_fork=False,
            template=False,
            special_files_kept=False,
            max_vcpus=_VCPUS_MAX,
            needs_root=False,
        )

    async def prepare(self) -> None:
        """Find the host of the VMs, or start it. Idempotent. Raises `LaunchError`."""
        fault = self._faults.take("prepare")
        await fault.come(Moment.BEGIN, self._clock)
        try:
            self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise failure("the data directory cannot be used", str(error)) from error
        await self._linked()
        self._is_prepared = True
        await fault.come(Moment.END, self._clock)

    async def _linked(self) -> HostClient:
        """Return the link to the host, made anew if the last one died."""
        if self._host is not None and not self._host.is_lost:
            return self._host
        host: HostClient = await self._flights.do("host", self._link)
        return host

    async def _link(self) -> HostClient:
        if self._host is not None:
            await self._host.gone.wait()
        host = await HostClient.open(self._run, self._clock)
        self._host = host
        self._tasks.spawn("host of the fake VMs", self._watch(host))
        return host

    async def _watch(self, host: HostClient) -> None:
        await host.watch()
        if self._host is host:
            self._host = None
        _log.warning("fake_host_ended", pid=host.pid)

    # --- the beginning of a VM -----------------------------------------------------------

    async def launch(self, plan: Plan) -> Handle:
        """Start a VM; see `Engine.launch`."""
        if not self._is_prepared:
            raise LaunchError("the engine is not prepared")
        is_living = self._host is not None and plan.vm in self._host.living
        if is_living or plan.vm in self._launching:
            raise LaunchError(f"there is a VM {plan.vm} already")
        fault = self._faults.take("launch")
        handle = Handle(plan.vm, plan.epoch, self._run / plan.vm)
        self._launching.add(plan.vm)
        undo = AsyncExitStack()
        undo.callback(self._launching.discard, plan.vm)
        try:
            await self._launch(plan, handle, fault, undo)
        except BaseException as error:
            await finish(undo.aclose())
            if isinstance(error, OSError | HostRefusedError | TimeoutError):
                raise failure("the host refused a sandbox", str(error)) from error
            raise
        self._launching.discard(plan.vm)
        self._known.add(plan.vm)
        return handle

    async def _launch(self, plan: Plan, handle: Handle, fault: Fault, undo: AsyncExitStack) -> None:
        await fault.come(Moment.BEGIN, self._clock)
        if self._settings.launch_s:
            await self._clock.sleep(self._settings.launch_s)
        host = await self._linked()
        if plan.has_disk and not (handle.run_directory / upper.NAME).is_dir():
            text = "what the sandbox had written is gone"
            raise LaunchError(text, f"VM {plan.vm}", JobCode.STATE_LOST)
        kept = (upper.NAME,) if plan.has_disk else ()
        undo.callback(run_directory.make(handle.run_directory, *kept))
        _record(plan, host).write(handle.run_directory)
        await fault.come(Moment.RECORDED, self._clock)
        undo.push_async_callback(_end, host, plan.vm)
        await host.request(
            "launch",
            plan.vm,
            epoch=plan.epoch,
            hostname=plan.hostname,
            vcpus=plan.vcpus,
            memory_mb=plan.memory_mb,
            log_rate_bytes=plan.log_rate_bytes,
            log_burst_bytes=plan.log_burst_bytes,
            claim_s=self._settings.claim_s,
            has_disk=plan.has_disk,
        )
        await fault.come(Moment.END, self._clock)

    async def adopt(self, run_directory: Path) -> Handle | None:
        """Find the VM of an earlier daemon; see `Engine.adopt`."""
        fault = self._faults.take("adopt")
        await fault.come(Moment.BEGIN, self._clock)
        directory = run_directory.resolve()
        record = VmRecord.read(directory)
        host = self._host
        if record is None or record.engine != NAME or record.boot_id != boot_id():
            return None
        if host is None or record.shim_pid != host.pid or record.vm not in host.living:
            return None
        self._known.add(record.vm)
        await fault.come(Moment.END, self._clock)
        return Handle(record.vm, record.epoch, directory)

    # --- the end of a VM -------------------------------------------------------------------

    async def wait(self, handle: Handle) -> VmEnd:
        """Return when the VM has ended; see `Engine.wait`."""
        fault = self._faults.take("wait")
        await fault.come(Moment.BEGIN, self._clock)
        if self._host is not None and (ended := self._host.living.get(handle.vm)) is not None:
            await ended.wait()
        await fault.come(Moment.END, self._clock)
        return read_end(handle.run_directory, VmRecord.read(handle.run_directory))

    async def stop(self, handle: Handle, *, keep_changes: bool = False) -> VmEnd:
        """End the VM and give back what it held; see `Engine.stop`."""
        stopped: VmEnd = await self._flights.do(
            (handle.vm, keep_changes), lambda: finish(self._stop(handle, keep_changes))
        )
        return stopped

    async def _stop(self, handle: Handle, keep_changes: bool) -> VmEnd:
        ended: VmEnd = await self._flights.do(handle.vm, lambda: self._end(handle))
        changes = handle.run_directory / upper.NAME
        if not keep_changes:
            await finish(asyncio.to_thread(shutil.rmtree, changes, ignore_errors=True))
        elif _has_host(VmRecord.read(handle.run_directory)):
            # One that wrote nothing has none. What one held whose host is gone is lost.
            changes.mkdir(mode=0o755, exist_ok=True)
        return ended

    async def _end(self, handle: Handle) -> VmEnd:
        fault = self._faults.take("stop")
        await fault.come(Moment.BEGIN, self._clock)
        host = self._host
        if host is not None and (ended := host.living.get(handle.vm)) is not None:
            try:
                await host.request("end", handle.vm)
            except (HostRefusedError, TimeoutError):
                # It is gone, or deaf: then all its VMs go with it.
                if (record := VmRecord.read(handle.run_directory)) is not None:
                    replace(record, is_stopped=True).write(handle.run_directory)
                host.kill()
            await ended.wait()
        self._known.discard(handle.vm)
        for left in handle.run_directory.glob(f"{_MOMENT}*"):
            # Of a daemon that was killed while it read.
            await finish(asyncio.to_thread(shutil.rmtree, left, ignore_errors=True))
        (handle.run_directory / "sock").unlink(missing_ok=True)
        await fault.come(Moment.END, self._clock)
        return read_end(handle.run_directory, VmRecord.read(handle.run_directory))

    @asynccontextmanager
    async def still(self, handle: Handle, since: str = "") -> AsyncIterator[Capture]:
        """Have one moment of what a VM has written, always anew; see `Engine.still`."""
        await self._faults.take("still").come(Moment.BEGIN, self._clock)
        if self._host is None or handle.vm not in self._host.living:
            changes = handle.run_directory / upper.NAME
            if not changes.is_dir():
                raise LookupError(f"VM {handle.vm} has no disk any more")
            yield Capture(directory=changes)
            return
        into = f"{_MOMENT}{secrets.token_hex(4)}"
        changes = handle.run_directory / into
        try:
            try:
                await self._host.request("capture", handle.vm, into=into)
            except (HostRefusedError, TimeoutError) as error:
                raise failure("what the sandbox has changed cannot be read", str(error)) from error
            yield Capture(directory=changes)
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, changes, ignore_errors=True))

    async def suspend(self, handle: Handle, into: Path, *, keep_running: bool = False) -> None:
        """Refuse it; see `Engine.suspend`."""
        raise LaunchError("a pretended VM cannot be suspended")

    async def restore(self, snapshot: Path, plan: Plan) -> Handle:
        """Refuse it; see `Engine.restore`."""
        raise LaunchError("a pretended VM cannot be suspended")

    async def stats(self, handle: Handle) -> Stats:
        """Measure a live VM, in made-up numbers. Raises `LookupError` when it has ended."""
        await self._faults.take("stats").come(Moment.BEGIN, self._clock)
        if self._host is None:
            raise LookupError("this VM has ended")
        try:
            found = await self._host.request("stats", handle.vm)
        except HostRefusedError as error:
            raise LookupError("this VM has ended") from error
        return Stats(found["memory_bytes"], found["cpu_ns"], found["processes"])

    async def sweep(self, keep: frozenset[VmId]) -> list[str]:
        """Give back what other VMs than `keep` left behind; see `Engine.sweep`."""
        await self._faults.take("sweep").come(Moment.BEGIN, self._clock)
        living = self._host.living if self._host is not None else {}
        left = {
            "run directory": {VmId(path.name) for path in self._run.iterdir() if _is_ours(path)},
            "fake VM": set(living),
        }
        removed = []
        for vm in sorted(set().union(*left.values()) - keep - self._known - self._launching):
            directory = self._run / vm
            found = ", ".join(kind for kind, names in left.items() if vm in names)
            await self.stop(Handle(vm, 0, directory))
            await finish(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))
            removed.append(f"VM {vm}: {found}")
        return removed

    async def aclose(self) -> None:
        """Let go of everything; VMs live on and can be adopted. Idempotent."""
        self._is_prepared = False
        host, self._host = self._host, None
        await self._tasks.aclose()
        if host is not None:
            await host.aclose()


def _has_host(record: VmRecord | None) -> bool:
    """Say whether the process still lives that held a VM."""
    if record is None or record.boot_id != boot_id():
        return False
    host = Detached.find(record.shim_pid, record.shim_start_time)
    if host is not None:
        host.close()
    return host is not None


def _record(plan: Plan, host: HostClient) -> VmRecord:
    return VmRecord(
        vm=plan.vm,
        epoch=plan.epoch,
        boot_id=boot_id(),
        shim_pid=host.pid,
        shim_start_time=host.start_time,
        engine=NAME,
        engine_version=__version__,
        image=plan.image,
        layers=tuple(path.name for path in plan.layers),
        memory_mb=plan.memory_mb,
        slot=0,
        uid=os.getuid(),
    )


def _is_ours(path: Path) -> bool:
    """Say whether a run directory is no other engine's, which must give back more than files."""
    if not is_vm_id(path.name):
        return False
    record = VmRecord.read(path)
    return record is None or record.engine == NAME


async def _end(host: HostClient, vm: VmId) -> None:
    """End a VM whose launch was given up; one that was never begun is none."""
    try:
        await host.request("end", vm)
    except (HostRefusedError, TimeoutError):
        host.kill()
    if (ended := host.living.get(vm)) is not None:
        await ended.wait()


def _report(name: str, error: BaseException) -> None:
    detail = error.detail if isinstance(error, MagsError) else ""
    _log.error("a task of the engine failed", task=name, error=repr(error), detail=detail)
