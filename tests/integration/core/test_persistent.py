"""Jobs whose VM stays when their script is over: real shims and agents, real SQLite."""

import asyncio
import os
import signal

import pytest

from magsd.model.errors import ConflictError, InvalidError, JobCode
from magsd.model.lifecycle import Status
from tests.integration.core.service import RESTARTED


async def kept(service, script="true", **fields):
    """Return the status of a persistent job whose script is over."""
    job = await service.submit(script, persistent=True, **fields)
    return await service.until(job.request_id, lambda now: now.script_ended_at)


def kill_shim(service, status):
    os.kill(service.record(status.vm_id).shim_pid, signal.SIGKILL)


async def test_it_runs_from_the_moment_its_vm_is_there_and_goes_on_after_its_script(service):
    job = await service.running(f"{service.wait_at('gate')}; exit 3", persistent=True)
    assert (job.vm_id != "", job.exit_code, job.script_duration_ms) == (True, 0, 0)
    await service.open_gate("gate")
    status = await service.app.status(
        service.principal, job.request_id, wait_s=30, after_generation=job.generation
    )
    assert (status.status, status.exit_code, status.vm_id) == (Status.RUNNING, 3, job.vm_id)
    assert status.script_duration_ms > 0
    assert (status.completed_at, status.error, status.code) == (None, None, None)
    assert service.app.pool_status().busy_vms == 1
    listed = await service.app.list_jobs(service.principal, page=1, page_size=10)
    assert listed.jobs == (status,)


async def test_stop_completes_it_and_its_scripts_result_stays(service):
    status = await kept(service, "echo done; sleep 0.01; exit 3")
    ended = await service.app.stop(service.principal, status.request_id)
    assert (ended.status, ended.exit_code, ended.error, ended.code) == (
        Status.COMPLETED,
        3,
        None,
        None,
    )
    assert ended.script_duration_ms == status.script_duration_ms
    assert ended.completed_at is not None
    assert await service.app.stop(service.principal, status.request_id) == ended
    assert await service.log(status.request_id) == [
        ("stdout", "done"),
        ("system", "the job was stopped"),
    ]
    await service.gone(status.vm_id)
    await service.at_rest()


async def test_a_script_that_goes_on_is_ended_by_stop(service):
    job = await service.running("sleep infinity", persistent=True)
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (Status.COMPLETED, 143, None)
    await service.gone(job.vm_id)


async def test_one_that_never_began_is_completed_by_stop_too(service):
    service.engine.may_launch.clear()
    job = await service.submit("true", persistent=True)
    await service.engine.is_launching.wait()
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (Status.COMPLETED, None, None)
    service.engine.may_launch.set()


async def test_a_timeout_ends_its_script_alone(service):
    status = await kept(service, "sleep 100", timeout_s=1)
    assert (status.status, status.exit_code, status.error) == (Status.RUNNING, 124, None)
    log = await service.log(status.request_id)
    assert log == [("system", "the script was ended after its timeout of 1 s")]


async def test_without_one_its_script_has_no_timeout(service):
    await service.restart(
        limits=service.settings.limits.__class__(default_timeout_s=1, max_timeout_s=5)
    )
    job = await service.submit(f"sleep 2; {service.wait_at('gate')}; exit 4", persistent=True)
    await service.open_gate("gate")
    status = await service.until(job.request_id, lambda now: now.script_ended_at)
    assert status.exit_code == 4


@pytest.mark.parametrize("script", ["sleep infinity", "exit 3"])
async def test_a_vm_that_dies_ends_it(service, script):
    job = await service.running(script, persistent=True)
    is_over = script != "sleep infinity"
    if is_over:
        job = await service.until(job.request_id, lambda now: now.script_ended_at)
    kill_shim(service, job)
    ended = await service.until(job.request_id)
    assert (ended.status, ended.code) == (Status.ERROR, JobCode.SHIM_DIED)
    assert ended.exit_code == (3 if is_over else 137)
    assert await service.log(job.request_id) == [("system", ended.error)]
    with pytest.raises(ConflictError, match="over"):
        await service.app.execs.run(service.principal, job.request_id, "true", 5)


# --- daemons that go and come ----------------------------------------------------


async def test_it_outlives_its_daemon(service):
    status = await kept(service, "sleep 0.01; exit 3")
    await service.restart()
    again = await service.app.status(service.principal, status.request_id)
    assert (again.status, again.exit_code, again.vm_id) == (Status.RUNNING, 3, status.vm_id)
    await service.printed(status.request_id, RESTARTED)
    done = await service.app.execs.run(service.principal, status.request_id, "echo back", 10)
    assert done.stdout == b"back\n"
    ended = await service.app.stop(service.principal, status.request_id)
    assert (ended.status, ended.exit_code) == (Status.COMPLETED, 3)


async def test_a_script_that_ended_while_no_daemon_ran_has_its_result(service):
    job = await service.running(f"{service.wait_at('gate')}; exit 5", persistent=True)
    await service.stop()
    await service.open_gate("gate")
    await service.script_over(job.vm_id)
    await service.start()
    status = await service.until(job.request_id, lambda now: now.script_ended_at)
    assert (status.status, status.exit_code, status.vm_id) == (Status.RUNNING, 5, job.vm_id)


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_a_vm_that_died_while_no_daemon_ran_ends_it(service, is_recorded):
    if is_recorded:
        job = await kept(service, "sleep 0.01; exit 5")
        await service.stop()
    else:
        job = await service.running(f"{service.wait_at('gate')}; exit 5", persistent=True)
        await service.stop()
        await service.open_gate("gate")
        await service.script_over(job.vm_id)
    kill_shim(service, job)
    await service.start()
    ended = await service.until(job.request_id)
    assert (ended.status, ended.code, ended.exit_code) == (Status.ERROR, JobCode.SHIM_DIED, 5)
    assert ended.script_duration_ms > 0


async def test_a_stop_that_was_asked_for_goes_on_after_a_restart(service):
    status = await kept(service, "sleep 0.01; exit 5")
    await service.stop_after("UPDATE job SET goal = 'stopped', goal_version = 2")
    await service.start()
    ended = await service.until(status.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (Status.COMPLETED, 5, None)
    await service.gone(status.vm_id)


async def test_one_that_died_on_request_while_nobody_wrote_it_down_is_completed(service):
    status = await kept(service, "sleep 0.01; exit 5")
    await service.stop_after("UPDATE job SET goal = 'stopped', goal_version = 2")
    handle = await service.engine.adopt(service.directory / "run" / status.vm_id)
    await service.engine.stop(handle)
    await service.start()
    ended = await service.until(status.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (Status.COMPLETED, 5, None)


# --- settings ----------------------------------------------------------------------


async def test_whether_it_may_sleep_is_changed_and_told(service):
    status = await kept(service, no_sleep=True)
    assert status.no_sleep
    changed = await service.app.update(service.principal, status.request_id, no_sleep=False)
    assert (changed.no_sleep, changed.generation) == (False, status.generation + 1)
    assert await service.app.update(service.principal, status.name, no_sleep=None) == changed
    several = await asyncio.gather(
        *(
            service.app.update(service.principal, status.request_id, no_sleep=value)
            for value in (True, False, True)
        ),
        service.app.stop(service.principal, status.request_id),
        return_exceptions=True,
    )
    assert all(
        not isinstance(one, BaseException) or isinstance(one, ConflictError) for one in several
    )
    ended = await service.until(status.request_id)
    assert ended.status is Status.COMPLETED
    with pytest.raises(ConflictError, match="over"):
        await service.app.update(service.principal, status.request_id, no_sleep=not ended.no_sleep)
    await service.restart()
    again = await service.app.status(service.principal, status.request_id)
    assert again == ended


async def test_a_script_that_ends_with_its_vm_never_sleeps(service):
    job = await service.running("sleep 100")
    with pytest.raises(InvalidError, match="persistent"):
        await service.app.update(service.principal, job.request_id, no_sleep=True)


async def test_it_counts_for_its_account_until_it_is_stopped(service):
    status = await kept(service)
    used = service.node.quotas.used(service.principal.account_id)
    assert used.vms == 1
    await service.app.stop(service.principal, status.request_id)
    await service.at_rest()
    assert service.node.quotas.used(service.principal.account_id).vms == 0
