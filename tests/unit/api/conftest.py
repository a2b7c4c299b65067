"""An app around real access control and a book of jobs that never run."""

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import httpx
import pytest

from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.api.waits import Waits
from magsd.core.access import Access
from magsd.db.database import Database
from magsd.model.errors import NotFoundError
from magsd.model.lifecycle import Status
from magsd.model.names import RequestId, Subdomain, new_request_id
from magsd.model.records import JobPage, JobSpec, JobStatus, LogLine, LogSource, Principal

NOW = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)


class Log(NamedTuple):
    lines: Sequence[LogLine]
    truncated: bool = False


class JobBook:
    """What the routes need of an application, for jobs that are written down and never run."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.unready: str | None = None
        self.specs: list[tuple[JobSpec, str | None]] = []
        self.jobs: dict[str, JobStatus] = {}
        self.log: list[LogLine] = []
        self.is_truncated = False
        self.waits: list[tuple[float, int | None]] = []
        self.follow_forever = False

    def readiness(self) -> str | None:
        return self.unready

    async def submit(
        self, principal: Principal, spec: JobSpec, idempotency_key: str | None = None
    ) -> JobStatus:
        self.specs.append((spec, idempotency_key))
        return self.add(principal, name=spec.name or "mags-job-1")

    def add(self, principal: Principal, **changes) -> JobStatus:
        status = dataclasses.replace(
            JobStatus(
                request_id=RequestId(new_request_id()),
                account_id=principal.account_id,
                name="a job",
                status=Status.RUNNING,
                vm_id="0123abcd",
                workspace_id=None,
                persistent=False,
                no_sleep=False,
                subdomain=Subdomain("0123456789ab"),
                url="http://0123456789ab.apps.localhost:7071",
                exit_code=0,
                queue_duration_ms=1,
                acquire_duration_ms=20,
                script_duration_ms=0,
                created_at=NOW,
                started_at=NOW,
                completed_at=None,
                error=None,
                code=None,
                engine="gvisor",
                isolation="application-kernel",
                generation=2,
            ),
            **changes,
        )
        self.jobs[status.request_id] = status
        return status

    async def status(
        self,
        principal: Principal,
        ref: str,
        *,
        wait_s: float = 0,
        after_generation: int | None = None,
    ) -> JobStatus:
        for job in self.jobs.values():
            if job.account_id == principal.account_id and ref in (job.request_id, job.name):
                if wait_s:
                    self.waits.append((wait_s, after_generation))
                    await SystemClock().sleep(wait_s)
                return job
        raise NotFoundError(f"there is no job {ref!r}")

    async def list_jobs(
        self,
        principal: Principal,
        *,
        page: int,
        page_size: int,
        status: Status | None = None,
        workspace_id: str | None = None,
    ) -> JobPage:
        jobs = [
            job
            for job in self.jobs.values()
            if job.account_id == principal.account_id and status in (None, job.status)
        ]
        return JobPage(tuple(jobs[:page_size]), len(jobs), page, page_size)

    async def stop(self, principal: Principal, ref: str) -> JobStatus:
        return await self.status(principal, ref)

    async def logs(
        self,
        principal: Principal,
        ref: str,
        *,
        source: LogSource | None = None,
        after: int | None = None,
    ) -> Log:
        await self.status(principal, ref)
        lines = [
            line for line in self.log if line.seq > (after or 0) and source in (None, line.source)
        ]
        return Log(lines, self.is_truncated)

    async def follow_logs(
        self,
        principal: Principal,
        ref: str,
        *,
        after: int = 0,
        source: LogSource | None = None,
    ) -> AsyncGenerator[Sequence[LogLine]]:
        yield (await self.logs(principal, ref, source=source, after=after)).lines
        if self.follow_forever:
            await SystemClock().sleep(3600)


class Account(NamedTuple):
    principal: Principal
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A migrated database, to be copied: that is quicker than migrating another."""
    path = tmp_path_factory.mktemp("database") / "mags.db"

    async def make():
        await (await Database.open(f"sqlite:///{path}")).aclose()

    asyncio.run(make())
    return path


@pytest.fixture
async def access(tmp_path, empty_database):
    shutil.copyfile(empty_database, tmp_path / "mags.db")
    database = await Database.open(f"sqlite:///{tmp_path}/mags.db")
    try:
        yield Access(database, SystemClock())
    finally:
        await database.aclose()


@pytest.fixture
async def admin(access):
    secret = await access.first_token(None)
    return Account(await access.authenticate(secret), secret)


@pytest.fixture
async def stranger(access, admin):
    """A token of another account."""
    _, secret = await access.create_token(admin.principal, name="theirs", account="others")
    return Account(await access.authenticate(secret), secret)


@pytest.fixture
def book(access):
    return JobBook(access)


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def app(book, waits):
    return create_app(book, SystemClock(), waits)


@pytest.fixture
async def anybody(app):
    """A client without a token."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mags") as client:
        yield client


@pytest.fixture
async def client(app, admin):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://mags", headers=admin.headers
    ) as client:
        yield client
