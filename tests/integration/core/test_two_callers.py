"""Whatever changes something is asked for twice at once, and what is undone is undone twice.

`MAGS_TEST_FULL=1` tries many more orders of events.
"""

import asyncio
import os
import random

import pytest
import structlog

from magsd.core.accounts import Accounts
from magsd.core.remains import give_back
from magsd.engine.base import EndReason, Handle
from magsd.guest.shim import ShimConnection
from magsd.model.errors import (
    CapacityError,
    ConflictError,
    JobCode,
    MagsError,
    NotFoundError,
    QuotaError,
    UnauthorizedError,
)
from magsd.model.lifecycle import Status
from magsd.model.names import VmId
from magsd.model.quota import Quota
from magsd.model.records import JobSpec, Scope
from tests.integration.core.kill_points import open_gate, quiet, script, waiting
from tests.integration.core.service import DEADLINE_S
from tests.integration.core.wholeness import nothing_counted, processes

ROUNDS = 100 if os.environ.get("MAGS_TEST_FULL") == "1" else 3
CALLERS = 10
MOMENT_S = 0.02
STOPPED = ("system", "the job was stopped")


@pytest.fixture
async def busy(service):
    """A service with a pool, of whose jobs nothing is left at the end of a test."""
    with structlog.testing.capture_logs():
        await service.restart(pool_min=2, pool_max=2, pool_total_max=8)
        await service.waiting(2)
        yield service
        await settled(service)


async def settled(service) -> None:
    await quiet(service)
    await service.waiting(service.settings.pool_min)
    await nothing_counted(service)
    assert set(service.node.places.vms()) == waiting(service)
    assert {line[-8:] for line in processes(service.directory)} == waiting(service)


async def at_once(*calls):
    """Call all within a moment, in any order; return what each returned or raised."""

    async def later(call):
        await asyncio.sleep(random.random() * random.choice([0, MOMENT_S]))
        return await call()

    async with asyncio.timeout(DEADLINE_S):
        found = await asyncio.gather(*map(later, calls), return_exceptions=True)
    for result in found:
        assert not isinstance(result, BaseException) or isinstance(result, MagsError), found
    return found


def begun(service, name: str) -> int:
    marks = service.directory / f"{name}.marks"
    return len(marks.read_text().splitlines()) if marks.exists() else 0


def job(service, number: int) -> JobSpec:
    return JobSpec(script(service.directory, f"job-{number}"), name=f"job-{number}")


async def test_the_same_submit_at_once_is_one_job(busy):
    for number in range(ROUNDS):
        spec = job(busy, number)
        calls = [lambda spec=spec: busy.app.submit(busy.principal, spec, spec.name)] * CALLERS
        told = await at_once(*calls)
        assert len({status.request_id for status in told}) == 1
        open_gate(busy.directory, spec.name)
        assert (await busy.until(told[0].request_id)).exit_code == 5
        assert begun(busy, spec.name) == 1
    listed = await busy.app.list_jobs(busy.principal, page=1, page_size=1)
    assert listed.total == ROUNDS


async def test_of_different_submits_with_one_key_one_is_taken(busy):
    for number in range(ROUNDS):
        calls = [
            lambda n=n, number=number: busy.app.submit(
                busy.principal, JobSpec(f"exit {n}"), f"key {number}"
            )
            for n in range(CALLERS)
        ]
        told = await at_once(*calls)
        taken = [status for status in told if not isinstance(status, ConflictError)]
        assert len(taken) == 1, told
        await busy.until(taken[0].request_id)


async def test_no_more_is_taken_than_a_quota_has(busy):
    await busy.restart(quota=Quota(jobs_max=3))
    await busy.waiting(2)
    for number in range(ROUNDS):
        spec = job(busy, number)
        told = await at_once(*[lambda spec=spec: busy.app.submit(busy.principal, spec)] * CALLERS)
        taken = [status for status in told if not isinstance(status, QuotaError)]
        assert len(taken) == 3, told
        open_gate(busy.directory, spec.name)
        for status in taken:
            await busy.until(status.request_id)


async def test_many_stop_a_job_at_once(busy):
    for _ in range(ROUNDS):
        running = await busy.running("sleep 100")
        calls = [lambda ref=running.request_id: busy.app.stop(busy.principal, ref)] * CALLERS
        told = await at_once(*calls)
        assert len(set(told)) == 1, told
        assert (told[0].code, told[0].exit_code) == (JobCode.STOPPED, 143)
        assert await busy.log(running.request_id) == [STOPPED]


async def test_stopped_while_it_comes_to_its_vm(busy):
    # More than wait: some find a VM, some are launched, some wait for their turn.
    numbers = iter(range(ROUNDS * CALLERS))
    for _ in range(ROUNDS):

        async def submit_and_stop():
            spec = job(busy, next(numbers))
            submitted = await busy.app.submit(busy.principal, spec)
            await asyncio.sleep(random.random() * 3 * MOMENT_S)
            return await busy.app.stop(busy.principal, submitted.request_id)

        for ended in await at_once(*[submit_and_stop] * CALLERS):
            assert (ended.code, ended.exit_code) == (JobCode.STOPPED, 143), ended
            assert begun(busy, ended.name) <= 1
            if ended.vm_id:
                assert (await busy.log(ended.request_id)).count(STOPPED) == 1
        await settled(busy)


async def test_stopped_at_the_moment_of_its_end(busy):
    for number in range(ROUNDS):
        spec = job(busy, number)
        running = await busy.running(spec.script, name=spec.name)
        await busy.printed(running.request_id, "one")

        async def let_go(spec=spec):
            open_gate(busy.directory, spec.name)

        told, _ = await at_once(
            lambda ref=running.request_id: busy.app.stop(busy.principal, ref), let_go
        )
        ended = await busy.until(running.request_id)
        assert told == ended
        lines = await busy.log(ended.request_id)
        if ended.code is JobCode.STOPPED:
            assert ended.exit_code == 143
            assert lines[0] == ("stdout", "one")
            assert lines[-1] == STOPPED
            assert lines.count(STOPPED) == 1
        else:
            assert (ended.code, ended.exit_code) == (JobCode.SCRIPT_FAILED, 5)
            assert lines == [("stdout", "one"), ("stdout", "two")]


async def test_the_service_ends_while_jobs_are_submitted(busy):
    number = 0
    for _ in range(ROUNDS):
        specs = [job(busy, number + offset) for offset in range(CALLERS)]
        number += CALLERS
        calls = [
            lambda spec=spec: busy.app.submit(busy.principal, spec, spec.name) for spec in specs
        ]
        told = await at_once(*calls, busy.app.aclose, busy.app.aclose)
        await busy.restart()
        for spec, status in zip(specs, told, strict=False):
            open_gate(busy.directory, spec.name)
            if isinstance(status, CapacityError):
                status = await busy.app.submit(busy.principal, spec, spec.name)
            assert (await busy.until(status.request_id)).exit_code == 5
            assert begun(busy, spec.name) == 1
        await settled(busy)


# --- tokens and accounts -------------------------------------------------------------


async def test_tokens_of_a_new_account_are_made_at_once(service):
    access = service.app.access
    for number in range(ROUNDS):
        made = await at_once(
            *[
                lambda number=number: access.create_token(
                    service.principal, name="same", account=f"new-{number}", scopes=[Scope.JOBS]
                )
            ]
            * CALLERS
        )
        assert len({secret for _, secret in made}) == CALLERS
        assert len({record.account_id for record, _ in made}) == 1
        for record, secret in made:
            assert (await access.authenticate(secret)).token_id == record.token_id
    assert len(await Accounts(service.database).listed()) == 1 + ROUNDS


async def test_the_first_token_is_made_once(service):
    await service.change("DELETE FROM token")
    made = await at_once(*[lambda: service.app.access.first_token(None)] * CALLERS)
    assert sum(secret is not None for secret in made) == 1


async def test_a_token_is_deleted_once_and_never_works_again(service):
    access = service.app.access
    for _ in range(ROUNDS):
        record, secret = await access.create_token(service.principal, name="short-lived")
        deleted = asyncio.Event()

        async def use(secret=secret, deleted=deleted):
            while True:
                was_deleted = deleted.is_set()
                try:
                    await access.authenticate(secret)
                except UnauthorizedError:
                    return
                assert not was_deleted
                await asyncio.sleep(0)

        async def delete(token_id=record.token_id, deleted=deleted):
            await access.delete_token(service.principal, token_id)
            deleted.set()

        told = await at_once(*[delete] * CALLERS, *[use] * CALLERS)
        assert sum(isinstance(result, NotFoundError) for result in told) == CALLERS - 1
        with pytest.raises(UnauthorizedError):
            await access.authenticate(secret)


async def test_changes_of_a_quota_do_not_undo_each_other(service):
    accounts = Accounts(service.database)
    for number in range(1, ROUNDS + 1):
        changes = [{"jobs_max": number}, {"vcpus_max": number}, {"memory_mb_max": number}]
        calls = [
            lambda change=change: accounts.change_quota("default", change) for change in changes * 2
        ]
        await at_once(*calls)
        [(_, quota)] = await accounts.listed()
        assert quota == Quota(jobs_max=number, vcpus_max=number, memory_mb_max=number)


# --- undone twice --------------------------------------------------------------------


async def test_a_vm_is_given_back_as_often_as_asked(busy):
    running = await busy.running("echo one; sleep 100")
    await busy.printed(running.request_id, "one")
    run = busy.app._supervisor.run_of(running.request_id)
    handle = Handle(VmId(run.vm_id), run.epoch, busy.node.places.run_directory(run.vm_id))
    ends = await at_once(*[lambda: busy.engine.stop(handle)] * CALLERS)
    # Whoever comes when all is given back finds nothing to tell by.
    assert {end.reason for end in ends} <= {EndReason.KILLED, EndReason.SHIM_DIED}
    assert EndReason.KILLED in {end.reason for end in ends}
    await busy.engine.stop(handle)
    await busy.until(running.request_id)
    account_id = busy.principal.account_id
    again = [lambda: give_back(busy.node, run, account_id)] * CALLERS
    assert set(await at_once(*again)) == {None}
    await give_back(busy.node, run, account_id)
    assert ("stdout", "one") in await busy.log(running.request_id)


async def test_a_journal_is_put_away_as_often_as_asked(busy):
    ended = await busy.run("echo one")
    await quiet(busy)
    for _ in range(2):
        busy.node.places.put_away(ended.request_id, 1, VmId(ended.vm_id))
        busy.node.places.remove(VmId(ended.vm_id))
    assert await busy.log(ended.request_id) == [("stdout", "one")]


async def test_connections_pool_and_service_end_as_often_as_asked(busy):
    running = await busy.running("sleep 100")
    connection = await ShimConnection.open(busy.directory / "run" / running.vm_id)
    await at_once(*[connection.aclose] * CALLERS)
    await connection.aclose()
    await at_once(*[busy.node.pool.aclose] * CALLERS)
    assert {path.name for path in (busy.directory / "run").iterdir()} == {running.vm_id}
    await at_once(*[busy.app.aclose] * CALLERS)
    await busy.app.aclose()
    await busy.restart()
    now = await busy.app.status(busy.principal, running.request_id)
    assert (now.status, now.vm_id) == (Status.RUNNING, running.vm_id)
    await busy.app.stop(busy.principal, running.request_id)
