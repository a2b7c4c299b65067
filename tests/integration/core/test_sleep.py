"""Jobs that sleep and are woken: real shims and agents, real SQLite."""

import asyncio
import dataclasses
import json

import pytest

from magsd.engine.base import Handle
from magsd.model.errors import CapacityError, ConflictError, JobCode, LaunchError
from magsd.model.lifecycle import Status
from tests.integration.core.service import RESTARTED

ASLEEP = ("system", "the job went to sleep")
CUT_OFF = ("system", "the job went to sleep, and its script was ended")
OWN_DISK = ("system", "started from its own disk")
STOPPED = ("system", "the job was stopped")


async def kept(service, script="true", **fields):
    """Return the status of a persistent job whose script is over."""
    job = await service.submit(script, persistent=True, **fields)
    return await service.until(job.request_id, lambda now: now.script_ended_at)


async def fall_asleep(service, request_id):
    """Have a job sleep as if nobody had used it; return its status then."""
    await service.app._supervisor.put_to_sleep(request_id)
    return await service.until(request_id, lambda now: now.sleeping)


async def sleeping(service, script="true", **fields):
    """Return the status of a job that sleeps."""
    return await fall_asleep(service, (await kept(service, script, **fields)).request_id)


async def execute(service, job, command="true"):
    return await service.app.execs.run(service.principal, job.request_id, command, 20)


async def status_of(service, job):
    return await service.app.status(service.principal, job.request_id)


def on_disk(service, job):
    return (service.directory / "changes" / f"mags-{job.vm_id}" / "file").read_text()


def on_disk_command(service, text):
    return f"echo {text} > {service.directory}/changes/$(hostname)/file"


async def test_asleep_it_is_a_disk_and_a_row_and_a_command_wakes_it(service):
    free = service.node.room.free
    awake = await kept(service, "echo one; exit 3")
    await execute(service, awake, on_disk_command(service, "mine"))
    job = await fall_asleep(service, awake.request_id)
    assert (job.status, job.exit_code, job.vm_id) == (Status.SLEEPING, 3, awake.vm_id)
    assert (job.script_ended_at, job.completed_at) == (awake.script_ended_at, None)
    taken = free.minus(service.node.room.free)
    assert (taken.vms, taken.vcpus, taken.memory_mb, taken.disk_gb) == (0, 0, 0, 2)
    used = service.node.quotas.used(service.principal.account_id)
    assert (used.vms, used.vcpus, used.memory_mb, used.disk_gb) == (1, 0, 0, 2)
    assert service.app.pool_status().busy_vms == 0
    assert await service.engine.adopt(service.directory / "run" / job.vm_id) is None
    done = await execute(service, job, f"cat {service.directory}/changes/$(hostname)/file")
    assert done.stdout == b"mine\n"
    again = await status_of(service, job)
    assert (again.status, again.exit_code, again.vm_id) == (Status.RUNNING, 3, awake.vm_id)
    assert (again.script_ended_at, again.sleeping) == (awake.script_ended_at, False)
    assert free.minus(service.node.room.free).vms == 1
    assert service.node.quotas.used(service.principal.account_id).vcpus == 1
    assert await service.log(job.request_id) == [("stdout", "one"), ASLEEP, OWN_DISK]
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (Status.COMPLETED, 3, None)
    await service.gone(job.vm_id)
    await service.at_rest()
    assert service.node.room.free == free
    assert service.node.quotas.used(service.principal.account_id).vms == 0
    assert not (service.directory / "changes" / f"mags-{job.vm_id}").exists()


async def test_a_script_that_goes_on_is_ended_by_sleep_and_never_run_again(service):
    marks = service.directory / "marks"
    script = f"echo begun >> {marks}; trap 'echo late; exit 0' TERM; sleep 100 & wait"
    job = await service.running(script, persistent=True)
    await service.app.execs.run(service.principal, job.request_id, "true", 10)
    asleep = await fall_asleep(service, job.request_id)
    assert (asleep.status, asleep.exit_code) == (Status.SLEEPING, 143)
    assert asleep.script_ended_at is not None
    await execute(service, job)
    assert (await status_of(service, job)).exit_code == 143
    assert marks.read_text() == "begun\n"
    assert await service.log(job.request_id) == [("stdout", "late"), CUT_OFF, OWN_DISK]


async def test_a_startup_command_is_run_at_each_wake_and_its_failure_is_told(service):
    job = await sleeping(
        service, "echo script", startup_command="echo $WHO; exit 7", environment={"WHO": "me"}
    )
    await execute(service, job)
    failed = "the startup command ended with exit code 7"
    await service.printed(job.request_id, failed)
    await service.restart()
    await service.printed(job.request_id, RESTARTED)
    await execute(service, job)
    await service.app.update(service.principal, job.request_id, startup_command="echo other")
    await fall_asleep(service, job.request_id)
    await execute(service, job)
    await service.printed(job.request_id, "other")
    log = await service.log(job.request_id)
    assert log.count(("system", failed)) == 1
    assert [line for line in log if line[0] == "stdout"] == [
        ("stdout", "script"),
        ("stdout", "me"),
        ("stdout", "other"),
    ]
    assert (await status_of(service, job)).status is Status.RUNNING


async def test_a_startup_command_that_serves_is_ended_by_the_next_sleep(service):
    job = await sleeping(service, startup_command="echo begun; sleep 100")
    for _ in range(2):
        await execute(service, job)
        await fall_asleep(service, job.request_id)
    log = await service.log(job.request_id)
    assert log.count(("stdout", "begun")) == 2
    assert not [line for line in log if "startup" in line[1]]


async def test_a_thousand_who_want_it_cause_one_wake(service):
    job = await sleeping(service)
    count = len(service.engine.launched)
    held = asyncio.Semaphore(0)
    done = asyncio.Event()

    async def use():
        async with service.app.leases.hold(job) as lease:
            held.release()
            await done.wait()
            return lease.run.epoch

    async with asyncio.timeout(60):
        users = [asyncio.ensure_future(use()) for _ in range(1000)]
        for _ in users:
            await held.acquire()
    assert service.node.uses.count(job.request_id) == 1000
    await service.app._supervisor.put_to_sleep(job.request_id)
    done.set()
    assert set(await asyncio.gather(*users)) == {2}
    assert len(service.engine.launched) == count + 1
    assert service.node.uses.count(job.request_id) == 0
    assert (await status_of(service, job)).status is Status.RUNNING


async def test_all_are_told_why_it_was_not_woken_and_it_sleeps_on(service):
    job = await sleeping(service)
    before = service.node.room.free
    service.engine.refuse = LaunchError("no sandboxes today")
    results = await asyncio.gather(
        *(execute(service, job) for _ in range(50)), return_exceptions=True
    )
    assert {type(result) for result in results} == {CapacityError}
    assert {str(result) for result in results} == {
        "the job sleeps and could not be woken: no sandboxes today"
    }
    again = await status_of(service, job)
    assert (again.status, again.error) == (Status.SLEEPING, None)
    assert service.node.room.free == before
    service.engine.refuse = None
    await execute(service, job)
    assert (await status_of(service, job)).status is Status.RUNNING
    assert await service.log(job.request_id) == [ASLEEP, OWN_DISK]


async def test_a_machine_without_room_says_so(service):
    await service.restart(
        capacity=dataclasses.replace(service.settings.capacity, vms=1), wake_wait_s=0.2
    )
    job = await sleeping(service)
    other = await kept(service)
    with pytest.raises(CapacityError, match="no room"):
        await execute(service, job)
    assert (await status_of(service, job)).sleeping
    await service.app.stop(service.principal, other.request_id)
    await service.at_rest()
    await execute(service, job)


async def test_an_account_without_quota_is_told_which(service):
    quota = dataclasses.replace(service.settings.quota, vcpus_max=1)
    await service.restart(quota=quota)
    job = await sleeping(service)
    other = await kept(service)
    with pytest.raises(CapacityError, match="vcpus_max"):
        await execute(service, job)
    await service.app.stop(service.principal, other.request_id)
    await execute(service, job)


# --- goals that cross ------------------------------------------------------------


async def test_stop_completes_what_sleeps_without_waking_it(service):
    job = await sleeping(service, "exit 3")
    count = len(service.engine.launched)
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (Status.COMPLETED, 3, None)
    await service.gone(job.vm_id)
    assert len(service.engine.launched) == count
    assert await service.log(job.request_id) == [ASLEEP, STOPPED]
    with pytest.raises(ConflictError, match="over"):
        await execute(service, job)


async def test_who_wants_it_while_it_falls_asleep_has_it_afterwards(service):
    job = await service.running(
        "trap '' TERM; echo ready; while :; do sleep 0.1; done", persistent=True
    )
    await service.printed(job.request_id, "ready")
    await service.app._supervisor.put_to_sleep(job.request_id)
    async with asyncio.timeout(30):
        while not service.node.uses.is_closed(job.request_id):
            await asyncio.sleep(0.01)
    done = await execute(service, job, "echo here")
    assert done.stdout == b"here\n"
    assert (await service.log(job.request_id))[-2:] == [CUT_OFF, OWN_DISK]


async def test_who_uses_it_keeps_it_awake(service):
    job = await kept(service)
    async with service.app.leases.hold(job):
        await service.app._supervisor.put_to_sleep(job.request_id)
        actor = service.app._supervisor._actors[job.request_id]
        async with asyncio.timeout(30):
            while actor.job.goal_version < 3:
                await asyncio.sleep(0.01)
        await execute(service, job)
    assert (await status_of(service, job)).status is Status.RUNNING
    assert await service.log(job.request_id) == []


@pytest.mark.parametrize("when", ["falling asleep", "waking"])
async def test_stop_comes_between(service, when):
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    if when == "waking":
        job = await sleeping(service)
        service.engine.may_launch.clear()
        service.engine.is_launching.clear()
        waiting = asyncio.ensure_future(execute(service, job))
        await service.engine.is_launching.wait()
    else:
        job = await service.running(script, persistent=True)
        await service.printed(job.request_id, "ready")
        waiting = asyncio.ensure_future(service.app._supervisor.put_to_sleep(job.request_id))
        async with asyncio.timeout(30):
            while not service.node.uses.is_closed(job.request_id):
                await asyncio.sleep(0.01)
    ended = await service.app.stop(service.principal, job.request_id)
    service.engine.may_launch.set()
    assert (ended.status, ended.code) == (Status.COMPLETED, None)
    if when == "waking":
        with pytest.raises(ConflictError, match="ended"):
            await waiting
    else:
        await waiting
    await service.gone(job.vm_id)
    assert not list((service.directory / "changes").iterdir())


async def test_one_that_must_not_sleep_any_more_is_woken(service):
    job = await sleeping(service)
    changed = await service.app.update(service.principal, job.request_id, no_sleep=True)
    assert changed.no_sleep
    await service.until(job.request_id, lambda now: now.status is Status.RUNNING)
    await service.app._supervisor.put_to_sleep(job.request_id)
    await execute(service, job)
    log = await service.log(job.request_id)
    assert log == [ASLEEP, OWN_DISK]


# --- its log -----------------------------------------------------------------------


async def test_its_log_is_one_and_a_follower_goes_on_across_sleep_and_wake(service):
    job = await kept(service, "echo one")
    seen = []

    async def follow():
        async for lines in service.app.follow_logs(service.principal, job.request_id):
            seen.extend(lines)

    following = asyncio.ensure_future(follow())
    for _ in range(3):
        await fall_asleep(service, job.request_id)
        await execute(service, job)
    await service.app.stop(service.principal, job.request_id)
    async with asyncio.timeout(30):
        await following
    assert [line.message for line in seen] == [
        "one",
        *("the job went to sleep", "started from its own disk") * 3,
        "the job was stopped",
    ]
    seqs = [line.seq for line in seen]
    assert seqs == sorted(set(seqs))
    await service.gone(job.vm_id)
    again = await service.app.logs(service.principal, job.request_id, after=0)
    assert [(line.seq, line.message) for line in again.lines] == [
        (line.seq, line.message) for line in seen
    ]


# --- daemons that go and come --------------------------------------------------------


async def test_it_sleeps_on_when_the_service_is_restarted(service):
    job = await sleeping(service, "echo one; exit 3")
    await service.restart()
    free = service.settings.capacity.minus(service.node.room.free)
    again = await status_of(service, job)
    assert (again.status, again.vm_id, again.exit_code) == (Status.SLEEPING, job.vm_id, 3)
    used = service.node.quotas.used(service.principal.account_id)
    assert (used.vms, used.vcpus) == (1, 0)
    assert (free.vms, free.vcpus) == (0, 0)
    await execute(service, job)
    assert await service.log(job.request_id) == [("stdout", "one"), ASLEEP, OWN_DISK]


@pytest.mark.parametrize("has_vm", [True, False])
@pytest.mark.parametrize("goal", ["running", "asleep", "stopped"])
@pytest.mark.parametrize("state", ["suspending", "waking"])
async def test_what_a_daemon_died_in_is_brought_to_its_end(service, state, goal, has_vm):
    job = await kept(service, "echo one; exit 3")
    if state == "waking":
        await fall_asleep(service, job.request_id)
        await execute(service, job)
    await service.stop_after(f"UPDATE run SET state = '{state}'")
    if not has_vm:
        directory = service.directory / "run" / job.vm_id
        handle = await service.engine.adopt(directory)
        await service.engine.stop(handle, keep_changes=True)
    await service.start()
    await service.stop_after(f"UPDATE job SET goal = '{goal}', goal_version = 9")
    await service.start()
    if goal == "stopped":
        ended = await service.until(job.request_id)
        assert (ended.status, ended.exit_code) == (Status.COMPLETED, 3)
        await service.gone(job.vm_id)
        return
    wanted = Status.RUNNING if goal == "running" else Status.SLEEPING
    await service.until(job.request_id, lambda now: now.status is wanted)
    await execute(service, job)
    assert (await status_of(service, job)).exit_code == 3


@pytest.mark.parametrize("no_sleep", [True, False])
async def test_after_a_restart_of_the_host_it_goes_on_from_its_disk(service, no_sleep):
    job = await service.running(
        f"echo mine > {service.directory}/changes/$(hostname)/file; sleep 100",
        persistent=True,
        no_sleep=no_sleep,
    )
    async with asyncio.timeout(30):
        while not (service.directory / "changes" / f"mags-{job.vm_id}" / "file").exists():
            await asyncio.sleep(0.01)
    await end_host(service, job)
    wanted = Status.RUNNING if no_sleep else Status.SLEEPING
    again = await service.until(
        job.request_id, lambda now: now.restored_from and now.status is wanted
    )
    assert (again.restored_from, again.exit_code) == ("local", 137)
    await execute(service, job)
    assert on_disk(service, job) == "mine\n"
    lost = ("system", "the host was restarted; the job goes on from its own disk")
    assert (await service.log(job.request_id))[:2] == [lost, OWN_DISK]


async def end_host(service, job):
    """Have the service begin anew on a host that was restarted."""
    record = service.record(job.vm_id)
    await service.stop()
    await service.engine.stop(
        Handle(job.vm_id, record.epoch, service.directory / "run" / job.vm_id), keep_changes=True
    )
    directory = service.directory / "run" / job.vm_id
    (directory / "state").write_bytes(b"")
    content = json.loads((directory / "record.json").read_text())
    (directory / "record.json").write_text(json.dumps({**content, "boot_id": "another"}))
    await service.start()


async def test_one_whose_disk_is_gone_is_state_lost_and_never_begins_anew(service):
    job = await sleeping(service, "exit 3")
    (service.directory / "changes" / f"mags-{job.vm_id}").rmdir()
    count = len(service.engine.launched)
    with pytest.raises(ConflictError, match="ended"):
        await execute(service, job)
    ended = await service.until(job.request_id)
    assert (ended.status, ended.code, ended.exit_code) == (Status.ERROR, JobCode.STATE_LOST, 3)
    assert len(service.engine.launched) == count
