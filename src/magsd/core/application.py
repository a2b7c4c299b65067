"""The application: everything that a caller can ask of this service, behind one face.

The edges (HTTP, later SSH) speak with this class only. It puts the parts of
the core together, and owns the order in which they start and end.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

import structlog

from magsd.aio import Tasks
from magsd.core.access import Access
from magsd.core.doors import Doors
from magsd.core.execs import Execs
from magsd.core.files import Files
from magsd.core.idle import Idle
from magsd.core.jobs import Jobs
from magsd.core.leases import Leases
from magsd.core.logs import Logs
from magsd.core.loop_watch import watch_loop
from magsd.core.node import Node
from magsd.core.retention import Retention
from magsd.core.settings import CoreSettings
from magsd.core.supervisor import Supervisor
from magsd.core.usage import Usages
from magsd.core.workspace_archives import WorkspaceArchives
from magsd.core.workspace_upkeep import WorkspaceUpkeep
from magsd.core.workspaces import Workspaces
from magsd.engine.base import Capabilities, Engine
from magsd.model.errors import CapacityError, MagsError
from magsd.model.lifecycle import Status
from magsd.model.records import (
    JobPage,
    JobSpec,
    JobStatus,
    LogLine,
    LogPage,
    LogSource,
    PoolStatus,
    Principal,
    Synced,
)

_PREPARE_AGAIN_S = 30.0
_PROBE_S = 5.0
_RELOAD_S = 5.0
_SAVE_LAST_USED_S = 60.0

_log = structlog.get_logger()


class Application:
    """A running service. Made by `open`; every method may be called until `aclose`."""

    def __init__(self, node: Node) -> None:
        self.access = Access(node.database, node.clock)
        self.settings: CoreSettings = node.settings
        self._node = node
        self._supervisor = Supervisor(node)
        self.files = Files(node)
        self.usages = Usages(node.database, node.clock)
        self._jobs = Jobs(node, self._supervisor, self.files)
        self._upkeep = WorkspaceUpkeep(node)
        self.workspaces = Workspaces(node, self._upkeep)
        self.archives = WorkspaceArchives(node)
        self._logs = Logs(node, self._jobs, self._supervisor)
        self.leases = Leases(node, self._supervisor)
        self.execs = Execs(node, self._jobs, self.leases)
        self.doors = Doors(node, self.access, self._jobs, self.leases)
        self._idle = Idle(node, self._supervisor)
        self._tasks = Tasks(_report)
        self._is_closing = False
        node.metrics.watch_queue(lambda: node.room.waiting)
        node.metrics.watch_vms(self._vms)
        node.metrics.watch_readiness(self.readiness)

    @classmethod
    async def open(cls, node: Node) -> "Application":
        """Adopt the VMs that run, clean up what an earlier daemon left, and begin to work.

        An engine that cannot work here does not keep the service from starting:
        `readiness` tells, and it is tried again.
        """
        application = cls(node)
        try:
            for name, engine in node.engines.items():
                await application._prepare(name, engine)
            await node.quotas.load(node.database)
            node.archive.start()
            await node.uploads.start()
            await application._supervisor.start()
            await application.doors.load()
            node.pool.start()
            application._idle.start()
            application._tasks.spawn("quotas", application._reload_quotas())
            application._tasks.spawn("loop lag", watch_loop(node.metrics, node.clock))
            application._tasks.spawn("engines", application._prepare_again())
            application._tasks.spawn("database", application._probe_database())
            application._tasks.spawn("retention", Retention(node, node.archive).run())
            application._tasks.spawn("upkeep", application._upkeep.run())
            application._tasks.spawn("tokens", application._save_last_used())
            application._tasks.spawn("grants", application.doors.grants.run())
        except BaseException:  # what was begun ends here, also when cancelled
            await application.aclose()
            raise
        return application

    async def aclose(self) -> None:
        """Let go of living VMs without harming them, and end. Idempotent.

        What `node` was made of stays open: it belongs to whoever made it.
        """
        self._is_closing = True
        await self._idle.aclose()
        await self.execs.aclose()
        await self._supervisor.aclose()
        await self._node.pool.aclose()
        await self._tasks.aclose()
        await self._node.uploads.aclose()
        await self._node.archive.aclose()
        await self.access.save_last_used()
        await self.doors.aclose()

    def readiness(self) -> str | None:
        """Return None when a script can run, else one sentence why not."""
        if self._is_closing:
            return "the service is stopping"
        if (reason := self._node.unusable.get(self.settings.default_engine)) is not None:
            return reason
        if (trouble := self._node.database.trouble) is not None:
            return f"the database cannot be written: {trouble}"
        try:
            self._node.images.get(self.settings.standard_image)
        except MagsError as error:
            return error.message
        return None

    def engines(self) -> Sequence[Capabilities]:
        """Return what the engines can do that jobs may ask for."""
        return [engine.capabilities for engine in self._node.engines.values()]

    def warning(self) -> str | None:
        """Return what an operator should know although scripts can run, in one sentence."""
        if self._node.archive.trouble is not None:
            return "the object store cannot be used: logs stay on this machine until it can"
        return self.doors.trouble()

    async def submit(
        self, principal: Principal, spec: JobSpec, idempotency_key: str | None = None
    ) -> JobStatus:
        """Record a job durably and see to it that it runs. See `Jobs.submit`."""
        return await self._jobs.submit(principal, spec, idempotency_key)

    async def status(
        self,
        principal: Principal,
        ref: str,
        *,
        wait_s: float = 0,
        after_generation: int | None = None,
    ) -> JobStatus:
        """Return what a job is, after waiting for news if asked. See `Jobs.status`."""
        return await self._jobs.status(
            principal, ref, wait_s=wait_s, after_generation=after_generation
        )

    async def list_jobs(
        self,
        principal: Principal,
        *,
        page: int,
        page_size: int,
        status: Status | None = None,
        workspace_id: str | None = None,
    ) -> JobPage:
        """Return page `page` (from 1) of the caller's jobs."""
        return await self._jobs.list_jobs(
            principal, page=page, page_size=page_size, status=status, workspace_id=workspace_id
        )

    async def stop(self, principal: Principal, ref: str) -> JobStatus:
        """End a job; its status is not final yet if that takes long. See `Jobs.stop`."""
        return await self._jobs.stop(principal, ref)

    async def update(
        self,
        principal: Principal,
        ref: str,
        *,
        no_sleep: bool | None = None,
        startup_command: str | None = None,
    ) -> JobStatus:
        """Change settings of a job that is not over. See `Jobs.update`."""
        return await self._jobs.update(
            principal, ref, no_sleep=no_sleep, startup_command=startup_command
        )

    async def sync(self, principal: Principal, ref: str) -> Synced:
        """Keep what a running job has changed in its workspace. See `Jobs.sync`."""
        return await self._jobs.sync(principal, ref)

    async def logs(
        self,
        principal: Principal,
        ref: str,
        *,
        source: LogSource | None = None,
        after: int | None = None,
    ) -> LogPage:
        """Return a job's lines as they are now. See `Logs.page`."""
        return await self._logs.page(principal, ref, source=source, after=after)

    def follow_logs(
        self,
        principal: Principal,
        ref: str,
        *,
        after: int = 0,
        source: LogSource | None = None,
    ) -> AsyncIterator[Sequence[LogLine]]:
        """Yield a job's lines in batches as they come, until it has ended. See `Logs.follow`."""
        return self._logs.follow(principal, ref, after=after, source=source)

    def pool_status(self) -> PoolStatus:
        """Return how many VMs wait and work."""
        idle = sum(self._node.pool.count().values())
        busy = sum(self._supervisor.count().values())
        return PoolStatus(idle, busy, self.settings.pool_min, self.settings.pool_max)

    def _vms(self) -> Mapping[tuple[str, str], int]:
        counted = {
            "idle": self._node.pool.count(),
            "busy": self._supervisor.count(),
            "sleeping": self._supervisor.sleeping(),
        }
        return {
            (engine, state): counts.get(engine, 0)
            for engine in self._node.engines
            for state, counts in counted.items()
        }

    async def _reload_quotas(self) -> None:
        while True:
            await self._node.clock.sleep(_RELOAD_S)
            with suppress(CapacityError):
                await self._node.quotas.load(self._node.database)

    async def _prepare(self, name: str, engine: Engine) -> None:
        try:
            await engine.prepare()
        except MagsError as error:
            if self._node.unusable.get(name) != error.message:
                _log.error("engine_not_ready", engine=name, error=error.message, why=error.detail)
            self._node.unusable[name] = error.message
        else:
            self._node.unusable.pop(name, None)

    async def _prepare_again(self) -> None:
        while True:
            await self._node.clock.sleep(_PREPARE_AGAIN_S)
            for name in list(self._node.unusable):
                await self._prepare(name, self._node.engines[name])

    async def _probe_database(self) -> None:
        """Find out that trouble is over, also when nobody asks for anything meanwhile."""
        while True:
            await self._node.clock.sleep(_PROBE_S)
            if self._node.database.trouble is not None:
                await self._node.database.probe()

    async def _save_last_used(self) -> None:
        while True:
            await self._node.clock.sleep(_SAVE_LAST_USED_S)
            await self.access.save_last_used()


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
