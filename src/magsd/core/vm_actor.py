"""The one task that owns a run: it walks the run to its job's goal, a step at a time.

Nobody else touches the run's VM or writes its row. An actor whose write finds
no row has been replaced, gives its VM back and ends. What may happen next is
`model.lifecycle`'s decision; how a run comes to a VM is `vm_start`'s part, how
it ends `run_ending`'s, how it sleeps `sleeping`'s, how a VM is reached `vm_link`'s.
"""

import asyncio
import dataclasses
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog

from magsd.aio import backoff_s, unless
from magsd.core.footprint import Footprint
from magsd.core.node import Node
from magsd.core.remains import give_back, give_back_at_last
from magsd.core.run_ending import RunEnding
from magsd.core.run_row import FencedError, RunRow
from magsd.core.sleeping import Sleeping
from magsd.core.vm_changes import VmChanges
from magsd.core.vm_hold import VmHold
from magsd.core.vm_link import Found, ScriptEnd, VmLink, began_at
from magsd.core.vm_start import HeadStart, VmStart
from magsd.db import jobs
from magsd.engine.base import EndReason, VmEnd
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.amount import Amount
from magsd.model.errors import (
    CapacityError,
    ConflictError,
    LaunchError,
    MagsError,
)
from magsd.model.lifecycle import ASLEEP, OVER, Goal, RunState, Step, may_launch_again, next_step
from magsd.model.names import AccountId
from magsd.model.records import Job, Run, Synced

_FAILURES_MAX: Final = 5
"""How often in a row a step may break in a way that nobody foresaw."""

_NOT_READY_S: Final = 1.0
_TRACELESS: Final = VmEnd(EndReason.SHIM_DIED, "its run directory is gone")
"""What is known of a VM of which nothing is left."""

_Result = TypeVar("_Result")
_log = structlog.get_logger()


class VmActor:
    """The owner of one run."""

    def __init__(
        self, node: Node, job: Job, run: Run, need: Amount, start: HeadStart | None = None
    ) -> None:
        self._node = node
        self._row = row = RunRow(node, job, run)
        self._goal_changed = asyncio.Event()
        self._changes = changes = VmChanges(node, row)
        start, unless_ = start or HeadStart(), self._unless_goal_changes
        self._footprint = own = Footprint(
            node, job.account_id, need, run.state, has_room=start.has_room
        )
        self._start = VmStart(node, row, changes, own, start, unless_)
        self._hold = hold = VmHold(node, row)
        self._ending = ending = RunEnding(node, row, hold, changes)
        self._sleeping = Sleeping(node, row, hold, changes, own, ending, unless_)
        self._log = _log.bind(request_id=job.request_id)

    @property
    def run(self) -> Run:
        """The run as it was committed last."""
        return self._row.run

    @property
    def job(self) -> Job:
        """The job as it was committed last, as far as the actor has been told."""
        return self._row.job

    def want(self, goal: Goal, goal_version: int) -> None:
        """Take note of a goal that has been committed."""
        if self._row.want(goal, goal_version):
            self._goal_changed.set()

    async def sync(self) -> Synced:
        """Keep what a job that runs has changed so far, and return when it is stored.

        Raises `ConflictError` when it does not run, and what `VmChanges.sync` raises. One that
        sleeps has kept all that it changed; `Sleeping.synced` says what that raises.
        """
        if self.run.state is RunState.SLEEPING:
            return await self._sleeping.synced()
        if self._hold.link is None or self.run.state is not RunState.RUNNING:
            raise ConflictError("the job does not run at this moment: try again when it does")
        return await self._changes.sync(self._hold.handle)

    async def set_no_sleep(self, no_sleep: bool) -> None:
        """Change whether the job may sleep. Raises `ConflictError` when it has ended meanwhile."""
        try:
            await self._row.set_no_sleep(no_sleep)
        except FencedError:
            raise ConflictError("the job is over: submit it again") from None

    def woken(self) -> "asyncio.Future[MagsError | None]":
        """Return what tells all who wait for the VM that it is awake, or why it is not."""
        return self._sleeping.woken()

    async def live(self) -> None:
        """Walk until the run has ended and its VM is given back.

        Cancelled, it lets go of a living VM without harming it.
        """
        try:
            try:
                await self._walk()
            except FencedError:
                self._log.warning("fenced", run_id=self.run.run_id, epoch=self.run.epoch)
                await self._let_go()
            finally:
                # At once: who is told of the end may submit the next.
                self._footprint.release_quota()
                self._sleeping.tell(ConflictError("the job has ended: see its status"))
                await self._start.aclose()
                await self._hold.detach()
            await give_back_at_last(self._node, self.run, self._account_id)
        finally:
            self._footprint.release_room()

    async def _walk(self) -> None:
        failures = 0
        while (step := self._next_step()) is not None:
            try:
                # What sleeps has all that it is on its disk, and time.
                if failures <= _FAILURES_MAX or self._is_asleep:
                    await self._do(step)
                else:
                    await self._ending.by_trouble()
                failures = 0
            except (CapacityError, LaunchError) as error:
                # The database, or the engine, is not ready: a VM and a result are worth
                # waiting, however long that takes.
                self._log.warning("must_wait", step=step, why=error.message, detail=error.detail)
                await self._node.clock.sleep(_NOT_READY_S)
            except FencedError:
                raise
            except Exception:  # noqa: BLE001 - a run must end, whatever breaks
                self._log.exception("step_failed", step=step, run_id=self.run.run_id)
                await self._node.clock.sleep(backoff_s(failures))
                failures += 1

    def _next_step(self) -> Step | None:
        self._goal_changed.clear()
        return next_step(
            self.run.state,
            self._row.job.goal,
            is_attached=self._hold.link is not None,
            is_claimed=self._start.is_claimed,
            is_script_over=self._ending.is_script_over,
        )

    async def _do(self, step: Step) -> None:
        does = {
            Step.LAUNCH: self._launch,
            Step.DISCARD: self._ending.by_request,
            Step.BEGIN: self._begin,
            Step.RECOVER: self._recover,
            Step.FOLLOW: self._follow,
            Step.STAY: self._stay,
            Step.STOP: self._stop,
            Step.SAVE: self._save,
            Step.SLEEP: self._sleep,
            Step.REST: self._sleeping.rest,
            Step.WAKE: self._sleeping.wake,
            Step.LEAVE: self._ending.by_request,
        }
        await does[step]()

    # --- steps ---------------------------------------------------------------

    async def _launch(self) -> None:
        try:
            self._attach_begun(await self._start.launch())
        except LaunchError as error:
            self._log.warning("launch_failed", error=error.message, detail=error.detail)
            self._node.metrics.launch_failed(self.run.engine, error.job_code)
            await self._ending.by_failed_launch(error)

    async def _begin(self) -> None:
        self._attach_begun(await self._start.begin())

    def _attach_begun(self, connection: ShimConnection | None) -> None:
        """Follow a script that has begun; None when it has not."""
        if connection is not None:
            engine, handle = self._hold.engine, self._hold.handle
            self._hold.attach(VmLink(engine, handle, connection, self._node.clock))
            # By the same clock as its end, and as a later daemon would find it.
            began = began_at(handle) or self._node.clock.now()
            self._row.run = dataclasses.replace(self.run, started_at=began)

    async def _follow(self) -> None:
        self._sleeping.be_awake()
        ended = self._hold.attached.known_end()
        if ended is None:
            await self._mark_running()
            ended = await self._unless_goal_changes(self._hold.attached.script_ended())
        if ended is not None and ended.vm_end is not None:
            await self._lost(ended.vm_end)
        elif ended is not None:
            await self._ending.by_script(ended)

    async def _stay(self) -> None:
        self._sleeping.be_awake()
        if self._sleeping.follows_startup:
            await self._sleeping.follow_startup()
            return
        vm_end = await self._unless_goal_changes(self._hold.attached.vm_ended())
        if vm_end is not None:
            await self._lost(vm_end)

    async def _lost(self, vm_end: VmEnd, ended: ScriptEnd | None = None) -> None:
        """The VM has ended. `ended`: how its script did before, if that is news."""
        if self._sleeping.goes_on_after(vm_end):
            await self._sleeping.go_on(vm_end, ended)
        else:
            await self._ending.by_lost_vm(vm_end, ended)

    async def _stop(self) -> None:
        # A script that was over before anybody asked for its end keeps its result.
        is_asked, is_over = self.run.state is RunState.STOPPING, self._ending.is_script_over
        link = self._hold.attached
        if not is_asked and not is_over and (ended := link.known_end()) is not None:
            await self._ending.by_script(ended)
            return
        await self._mark_running()
        await self._row.save(dataclasses.replace(self.run, state=RunState.STOPPING))
        if not is_over:
            await link.terminate()
        await self._ending.by_request()

    async def _sleep(self) -> None:
        self._footprint.occupy()
        await self._sleeping.fall_asleep()

    async def _save(self) -> None:
        self._footprint.occupy(asleep=self.run.slept_at is not None)
        await self._ending.save()

    async def _recover(self) -> None:
        if self.run.state is RunState.WAKING:
            await self._sleeping.fall_back()
            return
        self._footprint.occupy()
        async with self._node.recoveries:
            found = await VmLink.find(self._hold.engine, self._hold.handle, self._node.clock)
        if found.began_at is None and self.run.started_at is None:
            await self._begin_again(found)
            return
        began = self.run.started_at or found.began_at
        self._row.run = dataclasses.replace(self.run, started_at=began)
        is_persistent = self._row.job.persistent
        if found.link is not None:
            self._hold.attach(found.link)
            self._sleeping.found_awake()
        if found.link is not None and (found.end is None or is_persistent):
            with suppress(ShimError):  # Not worth more than a try: the job goes on.
                await found.link.note("the service was restarted; the job went on meanwhile")
        elif self.run.state is RunState.STOPPING or self._was_ended_on_request(found):
            await self._ending.by_request()
        elif is_persistent:
            has_ended = found.end is not None and found.end.vm_end is None
            vm_end = found.vm_end or _TRACELESS
            await self._lost(vm_end, found.end if has_ended else None)
        else:
            await self._ending.by_script(found.end or ScriptEnd(None, vm_end=_TRACELESS))

    def _was_ended_on_request(self, found: Found) -> bool:
        """Say whether the VM was ended here because somebody wants the job to end."""
        if self._row.job.goal not in OVER or found.vm_end is None:
            return False
        # A script that was over before keeps its result; the end of one whose VM stays has its own.
        is_lost = self._row.job.persistent or (found.end is not None and found.end.vm_end)
        return bool(is_lost) and found.vm_end.reason is EndReason.KILLED

    async def _begin_again(self, found: Found) -> None:
        """The VM was lost, or is useless, before its script began: take another."""
        if found.link is not None:
            await found.link.aclose()
        if self._row.job.goal in OVER:
            await self._ending.by_request()
            return
        if not may_launch_again(self.run.epoch):
            text = f"{self.run.epoch} VMs were lost before the script began"
            await self._ending.by_failed_launch(LaunchError(text))
            return
        await give_back(self._node, self.run, self._account_id)
        again = dataclasses.replace(
            self.run,
            epoch=self.run.epoch + 1,
            state=RunState.PENDING,
            vm_id=None,
            claimed_at=None,
        )
        await self._row.save(again)

    async def _mark_running(self) -> None:
        if self.run.state is RunState.LAUNCHING:
            await self._row.publish(dataclasses.replace(self.run, state=RunState.RUNNING))

    # --- what the steps are made of ------------------------------------------

    async def _let_go(self) -> None:
        """Show what whoever has the run now made of it, if it has ended."""
        job = self._row.job
        found = await self._node.database.read(
            lambda tx: jobs.get(tx, job.account_id, job.request_id)
        )
        if found is not None and found[1].state is RunState.ENDED:
            self._node.publish(*found)

    @property
    def _is_asleep(self) -> bool:
        return self.run.state in ASLEEP and self._row.job.goal not in OVER

    @property
    def _account_id(self) -> AccountId:
        return self._row.job.account_id

    async def _unless_goal_changes(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        return await unless(self._goal_changed, work)
