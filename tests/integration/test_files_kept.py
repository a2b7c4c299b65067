"""Uploads of a service whose store goes away, whose time passes, and that is stopped in between."""

import asyncio
from datetime import timedelta

import pytest

from magsd.core.old_files import OldFiles
from magsd.db import files
from magsd.model.errors import CapacityError, JobCode, NotFoundError
from magsd.model.lifecycle import Status
from magsd.model.records import JobSpec
from tests.api_service import ADMIN, DEADLINE_S, AheadClock, opened


class Service:
    """An application, and what tests do with it."""

    def __init__(self, application, clock, principal):
        self.application = application
        self.clock = clock
        self.principal = principal
        self.node = application._node

    async def upload(self, name="f", content=b"content\n"):
        async with self.application.files.receiving(self.principal) as received:
            await received.write(content)
            return await self.application.files.keep(self.principal, received, name)

    async def submit(self, script, *file_ids):
        spec = JobSpec(script, file_ids=file_ids)
        return (await self.application.submit(self.principal, spec)).request_id

    async def until(self, job, is_reached=lambda status: status.is_final):
        async with asyncio.timeout(DEADLINE_S):
            status = await self.application.status(self.principal, job)
            while not is_reached(status):
                status = await self.application.status(
                    self.principal, job, wait_s=5, after_generation=status.generation
                )
        return status

    async def kept_bytes(self):
        account_id = self.principal.account_id
        return await self.node.database.read(lambda tx: files.size_bytes(tx, account_id))

    async def sweep(self):
        return await OldFiles(self.node).sweep()

    def objects(self):
        folder = self.node.settings.data_directory / "objects/files"
        return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []

    def lying(self):
        return list((self.node.settings.data_directory / "tmp").glob("*"))


@pytest.fixture
async def service(tmp_path):
    clock = AheadClock()
    pool = {"pool_min": 1, "pool_max": 1, "pool_total_max": 4}
    async with opened(tmp_path / "data", clock, **pool) as application:
        await application.access.first_token(ADMIN)
        yield Service(application, clock, await application.access.authenticate(ADMIN))


@pytest.fixture
def away(service, monkeypatch):
    """Return a function that lets the store be away."""
    objects = service.node.files._objects

    async def refuse(*_, **__):
        raise CapacityError("the object store cannot be used now: try again in a moment")

    def away(*names):
        for name in names:
            monkeypatch.setattr(objects, name, refuse)

    return away


async def test_what_nobody_used_for_long_is_deleted(service):
    old, used = await service.upload("old"), await service.upload("used")
    service.clock.ahead = timedelta(days=6)
    new = await service.upload("new")
    job = await service.submit("cat /uploads/used", used.file_id)
    assert (await service.until(job)).exit_code == 0
    service.clock.ahead = timedelta(days=8)
    assert await service.sweep() == 1
    assert len(service.objects()) == 2
    with pytest.raises(NotFoundError):
        await service.submit("true", old.file_id)
    await service.submit("true", used.file_id, new.file_id)
    service.clock.ahead = timedelta(days=16)
    assert await service.sweep() == 2
    assert service.objects() == []
    assert await service.kept_bytes() == 0


async def test_uploads_that_are_kept_for_ever(service, monkeypatch):
    await service.upload()
    service.clock.ahead = timedelta(days=4000)
    object.__setattr__(service.node.settings, "retention_files_days", 0)
    assert await service.sweep() == 0


async def test_an_upload_that_is_not_stored_is_none(service, away, monkeypatch):
    away("put")
    with pytest.raises(CapacityError):
        await service.upload()
    monkeypatch.undo()
    assert service.lying() == []
    assert await service.kept_bytes() == 8
    assert await service.sweep() == 0
    service.clock.ahead = timedelta(hours=2)
    assert await service.sweep() == 1
    assert await service.kept_bytes() == 0


async def test_what_could_not_be_deleted_is_deleted_later(service, away, monkeypatch):
    file = await service.upload()
    service.clock.ahead = timedelta(days=8)
    away("delete")
    with pytest.raises(CapacityError):
        await service.sweep()
    with pytest.raises(NotFoundError):
        await service.submit("true", file.file_id)
    monkeypatch.undo()
    assert await service.sweep() == 1
    assert service.objects() == []


async def test_a_job_waits_for_the_store(service, away, monkeypatch):
    file = await service.upload()
    away("get")
    job = await service.submit("cat /root/f", file.file_id)
    async with asyncio.timeout(DEADLINE_S):
        while service.node.room.free == service.node.room.capacity:
            await asyncio.sleep(0.01)
    assert (await service.application.status(service.principal, job)).status is Status.PENDING
    monkeypatch.undo()
    assert (await service.until(job)).exit_code == 0
    assert service.lying() == []


async def test_a_job_that_waits_for_the_store_can_be_stopped(service, away):
    file = await service.upload()
    away("get")
    job = await service.submit("true", file.file_id)
    await service.application.stop(service.principal, job)
    status = await service.until(job)
    assert status.code is JobCode.STOPPED
    assert service.lying() == []


async def test_a_file_whose_object_is_lost_ends_the_job(service):
    file = await service.upload("precious")
    (lying,) = service.objects()
    lying.unlink()
    status = await service.until(await service.submit("true", file.file_id))
    assert (status.code, status.exit_code) == (JobCode.LAUNCH_FAILED, None)
    assert "'precious'" in status.error
    assert service.lying() == []


async def test_many_jobs_have_one_file(service):
    file = await service.upload()
    jobs = [await service.submit("cat /root/f; cat /uploads/f", file.file_id) for _ in range(20)]
    assert {(await service.until(job)).exit_code for job in jobs} == {0}
    assert service.lying() == []
