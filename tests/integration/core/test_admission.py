"""Who may have how much: what a machine gives, what an account may have, who waits."""

import asyncio
import dataclasses

import pytest

from magsd.core.accounts import Accounts
from magsd.model.amount import Amount
from magsd.model.errors import CapacityError, InvalidError, NotFoundError, QuotaError
from magsd.model.lifecycle import Status
from magsd.model.quota import Limits, Quota
from magsd.model.records import JobSpec, Scope
from tests.integration.core.service import DEADLINE_S

CAPACITY = Amount(vms=8, vcpus=4, memory_mb=2000, disk_gb=40)


@pytest.fixture
async def small(service):
    """A service on a small machine."""
    await service.restart(capacity=CAPACITY)
    return service


async def other_account(service, name="other"):
    _, secret = await service.app.access.create_token(
        service.principal, name=name, account=name, scopes=[Scope.JOBS]
    )
    return await service.app.access.authenticate(secret)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vcpus": 5}, "vcpus: this machine has 4 "),
        ({"memory_mb": 2001}, "memory_mb: this machine has 2000 "),
        ({"disk_gb": 41}, "disk_gb: this machine has 40 "),
    ],
)
async def test_what_this_machine_never_has_is_refused(small, fields, named):
    with pytest.raises(InvalidError, match=named):
        await small.submit("true", **fields)
    assert small.node.room.free == CAPACITY


@pytest.mark.parametrize("fields", [{"vcpus": 4}, {"memory_mb": 1600}, {"disk_gb": 39}])
async def test_what_has_no_room_waits_and_then_runs(small, fields):
    first = await small.running(f"{small.wait_at('gate')}", **fields)
    second = await small.submit("exit 3", vcpus=1, memory_mb=500, disk_gb=2)
    assert len(small.engine.launched) == 1
    assert second.status is Status.PENDING
    assert small.node.room.waiting == 1
    await small.open_gate("gate")
    assert (await small.until(second.request_id)).exit_code == 3
    await small.until(first.request_id)
    await small.gone("*")
    assert small.node.room.free == CAPACITY


async def test_one_that_waits_can_be_stopped(small):
    first = await small.running("sleep 100", vcpus=4)
    second = await small.submit("true")
    stopped = await small.app.stop(small.principal, second.request_id)
    assert (stopped.exit_code, stopped.vm_id) == (143, "")
    await small.app.stop(small.principal, first.request_id)
    await small.gone("*")
    async with asyncio.timeout(DEADLINE_S):
        while small.node.room.free != CAPACITY:
            await asyncio.sleep(0.01)


async def test_accounts_wait_in_turn(small):
    holder = await small.running(f"{small.wait_at('gate')}", vcpus=4)
    spec = JobSpec("true", vcpus=4)
    other = await other_account(small)
    submitted = [await small.app.submit(small.principal, spec) for _ in range(3)]
    late = await small.app.submit(other, spec)
    await small.open_gate("gate")
    async with asyncio.timeout(DEADLINE_S):
        statuses = [
            await small.app.status(who, job.request_id, wait_s=DEADLINE_S)
            for who, job in [(small.principal, job) for job in submitted] + [(other, late)]
        ]
    begun = [status.started_at for status in statuses]
    assert begun[0] < begun[3] < begun[1] < begun[2]
    await small.until(holder.request_id)


async def test_what_lives_is_counted_after_a_restart(small):
    job = await small.running("sleep 100", vcpus=3, memory_mb=700)
    await small.restart()
    async with asyncio.timeout(DEADLINE_S):
        while small.node.room.free.vms == CAPACITY.vms:
            await asyncio.sleep(0.01)
    assert small.node.room.free == CAPACITY.minus(Amount(1, 3, 700, 2))
    assert small.node.quotas.used(small.principal.account_id) == Amount(1, 3, 700, 2)
    await small.app.stop(small.principal, job.request_id)
    await small.gone("*")
    assert small.node.room.free == CAPACITY
    assert small.node.quotas.used(small.principal.account_id) == Amount()


async def test_a_full_queue_refuses_and_says_so(small):
    await small.restart(queue_max=1)
    holder = await small.running("sleep 100", vcpus=4)
    waiting = await small.submit("true")
    with pytest.raises(CapacityError, match="1 jobs wait"):
        await small.submit("true")
    for job in (waiting, holder):
        await small.app.stop(small.principal, job.request_id)
    assert (await small.run("true")).status is Status.COMPLETED


async def test_a_nearly_full_disk_takes_no_jobs(small):
    await small.restart(disk_free_min_bytes=1 << 60)
    with pytest.raises(CapacityError, match="disk"):
        await small.submit("true")
    assert small.node.room.free == CAPACITY


# --- quotas ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "named"),
    [
        (Quota(jobs_max=1), "jobs_max"),
        (Quota(vcpus_max=1), "vcpus_max"),
        (Quota(memory_mb_max=800), "memory_mb_max"),
        (Quota(disk_gb_max=3), "disk_gb_max"),
    ],
)
async def test_an_account_has_no_more_than_its_quota(small, quota, named):
    await small.restart(quota=quota)
    job = await small.running("sleep 100")
    with pytest.raises(QuotaError, match=f"^{named}: this account may have "):
        await small.submit("true")
    # Others have a quota of their own.
    other = await other_account(small)
    their = await small.app.submit(other, JobSpec("true"))
    assert (await small.app.status(other, their.request_id, wait_s=DEADLINE_S)).is_final
    await small.app.stop(small.principal, job.request_id)
    assert (await small.run("true")).status is Status.COMPLETED


async def test_jobs_that_have_ended_count_no_more_when_their_end_is_told(small):
    await small.restart(quota=Quota(jobs_max=1))
    for number in range(5):
        assert (await small.run(f"exit {number}")).exit_code == number


async def test_the_same_submit_again_is_no_second_job(small):
    await small.restart(quota=Quota(jobs_max=1))
    spec = JobSpec("sleep 100")
    first = await small.app.submit(small.principal, spec, "key")
    again = await small.app.submit(small.principal, spec, "key")
    assert first.request_id == again.request_id
    await small.app.stop(small.principal, first.request_id)
    assert small.node.quotas.used(small.principal.account_id) == Amount()


async def test_many_submits_at_once_stay_within_the_quota(small):
    await small.restart(quota=Quota(jobs_max=3))
    results = await asyncio.gather(
        *(small.submit("sleep 100") for _ in range(10)), return_exceptions=True
    )
    jobs = [result for result in results if not isinstance(result, Exception)]
    assert len(jobs) == 3
    assert all(isinstance(result, QuotaError) for result in results if result not in jobs)
    for job in jobs:
        await small.app.stop(small.principal, job.request_id)


async def test_an_operator_decides_for_one_account(small):
    accounts = Accounts(small.database)
    await small.restart(quota=Quota(jobs_max=1))
    accounts = Accounts(small.database)
    with pytest.raises(NotFoundError, match="known: default"):
        await accounts.change_quota("nobody", {"jobs_max": 2})
    assert await accounts.change_quota("default", {"jobs_max": 2}) == Quota(jobs_max=2)
    await small.node.quotas.load(small.database)
    jobs = [await small.submit("sleep 100") for _ in range(2)]
    with pytest.raises(QuotaError, match="may have 2 "):
        await small.submit("true")
    assert await accounts.change_quota("default", {"jobs_max": None}) == Quota()
    await small.node.quotas.load(small.database)
    with pytest.raises(QuotaError, match="may have 1 "):
        await small.submit("true")
    [(account, quota)] = await accounts.listed()
    assert (account.name, quota) == ("default", Quota())
    for job in jobs:
        await small.app.stop(small.principal, job.request_id)


async def test_limits_of_a_job_are_the_operators(small):
    limits = dataclasses.replace(Limits(), max_memory_mb=600, max_timeout_s=10, max_disk_gb=3)
    await small.restart(limits=limits)
    for field, value in (("memory_mb", 601), ("timeout_s", 11), ("disk_gb", 4)):
        name = field.removesuffix("_s")
        with pytest.raises(InvalidError, match=f"{name} must be between"):
            await small.submit("true", **{field: value})
