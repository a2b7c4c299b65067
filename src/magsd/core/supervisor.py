"""One actor for every run that has not ended.

Rows decide which runs there are. `want` is a hint that one was added or has
another goal; what a lost hint would have told is found by looking at the rows
now and then. At the start runs are adopted, and what no run knows is removed.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

import structlog

from magsd.aio import Tasks
from magsd.core import statuses
from magsd.core.node import Node
from magsd.core.remains import give_back, give_back_at_last
from magsd.core.vm_actor import VmActor
from magsd.db import jobs, runs
from magsd.engine.base import Engine
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId, RequestId, VmId
from magsd.model.records import Job, Run, RunSpec

_RECONCILE_S: Final = 15.0
_GIVEN_BACK_AT_ONCE: Final = 8

_log = structlog.get_logger()


class Supervisor:
    """The owner of all actors of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._actors: dict[RequestId, VmActor] = {}
        self._tasks = Tasks(_report)
        self._is_closing = False

    async def start(self) -> None:
        """Show, adopt and clean what an earlier daemon left; then accept hints."""
        rows = await self._unfinished()
        for job, run in rows:
            self._node.events.publish(statuses.of_job(job, run, self._node.settings))
        await self._clean({run.vm_id for _, run in rows if run.vm_id is not None})
        # What lives goes before what waits: it has its VM already.
        for job, run in sorted(rows, key=lambda row: row[1].state is RunState.PENDING):
            self._begin(job, run)
        self._tasks.spawn("reconcile", self._reconcile())

    def want(self, job: Job, run: Run, spec: RunSpec | None = None) -> None:
        """Take note that a job was added or has another goal, after that was committed."""
        if self._is_closing:
            return
        if (actor := self._actors.get(job.request_id)) is not None:
            actor.want(job.goal, job.goal_version)
        elif run.state is RunState.PENDING:
            # Scripts of jobs that wait lie in the database, not in memory.
            is_next = self._node.vms.is_free and self._node.launches.is_free
            self._begin(job, run, spec if is_next else None)

    def run_of(self, request_id: RequestId) -> Run | None:
        """Return the run of a job that has not ended, as it was committed last."""
        actor = self._actors.get(request_id)
        return None if actor is None else actor.run

    async def aclose(self) -> None:
        """Let go of every VM without harming it, and end."""
        self._is_closing = True
        await self._tasks.aclose()

    def _begin(self, job: Job, run: Run, spec: RunSpec | None = None) -> None:
        actor = VmActor(self._node, job, run, spec)
        self._actors[job.request_id] = actor
        self._tasks.spawn(f"run {run.run_id}", self._live(job.request_id, actor))

    async def _live(self, request_id: RequestId, actor: VmActor) -> None:
        try:
            await actor.live()
        finally:
            if self._actors.get(request_id) is actor:
                del self._actors[request_id]

    async def _unfinished(self) -> Sequence[tuple[Job, Run]]:
        name = self._node.settings.node
        return await self._node.database.read(lambda tx: jobs.unfinished(tx, name))

    async def _reconcile(self) -> None:
        while True:
            await self._node.clock.sleep(_RECONCILE_S)
            try:
                await self._look()
            except Exception:  # noqa: BLE001 - looked at again, and each failure told
                _log.exception("reconcile_failed")

    async def _look(self) -> None:
        had_actor = set(self._actors)
        for job, run in await self._unfinished():
            if (actor := self._actors.get(job.request_id)) is not None:
                actor.want(job.goal, job.goal_version)
            elif job.request_id not in had_actor and not self._has_ended(job.request_id):
                _log.info("run_found", request_id=job.request_id, state=run.state)
                self._node.events.publish(statuses.of_job(job, run, self._node.settings))
                self._begin(job, run)

    def _has_ended(self, request_id: RequestId) -> bool:
        """Say whether a job ended after its row was read."""
        status = self._node.events.get(request_id)
        return status is not None and status.is_final

    # --- what was left behind --------------------------------------------------

    async def _clean(self, living: Collection[VmId]) -> None:
        """Give back what belongs to no unfinished run."""
        left = [vm for vm in self._node.places.vms() if vm not in living]
        known = await self._node.database.read(lambda tx: runs.of_vms(tx, left))
        keep = {*living, *await self._give_back(known)}
        for name, engine in self._node.engines.items():
            await _sweep(name, engine, frozenset(keep))
        for vm in left:
            if vm not in known:
                _log.warning("unknown_vm_removed", vm=vm)
                await asyncio.to_thread(self._node.places.remove, vm)

    async def _give_back(self, known: dict[VmId, tuple[AccountId, Run]]) -> list[VmId]:
        """Give back the VMs of runs that have ended; return those that must be tried again."""
        limit = asyncio.Semaphore(_GIVEN_BACK_AT_ONCE)
        failed: list[VmId] = []

        async def attempt(vm: VmId, account_id: AccountId, run: Run) -> None:
            async with limit:
                try:
                    await give_back(self._node, run, account_id)
                except Exception:  # noqa: BLE001 - tried again until it is done
                    _log.exception("give_back_failed", run_id=run.run_id, vm=vm)
                    failed.append(vm)
                    work = give_back_at_last(self._node, run, account_id)
                    self._tasks.spawn(f"give back {vm}", work)

        async with asyncio.TaskGroup() as group:
            for vm, (account_id, run) in known.items():
                group.create_task(attempt(vm, account_id, run), name=f"give back {vm}")
        return failed


async def _sweep(name: str, engine: Engine, keep: frozenset[VmId]) -> None:
    try:
        for line in await engine.sweep(keep):
            _log.info("swept", engine=name, what=line)
    except Exception:  # noqa: BLE001 - what is left hinders nobody, and the next start tries again
        _log.exception("sweep_failed", engine=name)


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
