"""Which jobs nobody uses: found out for all of a node by one task, and put to sleep.

A job is idle when over its idle time nobody held a lease of its VM and the
guest's own processes used next to nothing of a processor. What they used is
asked at both ends of that time and not between, so that a thousand VMs cost
little more than one.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from magsd.aio import Tasks
from magsd.core.node import Node
from magsd.core.remains import handle_of
from magsd.core.supervisor import Supervisor
from magsd.engine.base import Handle
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.stats import stats
from magsd.model.errors import MagsError
from magsd.model.lifecycle import Goal, RunState
from magsd.model.names import RequestId
from magsd.model.records import Job, Run

LOOK_S: Final = 2.0
_BUSY_SHARE: Final = 0.01
"""Of one processor: who uses less over the idle time does nothing."""
_ASKED_AT_ONCE: Final = 16
_ANSWER_S: Final = 5.0
_WAKE_AGAIN_S: Final = 30.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watch:
    """The time since which a VM may have been idle."""

    epoch: int
    """Of its run: another VM begins anew."""
    since: float
    """On the clock's monotonic scale."""
    cpu_ns: int
    """What its guest had used by then."""

    def holds(self, epoch: int, used_until: float | None) -> bool:
        """Say whether it is of this VM, and nobody used that since."""
        return self.epoch == epoch and (used_until is None or used_until <= self.since)

    def is_due(self, idle_s: float, now: float) -> bool:
        """Say whether it is time to ask what the guest has used meanwhile."""
        return now - self.since >= idle_s

    def is_idle(self, cpu_ns: int, now: float) -> bool:
        """Say whether a guest that has used so much by now did next to nothing since."""
        return cpu_ns - self.cpu_ns < _BUSY_SHARE * (now - self.since) * 1e9


class Idle:
    """The task of one node."""

    def __init__(self, node: Node, supervisor: Supervisor) -> None:
        self._node = node
        self._supervisor = supervisor
        self._watches: dict[RequestId, Watch] = {}
        self._asked: set[RequestId] = set()
        self._turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._wake_at = float("-inf")
        self._tasks = Tasks(_report)

    def start(self) -> None:
        """Begin to look."""
        self._tasks.spawn("idle jobs", self._run())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        await self._tasks.aclose()

    async def _run(self) -> None:
        while True:
            await self._node.clock.sleep(LOOK_S)
            try:
                self.look()
            except Exception:  # noqa: BLE001 - looked at again, and each failure told
                _log.exception("idle_look_failed")

    def look(self) -> None:
        """Begin to ask those that may be idle by now; wake what must not sleep and does."""
        now = self._node.clock.monotonic()
        may_wake = now >= self._wake_at
        watches, self._watches = self._watches, {}
        for job, run in self._supervisor.jobs():
            if not job.persistent:
                continue
            request_id = job.request_id
            if self._may_be_idle(job, run):
                watch = watches.get(request_id)
                if watch and not watch.holds(run.epoch, self._node.uses.ended_at(request_id)):
                    watch = None
                if watch is not None:
                    self._watches[request_id] = watch
                if watch is None or watch.is_due(self._idle_s(job), now):
                    self._ask(job, run, watch)
            elif may_wake and run.state is RunState.SLEEPING and job.no_sleep:
                self._wake_at = now + _WAKE_AGAIN_S
                self._supervisor.wake_by_itself(request_id)

    def _may_be_idle(self, job: Job, run: Run) -> bool:
        is_awake = run.state is RunState.RUNNING and job.goal is Goal.RUNNING
        return is_awake and not job.no_sleep and not self._node.uses.count(job.request_id)

    def _idle_s(self, job: Job) -> int:
        default = self._node.settings.limits.idle_timeout_s
        return default if job.idle_timeout_s is None else job.idle_timeout_s

    def _ask(self, job: Job, run: Run, watch: Watch | None) -> None:
        if job.request_id not in self._asked:
            self._asked.add(job.request_id)
            self._tasks.spawn(f"idle? {job.request_id}", self._judge(job, run, watch))

    async def _judge(self, job: Job, run: Run, watch: Watch | None) -> None:
        """Ask what a guest has used; put it to sleep, or begin its idle time anew."""
        request_id, clock = job.request_id, self._node.clock
        handle = handle_of(self._node, run)
        assert handle is not None
        try:
            async with self._turns:
                cpu_ns = await self._cpu_ns(run.engine, handle)
            now = clock.monotonic()
            if watch is not None and watch.is_idle(cpu_ns, now):
                if watch.holds(run.epoch, self._node.uses.ended_at(request_id)):
                    _log.info("idle", request_id=request_id)
                    await self._supervisor.put_to_sleep(request_id)
            else:
                self._watches[request_id] = Watch(run.epoch, now, cpu_ns)
        except (MagsError, LookupError, OSError) as error:
            # It has ended, or somebody wants something else of it.
            _log.debug("not_judged", request_id=request_id, why=repr(error))
        finally:
            self._asked.discard(request_id)

    async def _cpu_ns(self, engine: str, handle: Handle) -> int:
        """Return what a guest's own processes have used; what its host sees where it does not say.

        Raises `LookupError` when the VM has ended.
        """
        try:
            async with asyncio.timeout(_ANSWER_S):
                connection = await ShimConnection.open(
                    handle.run_directory, handle.vm, handle.epoch
                )
                try:
                    return (await stats(connection)).cpu_ns
                finally:
                    await connection.aclose()
        except (ShimError, OSError, TimeoutError) as error:
            _log.debug("guest_says_nothing", vm=handle.vm, why=repr(error))
        return (await self._node.engines[engine].stats(handle)).cpu_ns


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
