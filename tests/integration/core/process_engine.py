"""An engine that runs the agent as an ordinary process under its shim.

Everything but the sandbox itself is what it is in service, and a launch takes milliseconds.
What a script writes into the folder `changes/<its hostname>` is what its VM has changed.
"""

import asyncio
import contextlib
import dataclasses
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import magsd.guest
from magsd.engine.base import Capabilities, Capture, Handle, Plan, Stats, VmEnd
from magsd.engine.ends import read_end
from magsd.engine.launch_shim import ShimPlan, StartingShim, end
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord, boot_id
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import JobCode, LaunchError
from magsd.model.names import VmId

PROGRAMS = Path(magsd.guest.__file__).parent / "programs" / platform.machine()
SHIM = PROGRAMS / "mags-shim"
UID = 2_000_321
# The agent names its machine and sets its clock: not the host's.
CONFINED_AGENT = (
    "/usr/bin/unshare",
    "--uts",
    "/usr/bin/setpriv",
    "--bounding-set=-sys_time,-sys_boot",
    str(PROGRAMS / "mags-agent"),
)


class ProcessEngine:
    """Runs the agent as a process: no sandbox, and all of the contract but that."""

    capabilities = Capabilities("process", "none", False, False, False, False, 8, True)

    def __init__(self, data_directory: Path) -> None:
        self.runs = data_directory / "run"
        self.changes = data_directory / "changes"
        self.launched: list[Plan] = []
        self.cpu_ns = 0
        self.refuse: LaunchError | None = None
        self.unready: LaunchError | None = None
        self.may_launch = asyncio.Event()
        self.may_launch.set()
        self.is_launching = asyncio.Event()

    async def prepare(self) -> None:
        if self.unready is not None:
            raise self.unready

    async def launch(self, plan: Plan) -> Handle:
        await self.prepare()
        if self.refuse is not None:
            raise self.refuse
        self.is_launching.set()
        await self.may_launch.wait()
        directory, changes = self.runs / plan.vm, self._changes_of(plan.vm)
        if plan.has_disk and not changes.is_dir():
            raise LaunchError("its disk is gone", plan.vm, JobCode.STATE_LOST)
        changes.mkdir(parents=True, exist_ok=plan.has_disk)
        changes.chmod(0o777)
        async with AsyncExitStack() as undo:
            shim = await StartingShim.open(SHIM, directory, self._shim_plan(plan), undo)
            self._record(plan, shim.process).write(directory)
            await shim.start()
            await shim.connection.aclose()
            undo.pop_all()
        shim.process.close()
        self.launched.append(plan)
        return Handle(plan.vm, plan.epoch, directory)

    def _shim_plan(self, plan: Plan) -> ShimPlan:
        fields = ShimPlan()
        fields.add("vm", plan.vm)
        fields.add("epoch", plan.epoch)
        fields.add("tmpfs", "/run")
        fields.add("mkdir", "/run/mags")
        fields.add_each("arg", CONFINED_AGENT)
        fields.add("env", "PATH=/usr/bin:/bin")
        fields.add("uid", UID)
        return fields

    def _record(self, plan: Plan, shim: Detached) -> VmRecord:
        known = {field.name: 0 for field in dataclasses.fields(VmRecord)}
        layers = tuple(path.name for path in plan.layers)
        known |= {"vm": plan.vm, "epoch": plan.epoch, "boot_id": boot_id(), "layers": layers}
        known |= {"image": plan.image}
        known |= {"shim_pid": shim.pid, "shim_start_time": shim.start_time}
        return VmRecord(**known)

    async def adopt(self, run_directory: Path) -> Handle | None:
        await self.prepare()
        record = VmRecord.read(run_directory)
        if record is None or not (shim := self._shim(record)):
            return None
        shim.close()
        return Handle(record.vm, record.epoch, run_directory)

    async def wait(self, handle: Handle) -> VmEnd:
        record = VmRecord.read(handle.run_directory)
        if shim := self._shim(record):
            try:
                await shim.wait()
            finally:
                shim.close()
        return read_end(handle.run_directory, record)

    @contextlib.asynccontextmanager
    async def still(self, handle: Handle, since: str = "") -> AsyncIterator[Capture]:
        changes = self._changes_of(handle.vm)
        if not changes.exists():
            raise LookupError(handle.vm)
        yield Capture(directory=changes)

    def _changes_of(self, vm: str) -> Path:
        return self.changes / f"mags-{vm}"

    async def stop(self, handle: Handle, *, keep_changes: bool = False) -> VmEnd:
        await self.prepare()
        with contextlib.suppress(ShimError):
            connection = await ShimConnection.open(handle.run_directory)
            with contextlib.suppress(ShimError):
                await connection.request("kill")
            await connection.aclose()
        if shim := self._shim(VmRecord.read(handle.run_directory)):
            await end(shim)
        if not keep_changes:
            shutil.rmtree(self._changes_of(handle.vm), ignore_errors=True)
        return await self.wait(handle)

    @staticmethod
    def _shim(record: VmRecord | None) -> Detached | None:
        return record and Detached.find(record.shim_pid, record.shim_start_time)

    async def suspend(self, handle: Handle, into: Path, *, keep_running: bool = False) -> None:
        raise LaunchError("a process cannot be suspended")

    async def restore(self, snapshot: Path, plan: Plan) -> Handle:
        raise LaunchError("a process cannot be suspended")

    async def stats(self, handle: Handle) -> Stats:
        if not (shim := self._shim(VmRecord.read(handle.run_directory))):
            raise LookupError(handle.vm)
        shim.close()
        return Stats(0, self.cpu_ns, 1)

    async def sweep(self, keep: frozenset[VmId]) -> list[str]:
        left = [path for path in self.runs.glob("*") if path.name not in keep]
        for path in left:
            await self.stop(Handle(VmId(path.name), 1, path))
        return [f"VM {path.name}" for path in left]
