"""VMs that wait for a script, on real shims and agents: who gets them, and what becomes of them."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from magsd.core import launch
from magsd.guest.shim import ShimConnection
from magsd.model.errors import CapacityError, ConflictError, JobCode, LaunchError
from magsd.model.lifecycle import Status
from magsd.model.records import JobSpec
from tests.integration.core.service import DEADLINE_S


@pytest.fixture
async def pooled(service):
    """A service in whose pool two VMs wait."""
    await service.restart(pool_min=2, pool_max=2, pool_total_max=8)
    await service.waiting(2)
    return service


def shims(service) -> set[int]:
    """The shims of all VMs that have a directory."""
    records = (service.record(path.name) for path in (service.directory / "run").iterdir())
    return {record.shim_pid for record in records if record is not None}


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


async def all_gone(pids: set[int]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not all(map(is_gone, pids)):
            await asyncio.sleep(0.01)


async def test_a_job_gets_a_vm_that_waits_and_another_takes_its_place(pooled):
    waiting = await pooled.waiting(2)
    submitted = await pooled.submit(
        "echo $GREETING from $(hostname)", environment={"GREETING": "hi"}
    )
    assert submitted.status is Status.PENDING
    ended = await pooled.until(submitted.request_id)
    assert ended.status is Status.COMPLETED
    assert ended.vm_id in waiting
    assert await pooled.log(ended.request_id) == [("stdout", f"hi from mags-{ended.vm_id}")]
    await pooled.gone(ended.vm_id)
    assert ended.vm_id not in await pooled.waiting(2)


async def test_the_first_line_is_what_was_ignored(pooled):
    ended = await pooled.run("echo hi", ignored=("colour",))
    assert await pooled.log(ended.request_id) == [
        ("system", "ignored unknown fields of the request: colour"),
        ("stdout", "hi"),
    ]


async def test_more_jobs_than_wait_are_all_run(pooled):
    await pooled.restart(pool_max=4)
    submitted = await asyncio.gather(*(pooled.submit(f"exit {n}") for n in range(12)))
    ended = [await pooled.until(job.request_id) for job in submitted]
    assert [job.exit_code for job in ended] == list(range(12))
    assert len({job.vm_id for job in ended}) == 12
    # More were asked for at once than usual: more wait, for a while.
    await pooled.waiting(4)


async def test_fewer_wait_when_nobody_has_asked_for_long(pooled):
    await pooled.restart(pool_max=4, pool_keepalive_s=0.2)
    for job in await asyncio.gather(*(pooled.submit("true") for _ in range(6))):
        await pooled.until(job.request_id)
    await pooled.waiting(2)


async def test_another_size_is_launched_and_then_waits_too(pooled):
    waiting = await pooled.waiting(2)
    ended = await pooled.run("true", memory_mb=300)
    assert ended.status is Status.COMPLETED
    assert ended.vm_id not in waiting
    waiting = await pooled.waiting(3)
    assert (await pooled.run("true", memory_mb=300)).vm_id in waiting


async def test_a_vm_that_ends_while_it_waits_is_replaced(pooled):
    waiting = await pooled.waiting(2)
    for vm in waiting:
        os.kill(pooled.record(vm).shim_pid, signal.SIGKILL)
    for vm in waiting:
        await pooled.gone(vm)
    assert not waiting & await pooled.waiting(2)
    assert (await pooled.run("true")).status is Status.COMPLETED


async def test_a_vm_that_is_dead_at_the_claim_is_no_error(pooled):
    waiting = await pooled.waiting(2)
    for vm in waiting:
        # Stopped, so that nobody notices until it is asked.
        os.kill(pooled.record(vm).shim_pid, signal.SIGSTOP)
    submitted = await pooled.submit("echo once")
    for vm in waiting:
        os.kill(pooled.record(vm).shim_pid, signal.SIGKILL)
    ended = await pooled.until(submitted.request_id)
    assert ended.status is Status.COMPLETED
    assert ended.vm_id not in waiting
    assert await pooled.log(ended.request_id) == [("stdout", "once")]


async def test_a_pool_that_cannot_be_filled_is_no_error(pooled):
    await pooled.stop()
    pooled.engine.refuse = LaunchError("no more")
    await pooled.start()
    ended = await pooled.run("true")
    assert (ended.code, ended.error) == (JobCode.LAUNCH_FAILED, "no more")
    pooled.engine.refuse = None
    assert (await pooled.run("true")).status is Status.COMPLETED


def warm_when(monkeypatch, is_allowed: asyncio.Event) -> None:
    """Have no VM warmed before."""

    async def warm(connection, capabilities):
        await is_allowed.wait()
        await warmed(connection, capabilities)

    warmed = launch.warm
    monkeypatch.setattr(launch, "warm", warm)


async def fit(pooled, count: int) -> list[str]:
    """Return the names of the VMs that may be taken once there are so many, and being warmed."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            stocks = pooled.node.pool._stocks.values()
            if sum(stock.count - stock.making for stock in stocks) == count:
                return [vm.handle.vm for stock in stocks for vm in stock.ready]
            await asyncio.sleep(0.01)


async def test_one_may_be_taken_before_it_is_warm(pooled, monkeypatch):
    is_allowed = asyncio.Event()
    warm_when(monkeypatch, is_allowed)
    await pooled.restart(launches_at_once=1, pool_min=3, pool_max=3)
    # One is being warmed, and the others wait for that.
    ready = await fit(pooled, 3)
    assert len(ready) == 2
    assert pooled.app.pool_status().idle_vms == 0
    assert (await pooled.run("hostname")).vm_id in ready
    is_allowed.set()
    await pooled.waiting(3)


async def test_one_that_ends_while_it_is_warmed_is_replaced(pooled, monkeypatch):
    is_allowed = asyncio.Event()
    warm_when(monkeypatch, is_allowed)
    await pooled.restart(launches_at_once=2)
    async with asyncio.timeout(DEADLINE_S):
        while not all(stock.warming == 2 for stock in pooled.node.pool._stocks.values()):
            await asyncio.sleep(0.01)
    processes = shims(pooled)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    await all_gone(processes)
    is_allowed.set()
    await pooled.waiting(2)
    assert not processes & shims(pooled)
    assert (await pooled.run("true")).status is Status.COMPLETED


async def test_one_that_is_being_warmed_ends_with_the_service(pooled, monkeypatch):
    warm_when(monkeypatch, asyncio.Event())
    await pooled.restart(launches_at_once=2)
    await fit(pooled, 2)
    processes = shims(pooled)
    await pooled.stop()
    assert list((pooled.directory / "run").iterdir()) == []
    assert all(map(is_gone, processes))
    await pooled.start()


async def test_nothing_waits_any_more_after_a_stop(pooled):
    processes = shims(pooled)
    assert len(processes) == 2
    await pooled.stop()
    assert list((pooled.directory / "run").iterdir()) == []
    assert all(map(is_gone, processes))
    await pooled.start()


async def test_a_job_that_ran_when_the_service_stopped_goes_on(pooled):
    job = await pooled.running(f"echo in; {pooled.wait_at('gate')}; exit 4")
    await pooled.printed(job.request_id, "in")
    await pooled.restart()
    await pooled.open_gate("gate")
    ended = await pooled.until(job.request_id)
    assert (ended.exit_code, ended.vm_id) == (4, job.vm_id)


async def test_the_same_submit_again_takes_no_vm(pooled):
    await pooled.waiting(2)
    spec = JobSpec("true")
    first = await pooled.app.submit(pooled.principal, spec, "a key")
    await pooled.until(first.request_id)
    waiting = await pooled.waiting(2)
    again = await pooled.app.submit(pooled.principal, spec, "a key")
    assert again.request_id == first.request_id
    with pytest.raises(ConflictError):
        await pooled.app.submit(pooled.principal, JobSpec("false"), "a key")
    assert await pooled.waiting(2) == waiting
    assert pooled.node.room.free.vms == pooled.node.room.capacity.vms


async def test_a_submit_that_cannot_be_recorded_leaves_nothing(pooled):
    free = pooled.node.room.free

    def fail(connection):
        raise CapacityError("no")

    write = pooled.database.write
    pooled.database.write = lambda work: write(fail)
    with pytest.raises(CapacityError):
        await pooled.submit("true")
    pooled.database.write = write
    assert pooled.node.room.free == free
    assert (await pooled.run("true")).status is Status.COMPLETED
    await pooled.waiting(2)


async def test_a_job_that_is_stopped_at_once_ends_and_so_does_its_vm(pooled):
    for _ in range(5):
        submitted = await pooled.submit("sleep 100")
        stopped = await pooled.app.stop(pooled.principal, submitted.request_id)
        assert (stopped.code, stopped.exit_code) == (JobCode.STOPPED, 143)
        await pooled.gone(stopped.vm_id or "none")
    await pooled.waiting(2)


async def test_waiting_vms_end_with_the_process_that_holds_them(pooled):
    waiting = await pooled.waiting(2)
    processes = {pooled.record(vm).shim_pid for vm in waiting}
    # As the kernel does when the process is killed: all its sockets go.
    for stock in pooled.node.pool._stocks.values():
        for vm in list(stock.ready):
            await vm.connection.aclose()
    await all_gone(processes)


async def test_one_that_was_claimed_outlives_it(pooled):
    job = await pooled.running("sleep 100")
    connection = await ShimConnection.open(pooled.directory / "run" / job.vm_id)
    await pooled.stop()
    assert connection.durable(1) is not None
    await connection.request("note", text="still here")
    await connection.aclose()
    await pooled.start()
    await pooled.app.stop(pooled.principal, job.request_id)
