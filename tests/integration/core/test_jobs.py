"""Jobs on real shims and agents, real SQLite and real journals: what becomes of them."""

import asyncio
import dataclasses
import os
import signal
import sqlite3

import pytest

from magsd.model.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    JobCode,
    LaunchError,
    NotFoundError,
)
from magsd.model.lifecycle import Status
from magsd.model.records import JobSpec
from tests.integration.core.service import DEADLINE_S


async def test_a_script_runs_and_its_log_and_exit_code_are_kept(service):
    submitted = await service.submit("echo out; echo err >&2; printf end; exit 3", name="first")
    assert submitted.status is Status.PENDING
    assert (submitted.vm_id, submitted.exit_code, submitted.engine) == ("", 0, "process")
    ended = await service.until(submitted.request_id)
    assert (ended.status, ended.exit_code, ended.code) == (
        Status.ERROR,
        3,
        JobCode.SCRIPT_FAILED,
    )
    log = await service.log(submitted.request_id)
    assert sorted(log) == [("stderr", "err"), ("stdout", "end"), ("stdout", "out")]
    assert await service.followed(submitted.request_id) == log


async def test_a_script_that_prints_nothing_and_succeeds_is_completed(service):
    ended = await service.run("true")
    assert (ended.status, ended.exit_code, ended.error, ended.code) == (
        Status.COMPLETED,
        0,
        None,
        None,
    )
    assert len(ended.vm_id) == 8
    assert ended.created_at <= ended.started_at <= ended.completed_at
    await service.gone(ended.vm_id)


async def test_the_environment_and_the_place_are_what_was_asked_for(service):
    script = 'echo "$GREETING in $PWD as $(id -un) on $(hostname)"; cat; test -t 0 || echo no tty'
    ended = await service.run(script, environment={"GREETING": "h\u00e9llo\nyou"})
    log = await service.log(ended.request_id)
    expected = ["h\u00e9llo", f"you in /root as root on mags-{ended.vm_id}", "no tty"]
    assert [text for _, text in log] == expected


async def test_a_signal_is_128_and_its_number(service):
    ended = await service.run("kill -9 $$")
    assert (ended.exit_code, ended.code) == (137, JobCode.SCRIPT_FAILED)
    assert "SIGKILL" in ended.error


async def test_a_script_over_its_timeout_is_ended_and_the_log_says_so(service):
    ended = await service.run("echo begun; sleep 100", timeout_s=1)
    assert (ended.status, ended.exit_code, ended.code) == (Status.ERROR, 124, JobCode.TIMEOUT)
    assert await service.log(ended.request_id) == [
        ("stdout", "begun"),
        ("system", "the script was ended after its timeout of 1 s"),
    ]


async def test_what_the_request_held_in_vain_is_the_first_line(service):
    ended = await service.run("echo hi", ignored=("colour", "shape"))
    assert await service.log(ended.request_id) == [
        ("system", "ignored unknown fields of the request: colour, shape"),
        ("stdout", "hi"),
    ]


async def test_stop_ends_the_script_and_is_asked_twice_without_harm(service):
    job = await service.running(
        "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 1; done"
    )
    await service.printed(job.request_id, "ready")
    first, second = await asyncio.gather(
        service.app.stop(service.principal, job.request_id),
        service.app.stop(service.principal, job.name),
    )
    assert first == second
    assert (first.status, first.exit_code, first.code) == (Status.ERROR, 143, JobCode.STOPPED)
    log = await service.log(job.request_id)
    assert [line for line in log if line[0] != "stderr"] == [
        ("stdout", "ready"),
        ("stdout", "told"),
        ("system", "the job was stopped"),
    ]
    assert await service.app.stop(service.principal, job.request_id) == first


async def test_a_script_that_ignores_sigterm_is_killed(service):
    job = await service.running("trap '' TERM; echo ready; while :; do sleep 1; done")
    await service.printed(job.request_id, "ready")
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.exit_code, ended.code) == (143, JobCode.STOPPED)
    assert 4.5 <= (ended.completed_at - ended.started_at).total_seconds() < DEADLINE_S


async def test_a_job_stopped_during_its_launch_ends_without_having_begun(service):
    service.engine.may_launch.clear()
    job = await service.submit("echo never")
    await service.engine.is_launching.wait()
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.status, ended.code, ended.started_at) == (Status.ERROR, JobCode.STOPPED, None)
    assert service.engine.launched == []
    log = await service.log(job.request_id)
    assert log == [("system", "the job was stopped")]


async def test_a_job_that_waits_for_its_turn_can_be_stopped(service):
    service.engine.may_launch.clear()
    others = [await service.submit("true") for _ in range(service.settings.launches_at_once)]
    waiting = await service.submit("true")
    ended = await service.app.stop(service.principal, waiting.request_id)
    assert (ended.status, ended.code, ended.vm_id) == (Status.ERROR, JobCode.STOPPED, "")
    service.engine.may_launch.set()
    for job in others:
        assert (await service.until(job.request_id)).status is Status.COMPLETED


async def test_a_vm_that_cannot_be_launched_is_an_error_without_exit_code(service):
    service.engine.refuse = LaunchError("no room at the inn", "detail")
    ended = await service.run("true")
    assert (ended.status, ended.exit_code) == (Status.ERROR, None)
    assert (ended.code, ended.error) == (JobCode.LAUNCH_FAILED, "no room at the inn")
    assert await service.log(ended.request_id) == [("system", "no room at the inn")]


async def test_a_damaged_image_is_told(service):
    for layer in (service.directory / "layers").glob("*.sqfs"):
        layer.chmod(0o644)
        layer.write_bytes(b"something else")
    ended = await service.run("true")
    assert (ended.code, ended.exit_code) == (JobCode.IMAGE_DAMAGED, None)


async def test_a_vm_that_dies_under_its_script_is_137(service):
    job = await service.running("echo ready; sleep 100")
    await service.printed(job.request_id, "ready")
    os.kill(service.record(job.vm_id).shim_pid, signal.SIGKILL)
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.code) == (137, JobCode.SHIM_DIED)
    assert await service.log(job.request_id) == [("stdout", "ready"), ("system", ended.error)]


# --- what may be asked ---------------------------------------------------------


async def test_the_same_key_gives_the_same_job(service):
    spec = JobSpec("echo once", name="keyed")
    submit = service.app.submit
    several = await asyncio.gather(*(submit(service.principal, spec, "key") for _ in range(8)))
    assert len({status.request_id for status in several}) == 1
    ended = await service.until(several[0].request_id)
    assert await submit(service.principal, spec, "key") == ended
    with pytest.raises(ConflictError, match=ended.request_id):
        await submit(service.principal, JobSpec("echo twice", name="keyed"), "key")
    assert (await submit(service.principal, spec, "other")).request_id != ended.request_id
    # A day later the key is free again.
    await service.change("UPDATE job SET created_at = created_at - 86400000001")
    assert (await submit(service.principal, spec, "key")).request_id != ended.request_id


async def test_what_cannot_be_is_refused(service):
    with pytest.raises(InvalidError, match=r"no 'qemu' here \(known: auto, process\)"):
        await service.submit("true", engine="qemu")
    with pytest.raises(InvalidError, match="known: standard"):
        await service.submit("true", rootfs_type="browser")
    with pytest.raises(InvalidError, match="between 1 and 8"):
        await service.submit("true", vcpus=9)
    with pytest.raises(NotFoundError):
        await service.app.status(service.principal, "nothing")


async def test_another_account_sees_nothing(service):
    ended = await service.run("echo secret", name="mine")
    _, secret = await service.app.access.create_token(
        service.principal, name="other", account="other"
    )
    other = await service.app.access.authenticate(secret)
    for ref in (ended.request_id, "mine"):
        for ask in (service.app.status, service.app.stop, service.app.logs):
            with pytest.raises(NotFoundError):
                await ask(other, ref)
        with pytest.raises(NotFoundError):
            await anext(service.app.follow_logs(other, ref))
    assert (await service.app.list_jobs(other, page=1, page_size=10)).total == 0
    assert (await service.app.list_jobs(service.principal, page=1, page_size=10)).total == 1


async def test_many_jobs_at_once_all_complete(service):
    submitted = await asyncio.gather(*(service.submit(f"echo {n}") for n in range(40)))
    for n, job in enumerate(submitted):
        ended = await service.until(job.request_id)
        assert (ended.status, await service.log(job.request_id)) == (
            Status.COMPLETED,
            [("stdout", str(n))],
        )
    page = await service.app.list_jobs(service.principal, page=2, page_size=30)
    assert (len(page.jobs), page.total) == (10, 40)


async def test_vms_wait_for_a_place_and_give_it_back(tmp_path, service):
    capacity = dataclasses.replace(service.settings.capacity, vms=1)
    await service.restart(capacity=capacity)
    first = await service.running(f"echo in; {service.wait_at('gate')}")
    await service.printed(first.request_id, "in")
    second = await service.submit("true")
    assert len(service.engine.launched) == 1
    await service.restart()
    await service.open_gate("gate")
    assert (await service.until(second.request_id)).status is Status.COMPLETED


# --- a host in trouble -----------------------------------------------------------


async def test_a_result_is_kept_until_it_can_be_recorded(service):
    job = await service.running(f"{service.wait_at('gate')}; exit 7")
    await service.database.write(lambda tx: tx.exec_driver_sql("PRAGMA busy_timeout=0") and None)
    other = sqlite3.connect(service.directory / "mags.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await service.open_gate("gate")
    await service.script_over(job.vm_id)
    with pytest.raises(CapacityError):
        await service.submit("true")
    assert "locked" in service.app.readiness()
    assert not (await service.app.status(service.principal, job.request_id)).is_final
    other.close()
    assert (await service.until(job.request_id)).exit_code == 7
    assert service.app.readiness() is None
