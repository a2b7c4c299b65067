"""Jobs that nobody uses fall asleep: with VMs that are only pretended, and their made-up time."""

import asyncio
import dataclasses

import pytest

from magsd.aio import SystemClock
from magsd.engine.fake.engine import FakeEngine, FakeSettings
from magsd.model.lifecycle import Status
from magsd.storage.images import ImageStore
from tests.integration.core.service import DEADLINE_S, Service

IDLE_S = 1


@pytest.fixture
async def service(tmp_path):
    layer = tmp_path / "layer.sqfs"
    layer.write_bytes(b"hsqs, and nothing of it is read")
    data = tmp_path / "data"
    ImageStore(data).add("standard", layer, {})
    service = Service(data)
    service.engine = FakeEngine(FakeSettings(data), SystemClock())
    limits = dataclasses.replace(service.settings.limits, idle_timeout_s=IDLE_S)
    service.settings = dataclasses.replace(service.settings, limits=limits)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
        await service.engine.prepare()
        await service.engine.sweep(frozenset())
        await service.engine.aclose()


async def kept(service, script="true", **fields):
    job = await service.submit(script, persistent=True, **fields)
    return await service.until(job.request_id, lambda now: now.status is Status.RUNNING)


async def look_until(service, is_reached):
    """Have the task look again and again until something is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not await is_reached():
            service.app._idle.look()
            await asyncio.sleep(0.01)


def sleeps(service, job):
    async def is_asleep():
        return (await service.app.status(service.principal, job.request_id)).sleeping

    return is_asleep


def judged(service, job, times):
    """Return what tells that a job's idle time was begun anew so often."""
    seen = []

    async def is_judged():
        watch = service.app._idle._watches.get(job.request_id)
        if watch is not None and watch not in seen:
            seen.append(watch)
        return len(seen) > times

    return is_judged


async def test_who_does_nothing_sleeps_and_what_must_not_does_not(service):
    idle, waits = await kept(service), await kept(service, "sleep infinity")
    awake, other = await kept(service, no_sleep=True), await service.running("sleep infinity")
    later = await kept(service, idle_timeout_s=1000)
    await look_until(service, sleeps(service, idle))
    await look_until(service, sleeps(service, waits))
    for job in (awake, other, later):
        status = await service.app.status(service.principal, job.request_id)
        assert status.status is Status.RUNNING


async def test_who_computes_does_not_sleep_until_it_is_done(service):
    job = await kept(service, "while true; do sleep 0.001; done")
    await look_until(service, judged(service, job, 2))
    assert not await sleeps(service, job)()
    await service.app.execs.run(service.principal, job.request_id, "true", 5)
    await look_until(service, judged(service, job, 1))
    assert not await sleeps(service, job)()


async def test_who_is_used_does_not_sleep(service):
    job, idle = await kept(service), await kept(service)
    async with service.app.leases.hold(job):
        await look_until(service, sleeps(service, idle))
        assert not await sleeps(service, job)()
    await look_until(service, sleeps(service, job))
    done = await service.app.execs.run(service.principal, job.request_id, "echo back", 5)
    assert done.stdout == b"back\n"
    await look_until(service, sleeps(service, job))


async def test_files_are_there_when_it_is_woken(service):
    job = await kept(service, "echo two > /root/b")
    for number in range(3):
        await look_until(service, sleeps(service, job))
        done = await service.app.execs.run(
            service.principal, job.request_id, f"cat /root/b; echo {number} > /root/b", 5
        )
        assert done.stdout.decode().strip() == ("two" if number == 0 else str(number - 1))


async def test_one_that_may_not_sleep_and_does_is_woken_again(service):
    job = await kept(service)
    await look_until(service, sleeps(service, job))
    await service.change("UPDATE job SET no_sleep = true")
    await service.restart()

    async def is_awake():
        status = await service.app.status(service.principal, job.request_id)
        return status.status is Status.RUNNING

    await look_until(service, is_awake)
