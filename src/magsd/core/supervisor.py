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
from sqlalchemy import Connection

from magsd.aio import SingleFlight, Tasks, finish
from magsd.core import statuses
from magsd.core.footprint import counted
from magsd.core.goals import with_goal
from magsd.core.node import Node
from magsd.core.remains import give_back, give_back_at_last
from magsd.core.vm_actor import VmActor
from magsd.core.vm_start import HeadStart
from magsd.db import jobs, runs
from magsd.engine.base import Engine
from magsd.model.amount import Amount
from magsd.model.errors import CapacityError, ConflictError, MagsError, NotFoundError
from magsd.model.lifecycle import ASLEEP, Goal, RunState
from magsd.model.names import AccountId, RequestId, VmId
from magsd.model.records import Job, Run, Synced

_RECONCILE_S: Final = 15.0
_GIVEN_BACK_AT_ONCE: Final = 8
_FOUND_AT_ONCE: Final = 500
_TELL_S: Final = 5.0
_WITHOUT_VM: Final = (RunState.PENDING, RunState.SLEEPING)

_log = structlog.get_logger()


class Supervisor:
    """The owner of all actors of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._actors: dict[RequestId, VmActor] = {}
        self._expected: set[RequestId] = set()
        self._tasks = Tasks(_report)
        self._asking = SingleFlight()
        self._is_closing = False

    async def start(self) -> None:
        """Show, adopt and clean what an earlier daemon left; then accept hints."""
        rows = await self._unfinished()
        for job, run, need in rows:
            self._node.quotas.occupy(job.account_id, counted(need, run.state))
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
            if actor.run.state not in _WITHOUT_VM
        )

    def sleeping(self) -> Mapping[str, int]:
        """Return how many jobs sleep, by engine."""
        return Counter(
            actor.run.engine
            for actor in self._actors.values()
            if actor.run.state is RunState.SLEEPING
        )

    def jobs(self) -> Iterator[tuple[Job, Run]]:
        """Yield the jobs that have not ended, with their runs, as they are now."""
        for actor in list(self._actors.values()):
            yield actor.job, actor.run

    def run_of(self, request_id: RequestId) -> Run | None:
        """Return the run of a job that has not ended, as it was committed last."""
        actor = self._actors.get(request_id)
        return None if actor is None else actor.run

    async def put_to_sleep(self, request_id: RequestId) -> None:
        """Have a job's VM sleep, unless somebody uses it by then. Raises `ConflictError`."""
        if not self._is_closing and request_id in self._actors:
            await self._ask(request_id, Goal.ASLEEP)

    async def wake(self, request_id: RequestId) -> None:
        """Return when a job's VM is awake. The caller counts as a user of it already.

        All who wait at a time are told the same. Raises `CapacityError` when
        it could not be woken, or not in time, `ConflictError` when it ends.
        """
        if self._is_closing:
            raise CapacityError("the service is stopping: try again in a moment")
        if (actor := self._actors.get(request_id)) is None:
            raise ConflictError("the job is over: submit it again")
        woken = actor.woken()
        wait_s = self._node.settings.wake_wait_s
        try:
            # A little longer than the attempt itself: then all are told what came of it.
            async with asyncio.timeout(wait_s + _TELL_S):
                await self._asking.do(request_id, lambda: self._ask(request_id, Goal.RUNNING))
                if actor.job.goal is Goal.ASLEEP and not woken.done():
                    # Somebody's attempt had failed, and said so between the two.
                    await self._ask(request_id, Goal.RUNNING)
                error = await asyncio.shield(woken)
        except TimeoutError:
            text = f"the job sleeps, and was not awake within {wait_s:g} s: try again in a moment"
            raise CapacityError(text) from None
        if error is not None:
            raise type(error)(error.message, error.detail)

    def wake_by_itself(self, request_id: RequestId) -> None:
        """Have a job that may not sleep woken, in the background."""
        if not self._is_closing:
            self._tasks.spawn(f"wake {request_id}", self._wake_by_itself(request_id))

    async def _wake_by_itself(self, request_id: RequestId) -> None:
        try:
            with self._node.uses.use(request_id):
                await self.wake(request_id)
        except MagsError as error:
            _log.warning("not_woken_by_itself", request_id=request_id, error=error.message)

    async def _ask(self, request_id: RequestId, goal: Goal) -> None:
        """Commit another goal of a job and tell its actor."""
        if (actor := self._actors.get(request_id)) is None:
            raise ConflictError("the job is over: submit it again")
        account_id = actor.job.account_id

        def store(tx: Connection) -> Job:
            rows = jobs.get(tx, account_id, request_id)
            if rows is None:
                raise NotFoundError("the job is gone")
            return with_goal(tx, *rows, goal)

        async def ask() -> None:
            self.want(await self._node.database.write(store))

        await finish(ask())

    async def set_no_sleep(self, request_id: RequestId, no_sleep: bool) -> None:
        """Change whether a job may sleep; one that sleeps and may not is woken in the background.

        Raises `ConflictError` when it is over.
        """
        if self._is_closing:
            raise CapacityError("the service is stopping: try again in a moment")
        if (actor := self._actors.get(request_id)) is None:
            raise ConflictError("the job is over: submit it again")
        await actor.set_no_sleep(no_sleep)
        if no_sleep and actor.run.state in ASLEEP:
            self.wake_by_itself(request_id)

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
            self._node.uses.forget(request_id)

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
                self._node.quotas.occupy(job.account_id, counted(need, run.state))
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
        await self._node.snapshots.sweep(keep)
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
