"""How a run ends, and how the script of one that goes on: recorded, told in the log, published.

Belongs to the run's actor. What an end means is `outcome`'s decision, what
becomes of changes the part of `vm_changes`.
"""

import dataclasses
from datetime import datetime

import structlog

from magsd.core import outcome
from magsd.core.node import Node
from magsd.core.outcome import Outcome
from magsd.core.run_row import RunRow
from magsd.core.vm_changes import VmChanges
from magsd.core.vm_hold import VmHold
from magsd.core.vm_link import ScriptEnd, began_at, known_end
from magsd.db import jobs
from magsd.engine.base import VmEnd
from magsd.model.errors import InvalidError, LaunchError, TooLargeError
from magsd.model.lifecycle import RunState
from magsd.model.records import Run

_log = structlog.get_logger()


class RunEnding:
    """The end of one run."""

    def __init__(self, node: Node, row: RunRow, hold: VmHold, changes: VmChanges) -> None:
        self._node = node
        self._row = row
        self._hold = hold
        self._changes = changes
        self._log = _log.bind(request_id=row.request_id)

    @property
    def is_script_over(self) -> bool:
        """Whether the end of a script is recorded whose VM stays."""
        return self._row.run.script_ended_at is not None

    # --- what it ended by ------------------------------------------------------

    async def by_script(self, ended: ScriptEnd) -> None:
        """Record that the script is over: the end of the run too, unless its VM stays."""
        if ended.vm_end is not None:
            await self.by_lost_vm(ended.vm_end)
        elif self._row.job.persistent:
            await self._stay(ended)
        else:
            await self._end(await self._outcome_of(ended), ended.at)

    async def by_lost_vm(self, vm_end: VmEnd, ended: ScriptEnd | None = None) -> None:
        """Record that the VM has ended. `ended`: how its script did before, if that is news."""
        self._log.warning("vm_lost", reason=vm_end.reason, detail=vm_end.detail)
        await self._hold.detach()  # Nobody is at the other end any more.
        if ended is not None and not self.is_script_over:
            self._row.run = await self.with_script_end(ended)
        result = outcome.of_lost_vm(vm_end)
        if self.is_script_over:
            result = dataclasses.replace(result, exit_code=self._row.run.exit_code)
        await self._end(result)

    async def by_request(self) -> None:
        """Record that the job was stopped."""
        run = self._row.run
        if not self._row.job.persistent:
            await self._end(outcome.STOPPED)
        elif self.is_script_over:
            await self._end(outcome.of_stopped_persistent(run.exit_code))
        else:
            has_begun = run.started_at is not None
            exit_code = outcome.EXIT_STOPPED if has_begun else None
            await self._end(outcome.of_stopped_persistent(exit_code))

    async def by_lost_state(self, error: LaunchError) -> None:
        """Record that there is nothing left that a sleeping job could go on from."""
        self._log.error("state_lost", error=error.message, detail=error.detail)
        await self._end(outcome.of_lost_state(self._row.run.exit_code))

    async def by_failed_launch(self, error: LaunchError) -> None:
        """Record that no VM could be had."""
        await self._end(outcome.of_failed_launch(error))

    async def by_trouble(self) -> None:
        """Nothing helps: end the run, and its VM with it."""
        await self._hold.detach()
        run = self._row.run
        if run.state is RunState.SAVING:
            await self._lose_changes("the service could not keep them, see its log")
            return
        # Without its engine, which an operator may have taken away, nothing can be stopped.
        if run.vm_id is not None and run.engine in self._node.engines:
            keep = self._row.job.is_kept
            vm_end = await self._hold.engine.stop(self._hold.handle, keep_changes=keep)
            began = run.started_at or began_at(self._hold.handle)
            self._row.run = run = dataclasses.replace(run, started_at=began)
            ended = known_end(self._hold.handle)
            if ended is not None and self._row.job.persistent:
                await self.by_lost_vm(vm_end, ended)
                return
            if ended is not None:
                await self.by_script(ended)
                return
        await self._end(outcome.of_broken(has_begun=run.started_at is not None))

    # --- what is done then -----------------------------------------------------

    async def save(self) -> None:
        """Keep what the run changed, and publish its end."""
        await self._hold.detach()
        try:
            kept = await self._changes.keep(self._hold.handle)
        except (LookupError, InvalidError, TooLargeError) as error:
            await self._lose_changes(str(error))
            return
        if kept.is_aside:
            await self._hold.tell_end(outcome.of_version_aside(kept.version))
        elif not kept.is_synced:
            await self._hold.tell_end(outcome.of_pending_version(kept.version))
        await self._publish(dataclasses.replace(self._row.run, is_synced=kept.is_synced))

    async def _lose_changes(self, why: str) -> None:
        """End a run whose changes cannot be kept, and say so whatever else its end is."""
        run = self._row.run
        self._log.error("changes_lost", run_id=run.run_id, why=why)
        result = outcome.of_lost_changes(run.exit_code, why)
        assert result.line is not None
        await self._hold.tell_end(result.line)
        lost = dataclasses.replace(run, is_synced=False, code=result.code, error=result.error)
        await self._publish(lost)

    async def _stay(self, ended: ScriptEnd) -> None:
        result = await self._outcome_of(ended)
        if result.line is not None:
            await self._hold.note(result.line)
        await self._row.publish(self._with_script_end(result, ended))

    async def with_script_end(self, ended: ScriptEnd) -> Run:
        """Return the run with the final result of its script, which is not committed yet."""
        return self._with_script_end(await self._outcome_of(ended), ended)

    def _with_script_end(self, result: Outcome, ended: ScriptEnd) -> Run:
        """Return the run with the final result of its script, whatever becomes of its VM."""
        run = self._row.run
        return dataclasses.replace(
            run,
            state=RunState.RUNNING if run.state is RunState.LAUNCHING else run.state,
            exit_code=result.exit_code,
            script_ended_at=ended.at or self._node.clock.now(),
        )

    async def _outcome_of(self, ended: ScriptEnd) -> Outcome:
        if ended.has_timed_out:
            request_id = self._row.request_id
            spec = await self._node.database.read(lambda tx: jobs.spec(tx, request_id))
            assert spec.timeout_s is not None
            return outcome.of_timeout(spec.timeout_s)
        assert ended.wait_status is not None
        return outcome.of_script(ended.wait_status)

    async def _end(self, result: Outcome, at: datetime | None = None) -> None:
        """Commit and publish how the run ended. Its VM is given back afterwards:
        nobody has to wait for that, and it is done again after a crash."""
        if result.line is not None:
            await self._hold.tell_end(result.line)
        run = dataclasses.replace(
            self._row.run,
            ended_at=at or self._node.clock.now(),
            exit_code=result.exit_code,
            code=result.code,
            error=result.error,
        )
        if self._row.job.is_kept and run.started_at is not None:
            await self._row.save(dataclasses.replace(run, state=RunState.SAVING))
        else:
            await self._publish(run)

    async def _publish(self, run: Run) -> None:
        await self._row.publish(dataclasses.replace(run, state=RunState.ENDED))
        self._node.metrics.job_ended(run.engine, run.code)
