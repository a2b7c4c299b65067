"""The daemon goes away and comes back; its jobs go on."""

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from magsd.engine.base import Plan
from magsd.model.errors import (
    JobCode,
    LaunchError,
)
from magsd.model.lifecycle import LAUNCHES_MAX, Status
from magsd.model.names import VmId
from tests.integration.core import killed_service
from tests.integration.core.killed_service import spec
from tests.integration.core.service import DEADLINE_S, RESTARTED


async def test_a_job_goes_on_while_no_daemon_runs(service):
    job = await service.running(f"echo one; {service.wait_at('gate')}; echo two; exit 5")
    await service.printed(job.request_id, "one")
    await service.restart()
    now = await service.app.status(service.principal, job.request_id)
    assert (now.status, now.vm_id) == (Status.RUNNING, job.vm_id)
    await service.printed(job.request_id, RESTARTED)
    await service.open_gate("gate")
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.vm_id, ended.started_at) == (5, job.vm_id, job.started_at)
    assert await service.log(job.request_id) == [
        ("stdout", "one"),
        ("system", RESTARTED),
        ("stdout", "two"),
    ]


async def test_a_script_that_ended_while_no_daemon_ran_keeps_its_result(service):
    job = await service.running(f"echo one; {service.wait_at('gate')}; echo two; exit 5")
    await service.printed(job.request_id, "one")
    await service.stop()
    await service.open_gate("gate")
    await service.script_over(job.vm_id)
    await service.start()
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.code) == (5, JobCode.SCRIPT_FAILED)
    assert await service.log(job.request_id) == [("stdout", "one"), ("stdout", "two")]
    await service.gone(job.vm_id)
    await service.restart()
    assert (await service.app.status(service.principal, job.request_id)).exit_code == 5
    assert len(await service.followed(job.request_id)) == 2


async def test_a_vm_that_died_while_no_daemon_ran_is_told(service):
    job = await service.running("echo one; sleep 100")
    await service.printed(job.request_id, "one")
    await service.stop()
    os.kill(service.record(job.vm_id).shim_pid, signal.SIGKILL)
    await service.start()
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.code) == (137, JobCode.SHIM_DIED)


async def test_a_vm_of_which_nothing_is_left_is_told(service):
    job = await service.running("echo one; sleep 100")
    await service.stop()
    await service.engine.sweep(frozenset())
    shutil.rmtree(service.directory / "run" / job.vm_id)
    await service.start()
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.code) == (137, JobCode.SHIM_DIED)


async def test_a_stop_that_was_asked_for_goes_on_after_a_restart(service):
    job = await service.running("echo ready; sleep 100")
    await service.printed(job.request_id, "ready")
    await service.stop_after("UPDATE job SET goal = 'stopped', goal_version = 2")
    await service.start()
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.code) == (143, JobCode.STOPPED)


async def test_a_claim_without_a_vm_gets_another_vm(service):
    service.engine.may_launch.clear()
    job = await service.submit("echo once")
    await service.engine.is_launching.wait()
    # Cancelled, the launch leaves a claimed row and a directory, as a crash does.
    await service.stop()
    service.engine.may_launch.set()
    await service.start()
    ended = await service.until(job.request_id)
    assert ended.status is Status.COMPLETED
    assert [plan.epoch for plan in service.engine.launched] == [2]
    assert await service.log(job.request_id) == [("stdout", "once")]
    assert [
        line.seq >> 40 for line in (await service.app.logs(service.principal, job.request_id)).lines
    ] == [1]


async def test_a_vm_whose_script_never_began_is_replaced(service):
    service.engine.may_launch.clear()
    job = await service.submit("echo once")
    await service.engine.is_launching.wait()
    await service.stop()
    service.engine.may_launch.set()
    (directory,) = (service.directory / "run").iterdir()
    plan = Plan(VmId(directory.name), 1, "standard", (), "host", 1, 64, 1, 64)
    await service.engine.launch(plan)
    await service.start()
    assert (await service.until(job.request_id)).status is Status.COMPLETED
    assert [plan.epoch for plan in service.engine.launched] == [1, 2]
    assert not directory.exists()


async def test_a_run_that_loses_every_vm_ends(service):
    service.engine.may_launch.clear()
    job = await service.submit("true")
    for _ in range(LAUNCHES_MAX):
        await service.engine.is_launching.wait()
        service.engine.is_launching.clear()
        await service.restart()
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.code) == (None, JobCode.LAUNCH_FAILED)
    await service.gone("*")
    assert f"{LAUNCHES_MAX} VMs were lost" in ended.error


async def test_what_a_crash_kept_from_being_given_back_is_at_the_next_start(service):
    ended = await service.run("echo kept")
    await service.gone(ended.vm_id)
    await service.stop()
    put_away = service.directory / "logs" / ended.request_id / "1"
    put_away.rename(service.directory / "run" / ended.vm_id)
    unknown = service.directory / "run" / "0badcafe"
    unknown.mkdir()
    await service.start()
    assert put_away.is_dir()
    assert not unknown.exists()
    assert not (service.directory / "run" / ended.vm_id).exists()
    assert await service.log(ended.request_id) == [("stdout", "kept")]


async def test_an_engine_that_is_not_ready_harms_no_vm(service):
    job = await service.running(f"echo one; {service.wait_at('gate')}; exit 5")
    await service.printed(job.request_id, "one")
    await service.stop()
    service.engine.unready = LaunchError("the engine is out of order", "detail")
    await service.start()
    assert service.app.readiness() == "the engine is out of order"
    failed = await service.run("true")
    assert failed.code is JobCode.LAUNCH_FAILED
    now = await service.app.status(service.principal, job.request_id)
    assert (now.status, now.vm_id) == (Status.RUNNING, job.vm_id)
    service.engine.unready = None
    await service.open_gate("gate")
    assert (await service.until(job.request_id)).exit_code == 5


@pytest.mark.parametrize("kills_ms", [(0, 40, 5), (250, 20)])
async def test_a_daemon_may_be_killed_at_any_moment(service, kills_ms):
    jobs = 6
    await service.stop()
    for after_ms in kills_ms:
        await killed(service.directory, jobs, after_ms / 1000)
    await service.start()
    for number in range(jobs):
        job = await service.app.submit(
            service.principal, spec(service.directory, number), f"key {number}"
        )
        ended = await service.until(job.request_id)
        marks = service.directory / f"marks-{number}"
        begun = len(marks.read_text().splitlines()) if marks.exists() else 0
        assert (ended.exit_code, begun) == (number, 1), ended
        log = await service.log(job.request_id)
        assert [line for line in log if line[0] != "system"] == [
            ("stdout", "one"),
            ("stdout", "two"),
        ]
    await service.gone("*")
    assert (await service.app.list_jobs(service.principal, page=1, page_size=1)).total == jobs


async def killed(directory, jobs: int, after_s: float) -> None:
    """Run a daemon as a process and kill it a while after it has submitted the jobs."""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        killed_service.__name__,
        directory,
        str(jobs),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while b"submitted" not in (line := await daemon.stdout.readline()):
                assert line, "the daemon ended by itself"
        await asyncio.sleep(after_s)
    finally:
        daemon.kill()
        await daemon.communicate()
