"""The one task that owns a run: it walks the run to its job's goal, a step at a time.

Nobody else touches the run's VM or writes its row. Every write is guarded by
run and epoch; an actor whose write finds no row has been replaced, gives its
VM back and ends. What may happen next is `model.lifecycle`'s decision, what an
end means `outcome`'s; how a VM is reached is `vm_link`'s.
"""

import asyncio
import dataclasses
from collections.abc import Coroutine
from contextlib import suppress
from errno import ENOSPC
from typing import Any, Final, TypeVar

import structlog

from magsd.aio import backoff_s, finish, unless
from magsd.core import launch, outcome
from magsd.core.node import Node
from magsd.core.outcome import Outcome
from magsd.core.remains import give_back, give_back_at_last, handle_of
from magsd.core.slots import Slots
from magsd.core.vm_link import Found, ScriptEnd, VmLink, known_end
from magsd.db import jobs, runs
from magsd.engine.base import EndReason, Engine, Handle, VmEnd
from magsd.guest.journal import append_note
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import CapacityError, JobCode, LaunchError
from magsd.model.lifecycle import OVER, Goal, RunState, Step, may_launch_again, next_step
from magsd.model.names import new_vm_id
from magsd.model.records import Job, Run, RunSpec

_FAILURES_MAX: Final = 5
"""How often in a row a step may break in a way that nobody foresaw."""

_NOT_READY_S: Final = 1.0

_Result = TypeVar("_Result")
_log = structlog.get_logger()


class FencedError(Exception):
    """Somebody else has the run now."""


class VmActor:
    """The owner of one run."""

    def __init__(self, node: Node, job: Job, run: Run, spec: RunSpec | None = None) -> None:
        self._node = node
        self._job = job
        self._run = run
        self._spec = spec
        self._link: VmLink | None = None
        self._has_slot = False
        self._told: str | None = None
        self._goal_changed = asyncio.Event()
        self._log = _log.bind(request_id=job.request_id)

    @property
    def run(self) -> Run:
        """The run as it was committed last."""
        return self._run

    def want(self, goal: Goal, goal_version: int) -> None:
        """Take note of a goal that has been committed."""
        if goal_version > self._job.goal_version:
            self._job = dataclasses.replace(self._job, goal=goal, goal_version=goal_version)
            self._goal_changed.set()

    async def live(self) -> None:
        """Walk until the run has ended and its VM is given back.

        Cancelled, it lets go of a living VM without harming it.
        """
        try:
            try:
                await self._walk()
            except FencedError:
                self._log.warning("fenced", run_id=self._run.run_id, epoch=self._run.epoch)
                await self._let_go()
            finally:
                await self._detach()
            await give_back_at_last(self._node, self._run, self._job.account_id)
        finally:
            if self._has_slot:
                self._node.vms.release()

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
                self._log.exception("step_failed", step=step, run_id=self._run.run_id)
                await self._node.clock.sleep(backoff_s(failures))
                failures += 1

    def _next_step(self) -> Step | None:
        self._goal_changed.clear()
        return next_step(self._run.state, self._job.goal, is_attached=self._link is not None)

    async def _do(self, step: Step) -> None:
        match step:
            case Step.LAUNCH:
                await self._launch()
            case Step.DISCARD:
                await self._end(outcome.STOPPED)
            case Step.RECOVER:
                await self._recover()
            case Step.FOLLOW:
                await self._follow()
            case Step.STOP:
                await self._stop()

    # --- steps ---------------------------------------------------------------

    async def _launch(self) -> None:
        if not self._has_slot:
            self._has_slot = bool(await self._unless_goal_changes(self._turn(self._node.vms)))
        if not self._has_slot:
            return
        if not await self._unless_goal_changes(self._turn(self._node.launches)):
            return
        try:
            await self._claim()
            await self._start()
        except LaunchError as error:
            self._log.warning("launch_failed", error=error.message, detail=error.detail)
            await self._end(outcome.of_failed_launch(error))
        finally:
            self._node.launches.release()

    async def _turn(self, slots: Slots) -> bool:
        await slots.acquire(self._job.account_id)
        return True

    async def _claim(self) -> None:
        """Write down which VM it will be, before there is one: a crash must not lose it."""
        claimed = dataclasses.replace(
            self._run,
            state=RunState.LAUNCHING,
            isolation=self._engine.capabilities.isolation,
            vm_id=new_vm_id(),
            claimed_at=self._node.clock.now(),
        )
        await self._save(claimed)

    async def _start(self) -> None:
        spec = self._spec or await self._load_spec()
        self._spec = None
        connection = await self._unless_goal_changes(self._started(spec))
        if connection is not None:
            self._attach(VmLink(self._engine, self._handle, connection, self._node.clock))
            self._run = dataclasses.replace(self._run, started_at=self._node.clock.now())

    async def _started(self, spec: RunSpec) -> ShimConnection:
        vm = self._handle.vm
        try:
            self._node.places.make_run_directory(vm)
        except OSError as error:
            code = JobCode.HOST_DISK_FULL if error.errno == ENOSPC else JobCode.LAUNCH_FAILED
            text = "the host could not make a directory for the VM"
            raise LaunchError(text, str(error), code) from error
        if spec.ignored:
            self._append(f"ignored unknown fields of the request: {', '.join(spec.ignored)}")
        plan = await launch.plan_of(
            vm, self._run.epoch, spec, self._node.images, self._node.settings
        )
        return await launch.start(self._engine, plan, spec, self._node.clock)

    async def _follow(self) -> None:
        ended = self._attached.known_end()
        if ended is None:
            await self._mark_running()
            ended = await self._unless_goal_changes(self._attached.script_ended())
        if ended is not None:
            await self._end_by(ended)

    async def _stop(self) -> None:
        # A script that was over before anybody asked for its end keeps its result.
        is_asked = self._run.state is RunState.STOPPING
        if not is_asked and (ended := self._attached.known_end()) is not None:
            await self._end_by(ended)
            return
        await self._mark_running()
        await self._save(dataclasses.replace(self._run, state=RunState.STOPPING))
        await self._attached.terminate()
        await self._end(outcome.STOPPED)

    async def _recover(self) -> None:
        if not self._has_slot:
            self._node.vms.occupy()
            self._has_slot = True
        found = await VmLink.find(self._engine, self._handle, self._node.clock)
        if found.began_at is None and self._run.started_at is None:
            await self._begin_again(found)
            return
        if found.link is not None:
            self._attach(found.link)
        began_at = self._run.started_at or found.began_at
        self._run = dataclasses.replace(self._run, started_at=began_at)
        if found.link is not None and found.end is None:
            with suppress(ShimError):  # Not worth more than a try: the job goes on.
                await found.link.note("the service was restarted; the job went on meanwhile")
        elif self._run.state is RunState.STOPPING:
            await self._end(outcome.STOPPED)
        else:
            await self._end_by(found.end or _traceless())

    async def _begin_again(self, found: Found) -> None:
        """The VM was lost, or is useless, before its script began: take another."""
        if found.link is not None:
            await found.link.aclose()
        if self._job.goal in OVER:
            await self._end(outcome.STOPPED)
            return
        if not may_launch_again(self._run.epoch):
            text = f"{self._run.epoch} VMs were lost before the script began"
            await self._end(outcome.of_failed_launch(LaunchError(text)))
            return
        await give_back(self._node, self._run, self._job.account_id)
        again = dataclasses.replace(
            self._run,
            epoch=self._run.epoch + 1,
            state=RunState.PENDING,
            vm_id=None,
            claimed_at=None,
        )
        await self._save(again)

    async def _mark_running(self) -> None:
        if self._run.state is RunState.LAUNCHING:
            await self._publish(dataclasses.replace(self._run, state=RunState.RUNNING))

    # --- ends ----------------------------------------------------------------

    async def _end_by(self, ended: ScriptEnd) -> None:
        if ended.has_timed_out:
            result = outcome.of_timeout((await self._load_spec()).timeout_s)
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
        await self._publish(
            dataclasses.replace(
                self._run,
                state=RunState.ENDED,
                ended_at=(ended and ended.at) or self._node.clock.now(),
                exit_code=result.exit_code,
                code=result.code,
                error=result.error,
            )
        )

    async def _give_up(self) -> None:
        """Nothing helps: end the run, and its VM with it."""
        await self._detach()
        if self._run.vm_id is not None:
            await self._engine.stop(self._handle)
            if (ended := known_end(self._handle)) is not None:
                await self._end_by(ended)
                return
        await self._end(outcome.of_broken(has_begun=self._run.started_at is not None))

    async def _let_go(self) -> None:
        """Show what whoever has the run now made of it, if it has ended."""
        job = self._job
        found = await self._node.database.read(
            lambda tx: jobs.get(tx, job.account_id, job.request_id)
        )
        if found is not None and found[1].state is RunState.ENDED:
            self._node.publish(*found)

    # --- what the steps are made of ------------------------------------------

    @property
    def _engine(self) -> Engine:
        return self._node.engines[self._run.engine]

    @property
    def _handle(self) -> Handle:
        handle = handle_of(self._node, self._run)
        assert handle is not None
        return handle

    @property
    def _attached(self) -> VmLink:
        assert self._link is not None
        return self._link

    def _attach(self, link: VmLink) -> None:
        self._link = link
        beat = self._node.log_pulses.beat
        link.on_journal(lambda _: beat(self._job.request_id))

    async def _detach(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await finish(link.aclose())

    async def _unless_goal_changes(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        return await unless(self._goal_changed, work)

    async def _load_spec(self) -> RunSpec:
        request_id = self._job.request_id
        return await self._node.database.read(lambda tx: jobs.spec(tx, request_id))

    async def _tell_end(self, text: str) -> None:
        """Append the last line of the log, once, whoever writes the journal now."""
        if self._told == text:
            return
        if self._link is not None:
            try:
                await self._link.note(text)
                self._told = text
                return
            except ShimError as error:
                self._log.debug("note_refused", error=str(error))
            # Only when the shim is gone may anybody else write; the VM is of no use by now.
            await self._detach()
            await self._engine.stop(self._handle)
        if self._run.vm_id is not None:
            self._append(text)
        self._told = text

    def _append(self, text: str) -> None:
        run, places = self._run, self._node.places
        assert run.vm_id is not None
        at_ns = int(self._node.clock.now().timestamp() * 1e9)
        try:
            directory = places.find(run.request_id, run.epoch, run.vm_id)
            append_note(directory or places.make_run_directory(run.vm_id), text, at_ns)
        except OSError as error:  # A full disk must not keep the run from its end.
            self._log.warning("note_lost", text=text, error=str(error))
        self._node.log_pulses.beat(run.request_id)

    async def _save(self, run: Run) -> None:
        await self._write(run, self._job.generation)

    async def _publish(self, run: Run) -> None:
        generation = self._job.generation + 1
        await self._write(run, generation)
        self._job = dataclasses.replace(self._job, generation=generation)
        self._node.publish(self._job, run)

    async def _write(self, run: Run, generation: int) -> None:
        epoch = self._run.epoch
        is_written = await self._node.database.write(
            lambda tx: runs.save(tx, run, epoch=epoch, generation=generation)
        )
        if not is_written:
            raise FencedError
        self._run = run


def _traceless() -> ScriptEnd:
    """What is known of a script that began in a VM of which nothing is left."""
    return ScriptEnd(None, vm_end=VmEnd(EndReason.SHIM_DIED, "its run directory is gone"))
