"""An app around a real application, whose engine runs nothing; each test has accounts of its own.

One application and one event loop serve all tests of this folder: to begin
another for each of them would take longer than all of them do.
"""

import asyncio
import uuid
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import pytest_asyncio

from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.api.waits import Waits
from magsd.model.records import JobSpec, Principal, Scope
from tests.api_service import ADMIN, DEADLINE_S, opened

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class Account(NamedTuple):
    """A token's holder, and the jobs that he has."""

    application: object
    principal: Principal
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    async def submit(self, script="true", **fields):
        return await self.application.submit(self.principal, JobSpec(script, **fields))

    async def run(self, script="true", **fields):
        """Run a script and return the status of its job when it is over."""
        return await self.until((await self.submit(script, **fields)).request_id)

    async def running(self, script="sleep 3000", **fields):
        """Begin a script, and return its status when it runs."""
        job = await self.submit(script, **fields)
        return await self.until(job.request_id, lambda status: status.started_at is not None)

    async def until(self, request_id, is_reached=lambda status: status.is_final):
        async with asyncio.timeout(DEADLINE_S):
            status = await self.application.status(self.principal, request_id)
            while not is_reached(status):
                assert not status.is_final, status
                status = await self.application.status(
                    self.principal, request_id, wait_s=5, after_generation=status.generation
                )
        return status

    async def jobs(self):
        return (await self.application.list_jobs(self.principal, page=1, page_size=100)).jobs


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def application(tmp_path_factory):
    """It answers a `stop` at once, whatever is left to do then."""
    directory = tmp_path_factory.mktemp("service")
    async with opened(directory, SystemClock(), stop_wait_s=0) as application:
        await application.access.first_token(ADMIN)
        yield application


async def _account(application, *scopes):
    root = await application.access.authenticate(ADMIN)
    _, secret = await application.access.create_token(
        root, name="theirs", account=f"account {uuid.uuid4()}", scopes=scopes
    )
    return Account(application, await application.access.authenticate(secret), secret)


@pytest_asyncio.fixture(loop_scope="session")
async def admin(application):
    """An admin token of an account that has nothing yet."""
    return await _account(application, Scope.ADMIN, Scope.JOBS)


@pytest_asyncio.fixture(loop_scope="session")
async def stranger(application):
    """An ordinary token of another account."""
    return await _account(application, Scope.JOBS)


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def app(application, waits):
    return create_app(application, SystemClock(), waits)


@pytest_asyncio.fixture(loop_scope="session")
async def anybody(app):
    """A client without a token."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mags") as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def client(app, admin):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://mags", headers=admin.headers
    ) as client:
        yield client
