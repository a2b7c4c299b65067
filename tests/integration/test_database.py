"""Transactions, migrations and repositories on a real SQLite file and a real PostgreSQL."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from magsd.db import accounts, audit, jobs, log_index, runs, tokens
from magsd.db.database import Database
from magsd.db.schema import account, metadata
from magsd.db.schema import log_index as log_index_table
from magsd.model.errors import CapacityError, InvalidError, JobCode
from magsd.model.lifecycle import Goal, RunState, Status
from magsd.model.names import (
    VmId,
    new_request_id,
    new_run_id,
    new_subdomain,
    new_token_id,
    new_vm_id,
)
from magsd.model.quota import Quota
from magsd.model.records import Job, Principal, Run, RunSpec, Scope, TokenRecord

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
SPEC = RunSpec("echo h\u00e9llo\n", {"A": "b"}, 300, "standard", 1, 512, 2, ("colour",))


@pytest.fixture
async def database(database_url):
    database = await Database.open(database_url)
    yield database
    await database.aclose()


@pytest.fixture
async def owner(database):
    return await database.write(lambda tx: accounts.ensure(tx, "default", NOW))


def made(owner, *, age_s: float = 0, **fields) -> tuple[Job, Run]:
    """Return a job and its run, in the state that `fields` of either say."""
    created_at = NOW - timedelta(seconds=age_s)
    request_id = new_request_id()
    run = {"epoch": 1, "state": RunState.PENDING, "engine": "gvisor", "isolation": "kernel"}
    job = {
        "name": "name",
        "workspace_id": None,
        "persistent": False,
        "no_sleep": False,
        "subdomain": new_subdomain(),
        "goal": Goal.RUNNING,
        "goal_version": 1,
        "generation": 1,
    }
    for name, value in fields.items():
        (job if name in job else run)[name] = value
    return (
        Job(request_id=request_id, account_id=owner.account_id, created_at=created_at, **job),
        Run(new_run_id(), request_id, created_at=created_at, **run),
    )


@pytest.fixture
def stored(database, owner):
    async def store(idempotency=None, node="local", **fields) -> tuple[Job, Run]:
        job, run = made(owner, **fields)
        await database.write(lambda tx: jobs.add(tx, job, run, SPEC, node, idempotency))
        return job, run

    return store


# --- transactions ----------------------------------------------------------------


async def test_the_schema_is_what_the_migrations_make(database):
    def compare(tx):
        context = MigrationContext.configure(tx, opts={"include_name": is_of_the_schema})
        return compare_metadata(context, metadata)

    def is_of_the_schema(name, kind, _parents):
        return kind != "table" or name != "magsd_commit"

    assert await database.read(compare) == []


async def test_a_database_is_opened_again_as_it_was(database_url):
    for _ in range(2):
        database = await Database.open(database_url, "node")
        await database.write(lambda tx: accounts.ensure(tx, "default", NOW))
        found = await database.read(lambda tx: accounts.by_name(tx, "default"))
        assert found.created_at == NOW
        await database.aclose()
        await database.aclose()


async def test_another_kind_of_database_is_refused():
    for url in ("mysql://host/database", "nonsense", "sqlite://host:x/y"):
        with pytest.raises(InvalidError, match="sqlite:////"):
            await Database.open(url)


async def test_a_database_of_a_newer_version_is_refused(database, database_url):
    await database.write(
        lambda tx: tx.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'") and None
    )
    with pytest.raises(InvalidError, match="newer version"):
        await Database.open(database_url)


async def test_writes_are_one_at_a_time(database):
    running = threading.Lock()

    def work(tx):
        assert running.acquire(blocking=False)
        accounts.ensure(tx, f"account {len(tx.execute(select(account)).all())}", NOW)
        running.release()

    await asyncio.gather(*(database.write(work) for _ in range(200)))
    assert len(await database.read(accounts.listed)) == 200


async def test_what_raises_is_undone_and_those_it_shared_a_commit_with_are_not(database):
    def add(number):
        def work(tx):
            accounts.ensure(tx, f"account {number}", NOW)
            if number % 3 == 0:
                raise ValueError(str(number))
            return number

        return work

    results = await asyncio.gather(
        *(database.write(add(number)) for number in range(100)), return_exceptions=True
    )
    for number, result in enumerate(results):
        assert str(result) == str(number)
        assert isinstance(result, ValueError) == (number % 3 == 0)
    rows = await database.read(lambda tx: tx.execute(select(account.c.name)).all())
    assert len(rows) == 66


async def test_a_writer_who_leaves_harms_nobody(database):
    writes = [
        asyncio.create_task(database.write(lambda tx, n=n: accounts.ensure(tx, f"a{n}", NOW)))
        for n in range(20)
    ]
    await asyncio.sleep(0)
    for write in writes[::2]:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    rows = await database.read(lambda tx: tx.execute(select(account.c.name)).scalars().all())
    assert {f"a{n}" for n in range(1, 20, 2)} <= set(rows)


async def test_closing_finishes_what_was_asked_for(database):
    write = asyncio.create_task(database.write(lambda tx: accounts.ensure(tx, "default", NOW)))
    await asyncio.sleep(0)
    await database.aclose()
    assert (await write).name == "default"
    with pytest.raises(CapacityError, match="stopping"):
        await database.write(lambda tx: accounts.ensure(tx, "default", NOW))


async def test_a_row_of_nobodys_is_refused(database, owner):
    stranger = made(owner)[0].__class__
    job, run = made(owner)
    orphan = stranger(**{**{n: getattr(job, n) for n in job.__slots__}, "account_id": "acc_none"})
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: jobs.add(tx, orphan, run, SPEC, "local"))


# --- jobs and runs ---------------------------------------------------------------


async def test_a_job_is_found_as_it_was_stored(database, owner, stored):
    job, run = await stored(workspace_id="ws", persistent=True)
    get = lambda tx: jobs.get(tx, owner.account_id, job.request_id)  # noqa: E731
    assert await database.read(get) == (job, run)
    assert await database.read(lambda tx: jobs.spec(tx, job.request_id)) == SPEC
    assert await database.read(lambda tx: jobs.get(tx, "acc_other", job.request_id)) is None


async def test_a_name_means_what_lives_before_what_is_newest(database, owner, stored):
    async def found(name):
        row = await database.read(lambda tx: jobs.find(tx, owner.account_id, name))
        return row and row[0].request_id

    by_workspace, _ = await stored(name="other", workspace_id="x", state=RunState.ENDED)
    assert await found("x") == by_workspace.request_id
    old, _ = await stored(name="x", state=RunState.ENDED, age_s=10)
    assert await found("x") == old.request_id
    new, _ = await stored(name="x", state=RunState.ENDED, age_s=5)
    assert await found("x") == new.request_id
    waiting, _ = await stored(name="x", state=RunState.PENDING, age_s=3)
    assert await found("x") == waiting.request_id
    alive, _ = await stored(name="z", workspace_id="x", state=RunState.SLEEPING, age_s=60)
    assert await found("x") == alive.request_id
    named, _ = await stored(name="x", state=RunState.RUNNING, age_s=60)
    assert await found("x") == named.request_id
    newer, _ = await stored(name="x", state=RunState.STOPPING, age_s=50)
    assert await found("x") == newer.request_id
    assert await found("nothing") is None
    assert await database.read(lambda tx: jobs.find(tx, "acc_other", "x")) is None


async def test_a_page_is_sorted_and_counted(database, owner, stored):
    ended = [
        await stored(name=f"e{n}", age_s=n, state=RunState.ENDED, code=JobCode.TIMEOUT)
        for n in range(5)
    ]
    await stored(name="done", age_s=20, state=RunState.ENDED, workspace_id="ws")
    await stored(name="alive", age_s=99, persistent=True, state=RunState.RUNNING)

    async def page(offset=0, limit=100, **chosen):
        rows, total = await database.read(
            lambda tx: jobs.page(tx, owner.account_id, offset=offset, limit=limit, **chosen)
        )
        return [job.name for job, _ in rows], total

    everything = ["alive", *(job.name for job, _ in ended), "done"]
    assert await page() == (everything, 7)
    assert await page(offset=2, limit=3) == (everything[2:5], 7)
    assert await page(offset=70) == ([], 7)
    assert await page(status=Status.COMPLETED) == (["done"], 1)
    assert await page(status=Status.ERROR) == (everything[1:6], 5)
    assert await page(status=Status.RUNNING) == (["alive"], 1)
    assert await page(status=Status.PENDING) == ([], 0)
    assert await page(workspace_id="ws", status=Status.COMPLETED) == (["done"], 1)


async def test_only_unfinished_runs_of_this_node_are_to_be_looked_after(database, stored):
    first, _ = await stored(age_s=2)
    second, _ = await stored(age_s=1, state=RunState.RUNNING)
    await stored(state=RunState.ENDED)
    await stored(node="elsewhere")
    rows = await database.read(lambda tx: jobs.unfinished(tx, "local"))
    assert [job.request_id for job, _, _ in rows] == [first.request_id, second.request_id]


async def test_a_goal_is_set_once_for_each_version(database, owner, stored):
    job, _ = await stored()

    async def set_goal(version):
        return await database.write(
            lambda tx: jobs.set_goal(tx, job.request_id, Goal.STOPPED, seen_version=version)
        )

    assert sorted(await asyncio.gather(*(set_goal(1) for _ in range(5)))) == [False] * 4 + [True]
    (found, _) = await database.read(lambda tx: jobs.get(tx, owner.account_id, job.request_id))
    assert (found.goal, found.goal_version) == (Goal.STOPPED, 2)


async def test_a_run_is_written_by_its_epoch_and_never_after_its_end(database, owner, stored):
    job, run = await stored()

    async def save(seen, **fields):
        values = {name: getattr(run, name) for name in run.__slots__} | fields
        new = Run(**values)
        saved = await database.write(lambda tx: runs.save(tx, new, epoch=seen, generation=7))
        found = await database.read(lambda tx: jobs.get(tx, owner.account_id, job.request_id))
        assert not saved or found[1] == new
        return saved, found[0].generation

    vm = new_vm_id()
    assert await save(9, vm_id=vm) == (False, 1)
    assert await save(1, epoch=2, state=RunState.LAUNCHING, vm_id=vm) == (True, 7)
    assert await save(1, state=RunState.ENDED) == (False, 7)
    found = await database.read(lambda tx: runs.of_vms(tx, [vm, VmId("0badcafe")]))
    assert [(key, value[0], value[1].epoch) for key, value in found.items()] == [
        (vm, owner.account_id, 2)
    ]
    ended = {"state": RunState.ENDED, "exit_code": 3, "code": JobCode.SCRIPT_FAILED}
    ended |= {"claimed_at": NOW, "started_at": NOW, "ended_at": NOW, "error": "e"}
    assert await save(2, epoch=2, **ended) == (True, 7)
    assert await save(2, epoch=2, state=RunState.RUNNING) == (False, 7)


async def test_a_key_belongs_to_one_job_of_an_account(database, owner, stored):
    key = jobs.Idempotency("key", "digest")
    job, _ = await stored(idempotency=key)
    with pytest.raises(IntegrityError):
        await stored(idempotency=key)
    known = await database.read(lambda tx: jobs.by_idempotency_key(tx, owner.account_id, "key"))
    assert known == (job.request_id, "digest", job.created_at)
    await database.write(lambda tx: jobs.release_key(tx, job.request_id))
    await stored(idempotency=key)


# --- what else is kept -------------------------------------------------------------


async def test_tokens_with_their_accounts(database, owner):
    scopes = frozenset({Scope.ADMIN, Scope.JOBS})
    token = TokenRecord(new_token_id(), owner.account_id, owner.name, "ci", scopes, NOW, NOW, None)
    await database.write(lambda tx: tokens.add(tx, token, "hash"))
    assert await database.read(lambda tx: tokens.by_secret(tx, "hash")) == token
    assert await database.read(lambda tx: tokens.by_secret(tx, "other")) is None
    assert await database.read(lambda tx: tokens.listed(tx, owner.account_id)) == [token]
    assert await database.read(lambda tx: tokens.listed(tx, "acc_other")) == []
    await database.write(lambda tx: tokens.touch(tx, {token.token_id: NOW}))
    found = await database.read(lambda tx: tokens.get(tx, token.token_id))
    assert found.last_used_at == NOW
    principal = Principal(owner.account_id, owner.name, token.token_id, scopes)
    await database.write(lambda tx: audit.add(tx, principal, "token_deleted", "tok", NOW))
    await database.write(lambda tx: tokens.remove(tx, token.token_id))
    assert await database.read(tokens.count) == 0


async def test_a_log_is_indexed_once(database, owner, stored):
    job, _ = await stored()
    row = {"request_id": job.request_id, "epoch": 1, "account_id": owner.account_id}
    for size_bytes in (5, 6):
        await database.write(
            lambda tx, n=size_bytes: log_index.add(tx, **row, node="local", size_bytes=n, at=NOW)
        )
    rows = await database.read(lambda tx: tx.execute(select(log_index_table)).all())
    assert [found.size_bytes for found in rows] == [5]


async def test_an_accounts_own_quota(database, owner):
    assert await database.read(accounts.quotas) == {}
    quota = Quota(1, 2, None, 4)
    await database.write(lambda tx: accounts.set_quota(tx, owner.account_id, quota))
    assert await database.read(accounts.quotas) == {owner.account_id: quota}
    assert await database.read(accounts.listed) == [(owner, quota)]
