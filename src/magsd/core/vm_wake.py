"""How a run that sleeps comes to a VM again: room, and one that goes on from what was kept.

That is its memory where there is a snapshot, which is used once, else its disk.

Belongs to the run's actor, by way of `sleeping`. Each decision is written down
before it is carried out. What is lost with the disk of a job with a workspace
is replaced by its newest version, and said so.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import finish
from magsd.core import launch, outcome
from magsd.core.footprint import Footprint
from magsd.core.launch import Shape
from magsd.core.node import Node
from magsd.core.run_row import RunRow
from magsd.core.vm_changes import VmChanges
from magsd.db import jobs, runs, workspaces
from magsd.engine.base import Engine, Plan
from magsd.guest.shim import ShimConnection
from magsd.model.amount import Amount
from magsd.model.errors import JobCode, LaunchError
from magsd.model.layers import Manifest
from magsd.model.lifecycle import RunState
from magsd.model.names import VmId
from magsd.model.records import Run, RunSpec, Version

FROM_MEMORY: Final = "resumed from memory"
_LAUNCH: Final = Amount(vms=1)
_log = structlog.get_logger()


class VmWake:
    """The way of one run from asleep to awake."""

    def __init__(self, node: Node, row: RunRow, changes: VmChanges, footprint: Footprint) -> None:
        self._node = node
        self._row = row
        self._changes = changes
        self._footprint = footprint

    async def run(self) -> ShimConnection:
        """Return a connection to a VM that goes on where the last one was stopped.

        The row says `waking` when a VM was begun. On failure or cancellation
        there is none, and the disk is there as before. Raises `LaunchError`
        (its code is `STATE_LOST` when nothing is left to go on from),
        `QuotaError`, `CapacityError`.
        """
        node = self._node
        self._footprint.rise()
        await self._footprint.acquire()
        await node.launches.acquire(self._row.job.account_id, _LAUNCH)
        began = node.clock.monotonic()
        try:
            connection = await self._launched()
        finally:
            node.launches.release(_LAUNCH)
        node.metrics.woken(self._row.run.engine, node.clock.monotonic() - began)
        return connection

    async def _launched(self) -> ShimConnection:
        request_id, run = self._row.request_id, self._row.run
        manifest = await self._node.database.read(lambda tx: runs.manifest(tx, run.run_id))
        if manifest is None:
            raise LaunchError("it is not known what the VM's disk belongs to")
        layers = await self._changes.bring(manifest)
        spec = await self._node.database.read(lambda tx: jobs.spec(tx, request_id))
        claimed = dataclasses.replace(
            run,
            epoch=run.epoch + 1,
            state=RunState.WAKING,
            isolation=self._engine.capabilities.isolation,
            log_epoch=run.journal,
            slept_version=None,  # From now on the disk may hold more.
        )
        # What is committed must be known, also to an attempt that is given up meanwhile.
        await finish(self._row.save(claimed))
        shape = _shape(run.engine, spec, manifest, layers)
        why_cold = ""
        if (snapshot := await asyncio.to_thread(self._node.snapshots.take, _vm(run))) is not None:
            try:
                connection = await self._resumed(shape, snapshot)
                await self._node.snapshots.drop(_vm(run))  # It has all that it needs of it.
                return connection
            except LaunchError as error:
                _log.warning("not_resumed", request_id=request_id, error=error.message,
                             detail=error.detail)  # fmt: skip
                why_cold = error.message
        is_cut = await self._cut_off()
        try:
            line = outcome.of_wake(is_cut=is_cut, why_cold=why_cold)
            return await self._begun(shape, spec, line)
        except LaunchError as error:
            if error.job_code is not JobCode.STATE_LOST:
                raise
            lost = error
        _log.error("disk_lost", request_id=request_id, vm=run.vm_id, detail=lost.detail)
        if (version := await self._newest()) is None:
            raise lost
        return await self._from_version(version, spec)

    async def _resumed(self, shape: Shape, snapshot: Path) -> ShimConnection:
        """Have the VM go on from its memory. Raises `LaunchError`: there is none then."""
        plan = await self._plan(shape, has_disk=True)
        return await launch.resume(self._engine, plan, snapshot, line=FROM_MEMORY)

    async def _cut_off(self) -> bool:
        """Record the end of a script that was to go on from memory. False: it was over before."""
        run = self._row.run
        if run.script_ended_at is not None:
            return False
        now = self._node.clock.now()
        over = dataclasses.replace(run, exit_code=outcome.EXIT_STOPPED, script_ended_at=now)
        await finish(self._row.save(over))
        return True

    async def _plan(self, shape: Shape, *, has_disk: bool) -> Plan:
        node, run = self._node, self._row.run
        plan = await launch.plan_of(_vm(run), run.epoch, shape, node.images, node.settings)
        try:
            node.places.make_run_directory(plan.vm)
        except OSError as error:
            raise LaunchError("the host has no room for the VM", str(error)) from error
        return dataclasses.replace(plan, has_disk=has_disk)

    async def _begun(
        self, shape: Shape, spec: RunSpec, line: str, *, has_disk: bool = True
    ) -> ShimConnection:
        node, request_id = self._node, self._row.request_id
        command = await node.database.read(lambda tx: jobs.startup_command(tx, request_id))
        plan = await self._plan(shape, has_disk=has_disk)
        return await launch.start_again(
            self._engine, plan, spec, node.clock, startup_command=command, line=line
        )

    async def _newest(self) -> Version | None:
        """Return the version that the job's workspace would give its next run."""
        job = self._row.job
        name = job.workspace_id
        if name is None or not job.is_kept:
            return None
        return await self._node.database.read(
            lambda tx: workspaces.newest(tx, job.account_id, name)
        )

    async def _from_version(self, version: Version, spec: RunSpec) -> ShimConnection:
        async with self._node.layer_names:
            await finish(self._row.begin_from(version.manifest, version.version))
        layers = await self._changes.bring(version.manifest)
        number, at = version.version, version.created_at.isoformat(timespec="seconds")
        said = f"workspace version {number} of {at.removesuffix('+00:00')}Z"
        await finish(self._row.save(dataclasses.replace(self._row.run, restored_from=said)))
        shape = _shape(self._row.run.engine, spec, version.manifest, layers)
        line = f"its own disk was lost: started from workspace version {number}"
        return await self._begun(shape, spec, line, has_disk=False)

    @property
    def _engine(self) -> Engine:
        return self._node.engines[self._row.run.engine]


def _vm(run: Run) -> VmId:
    assert run.vm_id is not None
    return run.vm_id


def _shape(engine: str, spec: RunSpec, manifest: Manifest, layers: Sequence[Path]) -> Shape:
    return Shape(
        engine=engine,
        image=manifest.image,
        layers=tuple(layers),
        vcpus=spec.vcpus,
        memory_mb=spec.memory_mb,
        disk_gb=spec.disk_gb,
        own_layers=len(manifest.own_layers),
    )
