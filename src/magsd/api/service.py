"""What the routes ask of the core: the part of `core.application.Application` they use."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from magsd.core.access import Access
from magsd.core.doors import Doors
from magsd.core.execs import Execs
from magsd.core.files import Files
from magsd.core.usage import Usages
from magsd.core.workspace_archives import WorkspaceArchives
from magsd.core.workspaces import Workspaces
from magsd.engine.base import Capabilities
from magsd.model.lifecycle import Status
from magsd.model.records import (
    JobPage,
    JobSpec,
    JobStatus,
    LogLine,
    LogSource,
    PoolStatus,
    Principal,
    Synced,
)


class Logs(Protocol):
    """A job's log, as far as it is kept."""

    @property
    def lines(self) -> Sequence[LogLine]:
        """The lines, in order."""

    @property
    def truncated(self) -> bool:
        """Whether there are older lines than these."""


class Service(Protocol):
    """The application. Every method may raise a `MagsError`; `ref` is a job's id or name."""

    @property
    def access(self) -> Access:
        """Accounts and tokens."""

    @property
    def workspaces(self) -> Workspaces:
        """Workspaces and their versions."""

    @property
    def archives(self) -> WorkspaceArchives:
        """Workspaces that leave as archives, and come as such."""

    @property
    def files(self) -> Files:
        """Uploads."""

    @property
    def usages(self) -> Usages:
        """What accounts have used."""

    @property
    def execs(self) -> Execs:
        """Commands in VMs that run."""

    @property
    def doors(self) -> Doors:
        """Ways into VMs: URLs, SSH, aliases."""

    def readiness(self) -> str | None:
        """Return None when a script can run, else why not."""

    def engines(self) -> Sequence[Capabilities]:
        """Return what the engines can do that jobs may ask for."""

    def warning(self) -> str | None:
        """Return what an operator should know although scripts can run."""

    async def submit(
        self, principal: Principal, spec: JobSpec, idempotency_key: str | None = None
    ) -> JobStatus:
        """Take a job on."""

    async def status(
        self,
        principal: Principal,
        ref: str,
        *,
        wait_s: float = 0,
        after_generation: int | None = None,
    ) -> JobStatus:
        """Return a status, waiting up to `wait_s` for one newer than `after_generation`."""

    async def list_jobs(
        self,
        principal: Principal,
        *,
        page: int,
        page_size: int,
        status: Status | None = None,
        workspace_id: str | None = None,
    ) -> JobPage:
        """Return one page of the caller's jobs."""

    def pool_status(self) -> PoolStatus:
        """Return how many VMs wait and work."""

    async def stop(self, principal: Principal, ref: str) -> JobStatus:
        """Stop a job; a status that is not final means that it goes on."""

    async def update(
        self,
        principal: Principal,
        ref: str,
        *,
        no_sleep: bool | None = None,
        startup_command: str | None = None,
    ) -> JobStatus:
        """Change settings of a job that is not over."""

    async def sync(self, principal: Principal, ref: str) -> Synced:
        """Keep what a running job has changed so far."""

    async def logs(
        self,
        principal: Principal,
        ref: str,
        *,
        source: LogSource | None = None,
        after: int | None = None,
    ) -> Logs:
        """Return a job's log as it is now."""

    def follow_logs(
        self,
        principal: Principal,
        ref: str,
        *,
        after: int = 0,
        source: LogSource | None = None,
    ) -> AsyncIterator[Sequence[LogLine]]:
        """Yield a job's log as it grows, until the job is over."""
