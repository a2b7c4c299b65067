"""The one task that owns a run: it walks the run to its job's goal, a step at a time.

Nobody else touches the run's VM or writes its row. An actor whose write finds
no row has been replaced, gives its VM back and ends. What may happen next is
`model.lifecycle`'s decision, what an end means `outcome`'s; how a run comes to
a VM is `vm_start`'s part, how a VM is reached `vm_link`'s.
"""

import asyncio
import dataclasses
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog

from magsd.aio import backoff_s, finish, unless
from magsd.core import outcome
from magsd.core.node import Node
from magsd.core.outcome import Outcome
from magsd.core.remains import give_back, give_back_at_last, handle_of
from magsd.core.run_row import FencedError, RunRow
from magsd.core.vm_changes import VmChanges
from magsd.core.vm_link import Found, ScriptEnd, VmLink, began_at, known_end
from magsd.core.vm_start import HeadStart, VmStart
from magsd.db import jobs
from magsd.engine.base import EndReason, Engine, Handle, VmEnd
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.amount import Amount
from magsd.model.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    JobCode,
    LaunchError,
    TooLargeError,
)
from magsd.model.lifecycle import OVER, Goal, RunState, Step, may_launch_again, next_step
from magsd.model.names import AccountId
from magsd.model.records import Job, Run, Synced

_FAILURES_MAX: Final = 5
"""How often in a row a step may break in a way that nobody foresaw."""

_NOT_READY_S: Final = 1.0

_Result = TypeVar("_Result")
_log = structlog.get_logger()


class VmActor:
    """The owner of one run."""

    def __init__(
        self, node: Node, job: Job, run: Run, need: Amount, start: HeadStart | None = None
    ) -> None:
        self._node = node
        self._row = RunRow(node, job, run)
        self._need = need
        self._goal_changed = asyncio.Event()
        self._changes = VmChanges(node, self._row)
        self._start = VmStart(
            node, self._row, self._changes, need, start or HeadStart(), self._unless_goal_changes
        )
        self._link: VmLink | None = None
        self._log = _log.bind(request_id=job.request_id)

    @property
    def run(self) -> Run:
        """The run as it was committed last."""
        return self._row.run

    def want(self, goal: Goal, goal_version: int) -> None:
        """Take note of a goal that has been committed."""
        if self._row.want(goal, goal_version):
            self._goal_changed.set()

    async def sync(self) -> Synced:
        """Keep what a job that runs has changed so far, and return when it is stored.

        Raises `ConflictError` when it does not run, and what `VmChanges.sync` raises.
        """
        if self._link is None or self.run.state is not RunState.RUNNING:
            raise ConflictError("the job does not run at this moment: try again when it does")
        return await self._changes.sync(self._handle)

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
                self._node.quotas.give_back(self._account_id, self._need)
                await self._start.aclose()
                await self._detach()
            await give_back_at_last(self._node, self.run, self._account_id)
        finally:
            self._start.release_room()

    async def _walk(self) -> None:
        failures = 0
        while (step := self._next_step()) is not None:
            try:
                if failures <= _FAILURES_MAX:
                    await self._do(step)
                else:
                    await self._give_up()
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
            is_attached=self._link is not None,
            is_claimed=self._start.is_claimed,
        )

    async def _do(self, step: Step) -> None:
        match step:
            case Step.LAUNCH:
                await self._launch()
            case Step.DISCARD:
                await self._end(outcome.STOPPED)
            case Step.BEGIN:
                self._attach_begun(await self._start.begin())
            case Step.RECOVER:
                await self._recover()
            case Step.FOLLOW:
                await self._follow()
            case Step.STOP:
                await self._stop()
            case Step.SAVE:
                await self._save()

    # --- steps ---------------------------------------------------------------

    async def _launch(self) -> None:
        try:
            self._attach_begun(await self._start.launch())
        except LaunchError as error:
            self._log.warning("launch_failed", error=error.message, detail=error.detail)
            self._node.metrics.launch_failed(self.run.engine, error.job_code)
            await self._end(outcome.of_failed_launch(error))

    def _attach_begun(self, connection: ShimConnection | None) -> None:
        """Follow a script that has begun; None when it has not."""
        if connection is not None:
            self._attach(VmLink(self._engine, self._handle, connection, self._node.clock))
            # By the same clock as its end, and as a later daemon would find it.
            began = began_at(self._handle) or self._node.clock.now()
            self._row.run = dataclasses.replace(self.run, started_at=began)

    async def _follow(self) -> None:
        ended = self._attached.known_end()
        if ended is None:
            await self._mark_running()
            ended = await self._unless_goal_changes(self._attached.script_ended())
        if ended is not None:
            await self._end_by(ended)

    async def _stop(self) -> None:
        # A script that was over before anybody asked for its end keeps its result.
        is_asked = self.run.state is RunState.STOPPING
        if not is_asked and (ended := self._attached.known_end()) is not None:
            await self._end_by(ended)
            return
        await self._mark_running()
        await self._row.save(dataclasses.replace(self.run, state=RunState.STOPPING))
        await self._attached.terminate()
        await self._end(outcome.STOPPED)

    async def _save(self) -> None:
        self._start.occupy_room()
        await self._detach()
        try:
            kept = await self._changes.keep(self._handle)
        except (LookupError, InvalidError, TooLargeError) as error:
            await self._lose_changes(str(error))
            return
        if kept.is_aside:
            await self._tell_end(outcome.of_version_aside(kept.version))
        elif not kept.is_synced:
            await self._tell_end(outcome.of_pending_version(kept.version))
        await self._publish_end(dataclasses.replace(self.run, is_synced=kept.is_synced))

    async def _lose_changes(self, why: str) -> None:
        """End a run whose changes cannot be kept, and say so whatever else its end is."""
        self._log.error("changes_lost", run_id=self.run.run_id, why=why)
        result = outcome.of_lost_changes(self.run.exit_code, why)
        assert result.error is not None
        await self._tell_end(result.error)
        lost = dataclasses.replace(self.run, is_synced=False, code=result.code, error=result.error)
        await self._publish_end(lost)

    async def _recover(self) -> None:
        self._start.occupy_room()
        async with self._node.recoveries:
            found = await VmLink.find(self._engine, self._handle, self._node.clock)
        if found.began_at is None and self.run.started_at is None:
            await self._begin_again(found)
            return
        if found.link is not None:
            self._attach(found.link)
        began = self.run.started_at or found.began_at
        self._row.run = dataclasses.replace(self.run, started_at=began)
        if found.link is not None and found.end is None:
            with suppress(ShimError):  # Not worth more than a try: the job goes on.
                await found.link.note("the service was restarted; the job went on meanwhile")
        elif self.run.state is RunState.STOPPING or self._was_ended_on_request(found):
            await self._end(outcome.STOPPED)
        else:
            await self._end_by(found.end or _traceless())

    def _was_ended_on_request(self, found: Found) -> bool:
        """Say whether the VM was ended here because somebody wants the job to end."""
        if self._row.job.goal not in OVER or found.end is None or found.end.vm_end is None:
            return False
        return found.end.vm_end.reason is EndReason.KILLED

    async def _begin_again(self, found: Found) -> None:
        """The VM was lost, or is useless, before its script began: take another."""
        if found.link is not None:
            await found.link.aclose()
        if self._row.job.goal in OVER:
            await self._end(outcome.STOPPED)
            return
        if not may_launch_again(self.run.epoch):
            text = f"{self.run.epoch} VMs were lost before the script began"
            await self._end(outcome.of_failed_launch(LaunchError(text)))
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

    # --- ends ----------------------------------------------------------------

    async def _end_by(self, ended: ScriptEnd) -> None:
        if ended.has_timed_out:
            request_id = self._row.request_id
            spec = await self._node.database.read(lambda tx: jobs.spec(tx, request_id))
            result = outcome.of_timeout(spec.timeout_s)
        elif ended.wait_status is not None:
            result = outcome.of_script(ended.wait_status)
        else:
            assert ended.vm_end is not None
            self._log.warning("vm_lost", reason=ended.vm_end.reason, detail=ended.vm_end.detail)
            await self._detach()  # Nobody is at the other end any more.
            result = outcome.of_lost_vm(ended.vm_end)
        await self._end(result, ended)

    async def _end(self, result: Outcome, ended: ScriptEnd | None = None) -> None:
        """Commit and publish how the run ended. Its VM is given back afterwards:
        nobody has to wait for that, and it is done again after a crash."""
        if result.error is not None and result.code is not JobCode.SCRIPT_FAILED:
            await self._tell_end(result.error)
        run = dataclasses.replace(
            self.run,
            ended_at=(ended and ended.at) or self._node.clock.now(),
            exit_code=result.exit_code,
            code=result.code,
            error=result.error,
        )
        if self._row.job.is_kept and run.started_at is not None:
            await self._row.save(dataclasses.replace(run, state=RunState.SAVING))
        else:
            await self._publish_end(run)

    async def _publish_end(self, run: Run) -> None:
        await self._row.publish(dataclasses.replace(run, state=RunState.ENDED))
        self._node.metrics.job_ended(run.engine, run.code)

    async def _give_up(self) -> None:
        """Nothing helps: end the run, and its VM with it."""
        await self._detach()
        if self.run.state is RunState.SAVING:
            await self._lose_changes("the service could not keep them, see its log")
            return
        # Without its engine, which an operator may have taken away, nothing can be stopped.
        if self.run.vm_id is not None and self.run.engine in self._node.engines:
            await self._engine.stop(self._handle)
            if (ended := known_end(self._handle)) is not None:
                await self._end_by(ended)
                return
        await self._end(outcome.of_broken(has_begun=self.run.started_at is not None))

    async def _let_go(self) -> None:
        """Show what whoever has the run now made of it, if it has ended."""
        job = self._row.job
        found = await self._node.database.read(
            lambda tx: jobs.get(tx, job.account_id, job.request_id)
        )
        if found is not None and found[1].state is RunState.ENDED:
            self._node.publish(*found)

    # --- what the steps are made of ------------------------------------------

    @property
    def _account_id(self) -> AccountId:
        return self._row.job.account_id

    @property
    def _engine(self) -> Engine:
        return self._node.engines[self.run.engine]

    @property
    def _handle(self) -> Handle:
        handle = handle_of(self._node, self.run)
        assert handle is not None
        return handle

    @property
    def _attached(self) -> VmLink:
        assert self._link is not None
        return self._link

    def _attach(self, link: VmLink) -> None:
        self._link = link
        beat = self._node.log_pulses.beat
        link.on_journal(lambda _: beat(self._row.request_id))

    async def _detach(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await finish(link.aclose())

    async def _unless_goal_changes(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        return await unless(self._goal_changed, work)

    async def _tell_end(self, text: str) -> None:
        """Append the last line of the log, unless it is there: whoever writes the journal now,
        and whoever did when this was tried before, here or in an earlier daemon."""
        if self.run.vm_id is None or await self._has_told(text):
            return
        if self._link is not None:
            try:
                await self._link.note(text)
                return
            except ShimError as error:
                self._log.debug("note_refused", error=str(error))
            # Only when the shim is gone may anybody else write; the VM is of no use by now.
            await self._detach()
            await self._engine.stop(self._handle)
            if await self._has_told(text):
                return
        self._node.run_log.append(self.run, text)

    async def _has_told(self, text: str) -> bool:
        return await asyncio.to_thread(self._node.run_log.ends_with, self.run, text)


def _traceless() -> ScriptEnd:
    """What is known of a script that began in a VM of which nothing is left."""
    return ScriptEnd(None, vm_end=VmEnd(EndReason.SHIM_DIED, "its run directory is gone"))
