"""Jobs with a workspace that sleep: what they changed is a version, and nothing is lost."""

import asyncio
import shutil

import pytest

from magsd.core import sleeping as sleeping_module
from magsd.core import vm_changes, workspace_uploads
from magsd.model.errors import CapacityError, ConflictError, InvalidError, WorkspaceInUseError
from magsd.model.lifecycle import Status
from tests.integration.core.kept_files import files_of
from tests.integration.core.service import DEADLINE_S
from tests.integration.core.test_sleep import (
    ASLEEP,
    OWN_DISK,
    STOPPED,
    execute,
    fall_asleep,
    sleeping,
    status_of,
)
from tests.integration.core.test_workspaces import WORKSPACE, states, until_stored, versions, writes


@pytest.fixture
async def hasty(service, monkeypatch):
    """A service that waits for its store no longer than a moment."""
    monkeypatch.setattr(vm_changes, "STORED_S", 0.3)
    monkeypatch.setattr(workspace_uploads, "_RETRY_MOST_S", 0.1)
    monkeypatch.setattr(sleeping_module, "_KEEP_AGAIN_S", 0.2)
    return service


async def asleep(service, name="a", **fields):
    """Return the status of a job that wrote a file and sleeps."""
    return await sleeping(service, writes(service, name), workspace_id=WORKSPACE, **fields)


async def held(service):
    """Return what the newest version of the workspace holds."""
    return await files_of(service.objects, (await versions(service))[0])


async def test_what_it_changed_is_a_version_when_it_sleeps(service):
    job = await asleep(service)
    assert job.workspace_synced is True
    assert await states(service) == ["live"]
    assert await held(service) == {"a": "\n"}
    synced = await service.app.sync(service.principal, job.request_id)
    assert (synced.workspace, synced.version) == (WORKSPACE, 1)
    other = await service.run("true", base_workspace_id=WORKSPACE)
    assert other.exit_code == 0
    with pytest.raises(WorkspaceInUseError, match=r"\(status: sleeping\); use 'mags exec"):
        await service.submit("true", workspace_id=WORKSPACE)
    with pytest.raises(ConflictError, match="in use"):
        await service.app.workspaces.delete(service.principal, WORKSPACE)


async def test_each_sleep_makes_a_version_of_what_was_changed_since(service):
    job = await asleep(service)
    await execute(service, job, writes(service, "b"))
    assert (await status_of(service, job)).workspace_synced is None
    await fall_asleep(service, job.request_id)
    await execute(service, job)
    await fall_asleep(service, job.request_id)
    assert await states(service) == ["live", "live"]
    assert await held(service) == {"a": "\n", "b": "\n"}
    ended = await service.app.stop(service.principal, job.request_id)
    assert (ended.status, ended.workspace_synced) == (Status.COMPLETED, True)
    assert await states(service) == ["live", "live"]
    await service.gone(job.vm_id)
    assert (await service.run("true", workspace_id=WORKSPACE)).exit_code == 0


async def test_a_store_that_is_away_keeps_nobody_from_sleep_and_loses_nothing(hasty, monkeypatch):
    put = hasty.objects.put

    async def refuse(key, content):
        raise OSError("no store")

    monkeypatch.setattr(hasty.objects, "put", refuse)
    job = await asleep(hasty)
    assert (job.status, job.workspace_synced) == (Status.SLEEPING, False)
    assert await states(hasty) == ["pending"]
    await execute(hasty, job)
    await fall_asleep(hasty, job.request_id)
    monkeypatch.setattr(hasty.objects, "put", put)
    await until_stored(hasty)
    assert await held(hasty) == {"a": "\n"}
    ended = await hasty.app.stop(hasty.principal, job.request_id)
    assert (ended.status, ended.workspace_synced) == (Status.COMPLETED, True)


async def test_a_version_that_cannot_be_made_is_made_later(hasty, monkeypatch):
    pack = hasty.node.layers.pack_directory

    async def refuse(directory):
        raise InvalidError("a file of this kind is nothing to keep")

    monkeypatch.setattr(hasty.node.layers, "pack_directory", refuse)
    job = await asleep(hasty)
    assert (job.status, job.workspace_synced) == (Status.SLEEPING, False)
    with pytest.raises(CapacityError, match="not kept yet"):
        await hasty.app.sync(hasty.principal, job.request_id)
    monkeypatch.setattr(hasty.node.layers, "pack_directory", pack)
    await hasty.until(job.request_id, lambda now: now.workspace_synced)
    assert await held(hasty) == {"a": "\n"}
    log = await hasty.log(job.request_id)
    assert "could not be kept in its workspace yet" in log[1][1]
    await execute(hasty, job)
    assert (await hasty.log(job.request_id))[-1] == OWN_DISK


async def packing(service, monkeypatch):
    """Return a job that falls asleep and whose version is being made, and what lets it be."""
    may_pack, is_packing = asyncio.Event(), asyncio.Event()
    pack = service.node.layers.pack_directory

    async def wait(*arguments, **more):
        is_packing.set()
        await may_pack.wait()
        return await pack(*arguments, **more)

    monkeypatch.setattr(service.node.layers, "pack_directory", wait)
    job = await service.submit(writes(service, "a"), persistent=True, workspace_id=WORKSPACE)
    await service.until(job.request_id, lambda now: now.script_ended_at)
    await service.app._supervisor.put_to_sleep(job.request_id)
    await asyncio.wait_for(is_packing.wait(), DEADLINE_S)
    return job, may_pack


async def test_who_wants_it_does_not_wait_for_its_version(service, monkeypatch):
    job, may_pack = await packing(service, monkeypatch)
    await execute(service, job)
    assert not await has_workspace(service)
    may_pack.set()
    await fall_asleep(service, job.request_id)
    assert await held(service) == {"a": "\n"}


async def has_workspace(service):
    found, _ = await service.app.workspaces.listed(service.principal, page=1, page_size=10)
    return bool(found)


async def test_a_stop_while_its_version_is_made_keeps_it_all_the_same(service, monkeypatch):
    job, may_pack = await packing(service, monkeypatch)
    stopping = asyncio.ensure_future(service.app.stop(service.principal, job.request_id))
    async with asyncio.timeout(DEADLINE_S):
        while service.app._supervisor._actors[job.request_id].job.goal != "stopped":
            await asyncio.sleep(0.01)
    may_pack.set()
    ended = await stopping
    assert (ended.status, ended.workspace_synced) == (Status.COMPLETED, True)
    assert await held(service) == {"a": "\n"}
    assert await service.log(job.request_id) == [ASLEEP, STOPPED]


async def test_one_whose_disk_is_gone_starts_from_its_workspace_and_says_so(service):
    job = await asleep(service)
    shutil.rmtree(service.directory / "changes" / f"mags-{job.vm_id}")
    await execute(service, job)
    again = await status_of(service, job)
    (version,) = await versions(service)
    at = version.created_at.isoformat(timespec="seconds").removesuffix("+00:00")
    assert again.restored_from == f"workspace version 1 of {at}Z"
    assert (again.status, again.vm_id) == (Status.RUNNING, job.vm_id)
    plan = service.engine.launched[-1]
    assert (plan.has_disk, plan.own_layers) == (False, 1)
    assert plan.layers[-1].stem == version.manifest.own_layers[-1].sha256
    lost = "its own disk was lost: started from workspace version 1"
    assert await service.log(job.request_id) == [ASLEEP, ("system", lost)]
    await execute(service, job, writes(service, "b"))
    await fall_asleep(service, job.request_id)
    assert await held(service) == {"a": "\n", "b": "\n"}
    assert (await versions(service))[0].parent == 1


async def test_without_sync_it_sleeps_on_its_own_disk_alone(service):
    job = await asleep(service, no_sync=True)
    assert (job.status, job.workspace_synced) == (Status.SLEEPING, False)
    assert not await has_workspace(service)
    await execute(service, job)
    assert (await service.log(job.request_id))[-1] == OWN_DISK
    ended = await service.app.stop(service.principal, job.request_id)
    assert ended.status is Status.COMPLETED
    await service.gone(job.vm_id)
    assert not list((service.directory / "changes").iterdir())


async def test_an_image_that_is_built_anew_changes_nothing_for_what_sleeps(service, tmp_path):
    job = await sleeping(service)
    before = service.engine.launched[-1].layers
    layer = tmp_path / "newer.sqfs"
    layer.write_bytes(b"hsqs, and another content")
    service.node.images.add("standard", layer, {})
    await execute(service, job)
    assert service.engine.launched[-1].layers == before
    other = await service.running("sleep 100")
    assert service.engine.launched[-1].layers != before
    await service.app.stop(service.principal, other.request_id)
