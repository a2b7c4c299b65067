"""What accounts have used, in each kind of database."""

import dataclasses
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import insert

from magsd.aio import SystemClock
from magsd.core.usage import Usages
from magsd.db import accounts, files, jobs, naps, runs
from magsd.db.database import Database
from magsd.db.schema import layer
from magsd.model.errors import JobCode
from magsd.model.lifecycle import Goal, RunState
from magsd.model.names import (
    TokenId,
    new_file_id,
    new_request_id,
    new_run_id,
    new_subdomain,
    new_vm_id,
)
from magsd.model.records import Job, Principal, Run, RunSpec
from magsd.model.uploads import StoredFile, UploadedFile

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
MIDNIGHT = datetime(2026, 1, 31, tzinfo=UTC)


class StillClock(SystemClock):
    def now(self):
        return NOW


@pytest.fixture
async def database(database_url):
    database = await Database.open(database_url)
    yield database
    await database.aclose()


@pytest.fixture
async def principal(database):
    """Return a function that returns who speaks for an account."""

    async def principal(name):
        account = await database.write(lambda tx: accounts.ensure(tx, name, NOW))
        return Principal(account.account_id, name, TokenId("tok_1"), frozenset())

    return principal


@pytest.fixture
def ran(database):
    """Return a function that stores a job whose script ran from one moment to another."""

    async def store(
        owner, begin, end=None, state=RunState.ENDED, code=None, slept_at=None, naps_=()
    ):
        job_id = new_request_id()
        new = Job(
            job_id, owner.account_id, "name", None, False, False, new_subdomain(),
            Goal.RUNNING, 1, 1, begin,
        )  # fmt: skip
        run = Run(new_run_id(), job_id, 1, RunState.PENDING, "fake", "none", begin)
        later = dataclasses.replace(
            run,
            state=state,
            vm_id=new_vm_id(),
            started_at=None if state is RunState.PENDING else begin,
            ended_at=end,
            code=code,
            slept_at=slept_at,
        )

        def write(tx):
            spec = RunSpec("", {}, 1, "standard", 1, 128, 1)
            jobs.add(tx, new, run, spec, "local")
            runs.save(tx, later, epoch=1, generation=2)
            for slept_at_, woke_at in naps_:
                naps.add(tx, run.run_id, owner.account_id, slept_at_, woke_at)

        await database.write(write)

    return store


async def used(database, owner, days=3):
    return await Usages(database, StillClock()).of(owner, days)


async def test_nothing(database, principal):
    found = await used(database, await principal("empty"))
    assert [day.day for day in found.by_day] == [date(2026, 1, number) for number in (29, 30, 31)]
    assert {(day.jobs, day.vm_seconds) for day in found.by_day} == {(0, 0.0)}
    assert (found.total_jobs, found.completed_jobs, found.failed_jobs) == (0, 0, 0)
    assert (found.running_jobs, found.vm_seconds, found.storage_bytes) == (0, 0.0, 0)


async def test_time_is_cut_to_days_and_to_the_window(database, principal, ran):
    owner, other = await principal("owner"), await principal("other")
    await ran(owner, MIDNIGHT + HOUR, MIDNIGHT + 2 * HOUR)
    await ran(owner, MIDNIGHT + HOUR, MIDNIGHT + 1.5 * HOUR, code=JobCode.SCRIPT_FAILED)
    await ran(owner, MIDNIGHT - HOUR, MIDNIGHT + HOUR, code=JobCode.TIMEOUT)
    # Began before the window, went through all of it, or ended before it.
    await ran(owner, MIDNIGHT - 80 * HOUR, MIDNIGHT - 47 * HOUR)
    await ran(owner, MIDNIGHT - 80 * HOUR, MIDNIGHT - 49 * HOUR)
    # By a clock that was set back.
    await ran(owner, MIDNIGHT + 2 * HOUR, MIDNIGHT + HOUR)
    await ran(other, MIDNIGHT - HOUR, MIDNIGHT + HOUR)
    found = await used(database, owner)
    assert [day.jobs for day in found.by_day] == [0, 1, 3]
    assert [day.vm_seconds / 3600 for day in found.by_day] == [1.0, 1.0, 2.5]
    assert found.vm_seconds == 4.5 * 3600
    assert (found.total_jobs, found.completed_jobs, found.failed_jobs) == (4, 3, 2)
    today = await used(database, owner, 1)
    assert [day.vm_seconds / 3600 for day in today.by_day] == [2.5]
    assert (today.total_jobs, today.completed_jobs, today.failed_jobs) == (3, 2, 2)
    assert (await used(database, other, 1)).vm_seconds == 3600


async def test_what_runs_counts_up_to_now(database, principal, ran):
    owner = await principal("owner")
    await ran(owner, MIDNIGHT - 100 * HOUR, state=RunState.RUNNING)
    await ran(owner, NOW - timedelta(seconds=90), state=RunState.STOPPING)
    await ran(owner, NOW, state=RunState.PENDING)
    found = await used(database, owner)
    assert [day.vm_seconds for day in found.by_day] == [86400, 86400, 43200.123456 + 90]
    assert [day.jobs for day in found.by_day] == [0, 0, 2]
    assert (found.running_jobs, found.completed_jobs, found.failed_jobs) == (2, 0, 0)


async def test_sleep_does_not_count(database, principal, ran):
    owner, other = await principal("owner"), await principal("other")
    begin = MIDNIGHT - 4 * HOUR
    across_midnight = (MIDNIGHT - 3 * HOUR, MIDNIGHT + HOUR)
    again = (MIDNIGHT + 2 * HOUR, MIDNIGHT + 3 * HOUR)
    once_more = (MIDNIGHT + 3.5 * HOUR, MIDNIGHT + 4 * HOUR)
    naps_ = (across_midnight, again, once_more)
    await ran(owner, begin, MIDNIGHT + 5 * HOUR, naps_=naps_)
    # It sleeps still, or ended asleep.
    await ran(owner, begin, state=RunState.SLEEPING, slept_at=MIDNIGHT - HOUR)
    await ran(owner, begin, MIDNIGHT + 5 * HOUR, slept_at=MIDNIGHT + HOUR)
    await ran(other, begin, MIDNIGHT)
    found = await used(database, owner)
    assert [day.vm_seconds / 3600 for day in found.by_day] == [0, 1 + 3 + 4, 2.5 + 0 + 1]
    assert found.running_jobs == 0
    assert [day.vm_seconds / 3600 for day in (await used(database, owner, 1)).by_day] == [3.5]
    assert (await used(database, other)).vm_seconds == 4 * 3600


async def test_storage_is_of_layers_and_uploads(database, principal):
    owner, other = await principal("owner"), await principal("other")
    size = 5 << 40

    def store(tx):
        for number in range(2):
            file = UploadedFile(new_file_id(), "f", size, "0" * 64)
            files.add(tx, StoredFile(file, owner.account_id, NOW))
            row = {
                "account_id": owner.account_id,
                "sha256": f"{number:064}",
                "state": "live",
                "size_bytes": size,
                "created_at": NOW,
            }
            tx.execute(insert(layer), row)

    await database.write(store)
    assert (await used(database, owner)).storage_bytes == 4 * size
    assert (await used(database, other)).storage_bytes == 0
