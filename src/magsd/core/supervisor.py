"""One actor for every run that has not ended.

Rows decide which runs there are. `want` is a hint that one was added or has
another goal; what a lost hint would have told is found by looking at the rows
now and then. At the start runs are adopted, and what no run knows is removed.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import structlog

from magsd.aio import Tasks
from magsd.core import statuses
from magsd.core.node import Node
from magsd.core.remains import give_back, give_back_at_last
from magsd.core.vm_actor import VmActor
from magsd.core.vm_start import HeadStart
from magsd.db import jobs, runs
from magsd.engine.base import Engine
from magsd.model.amount import Amount
from magsd.model.errors import CapacityError, ConflictError, MagsError
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId, RequestId, VmId
from magsd.model.records import Job, Run, Synced

_RECONCILE_S: Final = 15.0
_GIVEN_BACK_AT_ONCE: Final = 8
_FOUND_AT_ONCE: Final = 500

_log = structlog.get_logger()


class Supervisor:
    """The owner of all actors of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._actors: dict[RequestId, VmActor] = {}
        self._expected: set[RequestId] = set()
        self._tasks = Tasks(_report)
        self._is_closing = False

    async def start(self) -> None:
        """Show, adopt and clean what an earlier daemon left; then accept hints."""
        rows = await self._unfinished()
        for job, run, need in rows:
            self._node.quotas.occupy(job.account_id, need)
            self._node.events.publish(statuses.of_job(job, run, self._node.settings))
        await self._clean({run.vm_id for _, run, _ in rows if run.vm_id is not None})
        # What lives goes before what waits: it has its VM already.
        for job, run, need in sorted(rows, key=lambda row: row[1].state is RunState.PENDING):
            self._begin(job, run, need)
        self._tasks.spawn("reconcile", self._reconcile())

    @contextmanager
    def expecting(self, request_id: RequestId) -> Iterator[None]:
        """Leave a job whose row is written inside the block to whoever writes it.

        It comes by `add`, with what is counted for it already; otherwise it is
        found after the block, as any that was lost.
        """
        self._expected.add(request_id)
        try:
            yield
        finally:
            self._expected.discard(request_id)

    def add(self, job: Job, run: Run, need: Amount, start: HeadStart) -> None:
        """Take note that a job was added, after that was committed."""
        if not self._is_closing and job.request_id not in self._actors:
            self._begin(job, run, need, start)

    def want(self, job: Job) -> None:
        """Take note that a job has another goal, after that was committed."""
        if not self._is_closing and (actor := self._actors.get(job.request_id)) is not None:
            actor.want(job.goal, job.goal_version)

    def count(self) -> Mapping[str, int]:
        """Return how many jobs have a VM, by engine."""
        return Counter(
            actor.run.engine
            for actor in self._actors.values()
            if actor.run.state is not RunState.PENDING
        )

    def run_of(self, request_id: RequestId) -> Run | None:
        """Return the run of a job that has not ended, as it was committed last."""
        actor = self._actors.get(request_id)
        return None if actor is None else actor.run

    async def set_no_sleep(self, request_id: RequestId, no_sleep: bool) -> None:
        """Change whether a job may sleep. Raises `ConflictError` when it is over."""
        if self._is_closing:
            raise CapacityError("the service is stopping: try again in a moment")
        if (actor := self._actors.get(request_id)) is None:
            raise ConflictError("the job is over: submit it again")
        await actor.set_no_sleep(no_sleep)

    async def sync(self, request_id: RequestId) -> Synced:
        """Keep what a job has changed so far. Raises `ConflictError` when it does not run.

        It goes on when the caller is cancelled.
        """
        if (actor := self._actors.get(request_id)) is None or self._is_closing:
            raise ConflictError("the job does not run at this moment: nothing can be kept")
        work: asyncio.Task[Synced | MagsError]
        work = self._tasks.spawn(f"sync {request_id}", _outcome_of(actor.sync()))
        await asyncio.wait([work])
        if work.cancelled():
            raise CapacityError("the service is stopping: try again in a moment")
        result = work.result()
        if isinstance(result, MagsError):
            raise result
        return result

    async def aclose(self) -> None:
        """Let go of every VM without harming it, and end."""
        self._is_closing = True
        await self._tasks.aclose()

    def _begin(self, job: Job, run: Run, need: Amount, start: HeadStart | None = None) -> None:
        actor = VmActor(self._node, job, run, need, start)
        self._actors[job.request_id] = actor
        self._tasks.spawn(f"run {run.run_id}", self._live(job.request_id, actor))

    async def _live(self, request_id: RequestId, actor: VmActor) -> None:
        try:
            await actor.live()
        finally:
            if self._actors.get(request_id) is actor:
                del self._actors[request_id]

    async def _unfinished(
        self, only: Collection[RequestId] | None = None
    ) -> Sequence[tuple[Job, Run, Amount]]:
        name = self._node.settings.node
        return await self._node.database.read(lambda tx: jobs.unfinished(tx, name, only))

    async def _reconcile(self) -> None:
        while True:
            await self._node.clock.sleep(_RECONCILE_S)
            try:
                await self._look()
            except Exception:  # noqa: BLE001 - looked at again, and each failure told
                _log.exception("reconcile_failed")

    async def _look(self) -> None:
        name, had_actor = self._node.settings.node, set(self._actors)
        goals = await self._node.database.read(lambda tx: jobs.goals(tx, name))
        lost = []
        for request_id, (goal, goal_version) in goals.items():
            if (actor := self._actors.get(request_id)) is not None:
                actor.want(goal, goal_version)
            elif request_id not in had_actor and request_id not in self._expected:
                lost.append(request_id)
        if lost:
            await self._find(lost)

    async def _find(self, lost: Sequence[RequestId]) -> None:
        """Begin to work on runs that had no actor when their rows were read."""
        for job, run, need in await self._unfinished(lost[:_FOUND_AT_ONCE]):
            if job.request_id not in self._actors and not self._has_ended(job.request_id):
                _log.info("run_found", request_id=job.request_id, state=run.state)
                self._node.quotas.occupy(job.account_id, need)
                self._node.events.publish(statuses.of_job(job, run, self._node.settings))
                self._begin(job, run, need)

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


async def _outcome_of(work: Coroutine[Any, Any, Synced]) -> Synced | MagsError:
    """Return what became of it; a refusal is no failure of the task."""
    try:
        return await work
    except MagsError as error:
        return error


async def _sweep(name: str, engine: Engine, keep: frozenset[VmId]) -> None:
    try:
        for line in await engine.sweep(keep):
            _log.info("swept", engine=name, what=line)
    except Exception:  # noqa: BLE001 - what is left hinders nobody, and the next start tries again
        _log.exception("sweep_failed", engine=name)


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
