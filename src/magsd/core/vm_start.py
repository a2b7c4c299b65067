"""How a run comes to its VM: room, a VM that waits or one of its own, the script in it.

Owns the decisions and their order; each is written down before it is carried
out. What a VM is told is `launch`'s part, which VMs wait the pool's.
"""

import dataclasses
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from errno import ENOSPC
from typing import Any, Final, Protocol, TypeVar

import structlog

from magsd.aio import finish
from magsd.core import launch
from magsd.core.footprint import Footprint
from magsd.core.launch import Shape
from magsd.core.node import Node
from magsd.core.placed_files import LocalFile
from magsd.core.pool import WaitingVm
from magsd.core.remains import handle_of
from magsd.core.run_row import RunRow
from magsd.core.vm_changes import VmChanges
from magsd.db import jobs
from magsd.engine.base import Engine, Handle
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.amount import Amount
from magsd.model.errors import JobCode, LaunchError
from magsd.model.lifecycle import RunState
from magsd.model.names import VmId, new_vm_id
from magsd.model.records import RunSpec
from magsd.model.uploads import StoredFile
from magsd.storage.uploads import GoneError

_LAUNCH: Final = Amount(vms=1)

_Result = TypeVar("_Result")
_log = structlog.get_logger()


class Unless(Protocol):
    """Does some work unless something comes up meanwhile: then it is cancelled, for None."""

    async def __call__(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        """Return what `work` returns, or None."""


@dataclass(slots=True)
class HeadStart:
    """What a job has already when its actor begins: what could be decided at its submit."""

    spec: RunSpec | None = None
    """None: it lies in the database, not in memory as long as the job waits."""
    has_room: bool = False
    has_asked: bool = False
    """The pool was asked for a VM."""
    vm: WaitingVm | None = None
    """Claimed: its name stands in the run's row."""


class VmStart:
    """The beginning of one run's VM. Belongs to its actor."""

    def __init__(
        self,
        node: Node,
        row: RunRow,
        changes: VmChanges,
        footprint: Footprint,
        start: HeadStart,
        unless: Unless,
    ) -> None:
        self._node = node
        self._changes = changes
        self._row = row
        self._footprint = footprint
        self._unless = unless
        self._spec = start.spec
        self._has_asked = start.has_asked
        self._claimed = start.vm
        self._files: Sequence[LocalFile] | None = None
        self._copies = AsyncExitStack()
        self._log = _log.bind(request_id=row.request_id)

    @property
    def is_claimed(self) -> bool:
        """Whether there is a waiting VM whose name stands in the row, for `begin`."""
        return self._claimed is not None

    async def aclose(self) -> None:
        """Let go of a VM that was claimed and not begun: it ends."""
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            await finish(claimed.connection.aclose())
        await self._drop_files()

    async def launch(self) -> ShimConnection | None:
        """Claim a VM that waits, or launch one and begin the script in it.

        Returns the connection when the script has begun; None when it has not:
        a VM was claimed, or something came up. Raises `LaunchError` when there
        is none to be had.
        """
        if not self._footprint.has_room:
            await self._unless(self._footprint.acquire())
        if not self._footprint.has_room:
            return None
        self._spec = spec = self._spec or await self._load_spec()
        if spec.files and self._files is None and not await self._unless(self._bring_files(spec)):
            return None
        node, engine = self._node, self._row.run.engine
        shape = launch.shape_of(engine, spec, node.images, node.settings)
        if self._changes.has_layers:
            own = await self._unless(self._with_layers(shape, spec))
            return None if own is None else await self._launch_in_turn(own)
        if (vm := self._asked(shape)) is not None:
            await self._claim_waiting(vm)
            return None
        return await self._launch_or_claim(shape)

    async def begin(self) -> ShimConnection | None:
        """Begin the script in the VM that was claimed; return the connection when it has begun.

        None: it could not, or something came up. What became of the VM is for
        `recover` to find out.
        """
        began = self._node.clock.monotonic()
        vm, self._claimed = self._claimed, None
        assert vm is not None
        try:
            connection = await self._unless(self._begun(vm))
        except LaunchError as error:
            self._log.warning("claim_failed", error=error.message, detail=error.detail)
            return None
        if connection is not None:
            took_s = self._node.clock.monotonic() - began
            self._node.metrics.claimed(self._row.run.engine, took_s)
            await self._drop_files()
        return connection

    # --- parts ---------------------------------------------------------------

    def _asked(self, shape: Shape) -> WaitingVm | None:
        """Return a VM that waits. A run that has lost one already gets one of its own."""
        if self._has_asked or self._row.run.epoch > 1:
            return None
        self._has_asked = True
        return self._node.pool.take(shape)

    async def _bring_files(self, spec: RunSpec) -> bool:
        """Have the uploads of the job on this machine, before a VM is claimed that would wait.

        Raises `LaunchError` for one that is gone, `CapacityError` while the store is away.
        """
        account_id, store = self._row.job.account_id, self._node.files
        async with AsyncExitStack() as undo:
            found = []
            for file in spec.files:
                here = store.here(StoredFile(file, account_id, self._row.job.created_at))
                try:
                    path = await undo.enter_async_context(here)
                except GoneError as error:
                    raise LaunchError(error.message) from error
                found.append(LocalFile(file.name, path, file.size_bytes))
            self._files, self._copies = found, undo.pop_all()
        return True

    async def _drop_files(self) -> None:
        self._files = None
        await finish(self._copies.aclose())

    async def _with_layers(self, shape: Shape, spec: RunSpec) -> Shape:
        """Return the shape of a VM that begins from a workspace, whose layers lie here."""
        image = launch.image_of(spec, self._node.images, self._node.settings)
        manifest = await self._changes.begin(image)
        layers = await self._changes.bring(manifest)
        return dataclasses.replace(
            shape,
            image=manifest.image,
            layers=tuple(layers),
            own_layers=len(manifest.own_layers),
        )

    async def _launch_in_turn(self, shape: Shape) -> ShimConnection | None:
        if not await self._turn():
            return None
        try:
            return await self._launch(shape)
        finally:
            self._node.launches.release(_LAUNCH)

    async def _launch_or_claim(self, shape: Shape) -> ShimConnection | None:
        """Launch a VM in this run's turn, unless one waits by then."""
        if not await self._turn():
            return None
        try:
            is_first = self._row.run.epoch == 1
            if not is_first or (vm := self._node.pool.take_late(shape)) is None:
                return await self._launch(shape)
        finally:
            self._node.launches.release(_LAUNCH)
        await self._claim_waiting(vm)
        return None

    async def _launch(self, shape: Shape) -> ShimConnection | None:
        began = self._node.clock.monotonic()
        await self._claim(new_vm_id())
        connection = await self._unless(self._launched(shape))
        if connection is not None:
            took_s = self._node.clock.monotonic() - began
            self._node.metrics.launched(self._row.run.engine, took_s)
            await self._drop_files()
        return connection

    async def _launched(self, shape: Shape) -> ShimConnection:
        node, run = self._node, self._row.run
        spec = await self._taken_spec()
        vm = self._handle.vm
        try:
            node.places.make_run_directory(vm)
        except OSError as error:
            code = JobCode.HOST_DISK_FULL if error.errno == ENOSPC else JobCode.LAUNCH_FAILED
            text = "the host could not make a directory for the VM"
            raise LaunchError(text, str(error), code) from error
        if spec.ignored:
            node.run_log.append(run, _ignored(spec))
        plan = await launch.plan_of(vm, run.epoch, shape, node.images, node.settings)
        return await launch.start(self._engine, plan, spec, node.clock, self._files or ())

    async def _begun(self, vm: WaitingVm) -> ShimConnection:
        spec = await self._taken_spec()
        if spec.ignored:
            with suppress(ShimError):  # `begin` finds out what is wrong.
                await vm.connection.request("note", text=_ignored(spec))
        files = self._files or ()
        await launch.begin(self._engine, vm.handle, vm.connection, spec, self._node.clock, files)
        return vm.connection

    async def _claim_waiting(self, vm: WaitingVm) -> None:
        try:
            await self._claim(vm.handle.vm)
        except BaseException:  # Whether it was written or not: nobody else may have it.
            self._node.pool.throw_away(vm)
            raise
        self._claimed = vm

    async def _claim(self, vm: VmId) -> None:
        """Write down which VM it will be, before anything is done: a crash must not lose it."""
        claimed = dataclasses.replace(
            self._row.run,
            state=RunState.LAUNCHING,
            isolation=self._engine.capabilities.isolation,
            vm_id=vm,
            claimed_at=self._node.clock.now(),
        )
        await self._row.save(claimed)

    async def _turn(self) -> bool:
        """Wait for the turn to launch. False: something came up meanwhile."""

        async def acquired() -> bool:
            await self._node.launches.acquire(self._row.job.account_id, _LAUNCH)
            return True

        return bool(await self._unless(acquired()))

    async def _taken_spec(self) -> RunSpec:
        """Return the spec, which is needed once."""
        spec, self._spec = self._spec, None
        return spec or await self._load_spec()

    async def _load_spec(self) -> RunSpec:
        request_id = self._row.request_id
        return await self._node.database.read(lambda tx: jobs.spec(tx, request_id))

    @property
    def _engine(self) -> Engine:
        return self._node.engines[self._row.run.engine]

    @property
    def _handle(self) -> Handle:
        handle = handle_of(self._node, self._row.run)
        assert handle is not None
        return handle


def _ignored(spec: RunSpec) -> str:
    return f"ignored unknown fields of the request: {', '.join(spec.ignored)}"
