"""Rows of logs, and which rows are old enough to go, in each kind of database."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from magsd.db import accounts, jobs, log_index, naps, retention, runs
from magsd.db.database import Database
from magsd.db.log_index import LogObject
from magsd.model.lifecycle import Goal, RunState
from magsd.model.names import new_request_id, new_run_id, new_subdomain, new_vm_id
from magsd.model.records import Job, Run, RunSpec

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
KEPT = LogObject(17 << 20, "ab" * 32)


@pytest.fixture
async def database(database_url):
    database = await Database.open(database_url)
    yield database
    await database.aclose()


@pytest.fixture
async def job(database):
    """Return a function that stores a job that ended some days ago, and returns its id."""
    owner = await database.write(lambda tx: accounts.ensure(tx, "default", NOW))

    async def store(days, *, node="local", ended=True, logs=1):
        at, job_id = NOW - days * DAY, new_request_id()
        new = Job(
            job_id, owner.account_id, "name", None, False, False, new_subdomain(),
            Goal.RUNNING, 1, 1, at,
        )  # fmt: skip
        run = Run(new_run_id(), job_id, 1, RunState.PENDING, "fake", "none", at)
        spec = RunSpec("", {}, 1, "standard", 1, 128, 1)
        over = dataclasses.replace(run, state=RunState.ENDED, ended_at=at, vm_id=new_vm_id())

        def write(tx):
            jobs.add(tx, new, run, spec, node)
            if ended:
                runs.save(tx, over, epoch=1, generation=2)
            for epoch in range(1, logs + 1):
                log_index.add(tx, request_id=job_id, epoch=epoch, account_id=owner.account_id,
                              node=node, size_bytes=1, at=at)  # fmt: skip

        await database.write(write)
        return job_id

    return store


async def test_what_is_not_stored_is_found_page_by_page(database, job):
    oldest = await job(3, logs=3)
    others = [await job(2) for _ in range(3)]
    await job(9, node="elsewhere")
    found, last = [], None
    while page := await database.read(lambda tx, a=last: log_index.unstored(tx, "local", a, 2)):
        found += [(log.request_id, log.epoch) for log in page]
        last = page[-1]
    assert found[:3] == [(oldest, 1), (oldest, 2), (oldest, 3)]
    assert found[3:] == [(other, 1) for other in sorted(others)]
    await database.write(
        lambda tx: log_index.store(tx, [(oldest, 2, KEPT), (others[0], 1, KEPT)], NOW)
    )
    left = await database.read(lambda tx: log_index.unstored(tx, "local", None, 10))
    assert len(left) == 4
    logs = await database.read(lambda tx: log_index.of_job(tx, oldest))
    assert [logs[epoch].stored for epoch in (1, 2, 3)] == [None, KEPT, None]
    places = [(oldest, 2), (oldest, 4), (others[0], 1)]
    known = await database.read(lambda tx: log_index.known(tx, places))
    assert set(known) == {(oldest, 2), (others[0], 1)}
    await database.write(lambda tx: log_index.remove(tx, [logs[2]]))
    assert set(await database.read(lambda tx: log_index.of_job(tx, oldest))) == {1, 3}


async def test_only_what_has_ended_and_is_old_may_go(database, job):
    old = [await job(days) for days in (40, 35)]
    await job(29)
    await job(40, ended=False)
    await job(40, node="elsewhere")
    before = NOW - 30 * DAY

    async def found(passed=()):
        logs = await database.read(lambda tx: retention.old_logs(tx, "local", before, passed, 10))
        ended = await database.read(lambda tx: retention.old_jobs(tx, "local", before, passed, 10))
        return [log.request_id for log in logs], [job.request_id for job in ended]

    assert await found() == (old, old)
    assert await found({old[0]}) == (old[1:], old[1:])


async def test_a_job_goes_after_its_logs_and_not_while_it_is_referred_to(database, job):
    live, referred, plain = await job(40, ended=False, logs=0), await job(40), await job(40)
    everything = [live, referred, plain]
    logs = await database.read(lambda tx: log_index.of_job(tx, plain))
    insert = (
        'INSERT INTO "grant" (grant_id, account_id, request_id, kind, port, created_at) '
        f"SELECT 'g', account_id, request_id, 'http', 80, 0 FROM job WHERE request_id = '{referred}'"
    )
    await database.write(lambda tx: tx.exec_driver_sql(insert) and None)

    def sleep(tx):
        for each in (referred, plain):
            _, run = jobs.get(tx, logs[1].account_id, each)
            naps.add(tx, run.run_id, logs[1].account_id, NOW, NOW + timedelta(hours=1))

    await database.write(sleep)
    assert await database.write(lambda tx: retention.remove_jobs(tx, everything)) == []
    await database.write(lambda tx: log_index.remove(tx, logs.values()))
    assert await database.write(lambda tx: retention.remove_jobs(tx, everything)) == [plain]
    account = logs[1].account_id
    assert list(
        (await database.read(lambda tx: naps.seconds_of_days(tx, account, NOW.date()))).values()
    ) == [3600]
    assert await database.read(lambda tx: jobs.get(tx, account, plain)) is None
    assert await database.read(lambda tx: jobs.get(tx, account, referred)) is not None
