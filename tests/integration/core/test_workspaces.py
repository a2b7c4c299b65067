"""Versions of workspaces when stores fail, files are damaged and others are quicker."""

import asyncio
import dataclasses
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from magsd.core import vm_changes, workspace_uploads
from magsd.core.vm_link import VmLink
from magsd.core.workspace_upkeep import WorkspaceUpkeep
from magsd.db import workspaces
from magsd.guest.shim import ShimError
from magsd.model.errors import ConflictError, JobCode
from magsd.model.records import VersionState
from magsd.storage.objects import ObjectStoreSettings
from tests.integration.core.kept_files import files_of
from tests.integration.core.service import DEADLINE_S, Service
from tests.integration.core.test_step_faults import HastyClock
from tests.integration.core.workspace_points import WORKSPACE
from tests.integration.s3_server import BUCKET, S3Server, s3_server
from tests.integration.storage.weak_network import AWAY, BUSY, FULL, OPEN, SLOW, way_to

LARGE = "head -c 2000000 /dev/urandom | base64"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
async def hasty(service, monkeypatch):
    """A service that waits for its store no longer than a moment."""
    monkeypatch.setattr(vm_changes, "STORED_S", 0.5)
    monkeypatch.setattr(workspace_uploads, "_RETRY_MOST_S", 0.1)
    return service


def writes(service: Service, name: str, what: str = "echo") -> str:
    """Return a script that writes a file."""
    return f"cd {service.directory}/changes/$(hostname) && {what} > {name}"


async def wrote(service: Service, name: str, what: str = "echo"):
    return await service.run(writes(service, name, what), workspace_id=WORKSPACE)


async def versions(service: Service, name: str = WORKSPACE):
    return await service.app.workspaces.versions(service.principal, name)


async def states(service: Service, name: str = WORKSPACE) -> list[str]:
    return [each.state.value for each in await versions(service, name)]


async def until_stored(service: Service, name: str = WORKSPACE) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while "pending" in await states(service, name):
            await asyncio.sleep(0.02)


async def set_up(service: Service, settings: ObjectStoreSettings) -> None:
    """Have a service work with another store."""
    await service.stop()
    service.object_store = settings
    await service.start()


class FullDirectory:
    """A directory of objects that has little room until it is mended."""

    def __init__(self, service: Service) -> None:
        self.place = service.directory.with_name("store")
        self.place.mkdir()
        self._mount("size=1m")
        self.settings = ObjectStoreSettings(self.place.as_uri())

    def _mount(self, options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.place]
        subprocess.run(words, check=True, capture_output=True)

    def fail(self) -> None:
        """It does by itself, in the middle."""

    def mend(self) -> None:
        self._mount("remount,size=64m")


class WeakBucket:
    """A bucket whose server fails in one way until it is mended."""

    def __init__(self, way, state: str, settings: ObjectStoreSettings) -> None:
        self._way = way
        self._state = state
        self.settings = settings

    def fail(self) -> None:
        self._way.state = self._state

    def mend(self) -> None:
        self._way.state = OPEN


@asynccontextmanager
async def weak_store(request, service: Service, kind: str) -> AsyncIterator:
    if kind == "directory":
        store = FullDirectory(service)
        try:
            yield store
        finally:
            await set_up(service, ObjectStoreSettings(service.directory.as_uri()))
            subprocess.run(["umount", store.place], check=True)
        return
    server = request.getfixturevalue("server")
    async with way_to(server.ports["s3"]) as (way, url):
        aws = {**server.aws, "AWS_ENDPOINT_URL": url}
        url = f"s3://{BUCKET}/{os.urandom(8).hex()}"
        try:
            yield WeakBucket(way, kind, ObjectStoreSettings(url, aws))
        finally:
            await set_up(service, ObjectStoreSettings(service.directory.as_uri()))


@pytest.mark.parametrize("kind", ["directory", AWAY, BUSY, FULL, SLOW])
async def test_a_store_that_fails_in_the_middle_delays_versions_and_loses_none(
    request, hasty, monkeypatch, kind
):
    async with weak_store(request, hasty, kind) as store:
        await set_up(hasty, store.settings)
        assert (await wrote(hasty, "a")).workspace_synced
        put_all = hasty.objects.put_all

        async def put_and_fail(chunks):
            await put_all(chunks)
            store.fail()

        monkeypatch.setattr(hasty.objects, "put_all", put_and_fail)
        copy = hasty.directory / "copy"
        job = await wrote(hasty, "b", f"{LARGE} | tee {copy}")
        assert (job.exit_code, job.workspace_synced) == (0, False), job
        assert any(
            source == "system" and "lies on this machine alone" in line
            for source, line in await hasty.log(job.request_id)
        )
        if kind != SLOW:
            assert await states(hasty) == ["pending", "live"]
            assert hasty.node.uploads.trouble is not None
        await hasty.restart()
        assert (await wrote(hasty, "c")).exit_code == 0
        store.mend()
        await until_stored(hasty)
        assert await states(hasty) == ["live"] * 3
        async with asyncio.timeout(DEADLINE_S):
            while hasty.node.uploads.trouble is not None:
                await asyncio.sleep(0.01)
        held = await files_of(hasty.objects, (await versions(hasty))[0])
        assert held == {"a": "\n", "b": copy.read_text(), "c": "\n"}


async def test_what_has_left_this_machine_can_be_forked_and_restored(service):
    service.settings = dataclasses.replace(service.settings, layers_cache_mb=0)
    await service.restart()
    assert (await wrote(service, "a")).workspace_synced
    (layer,) = (await versions(service))[0].manifest.own_layers
    await service.at_rest()
    await WorkspaceUpkeep(service.node).shrink_cache()
    assert not service.node.layers.path(layer.sha256).exists()
    await service.app.workspaces.fork(service.principal, WORKSPACE, "fork", None)
    await service.app.workspaces.restore(service.principal, WORKSPACE, 1)
    for name in ("fork", WORKSPACE):
        await until_stored(service, name)
        assert set(await states(service, name)) == {"live"}
        assert (await service.run("true", workspace_id=name)).exit_code == 0


async def test_what_was_sent_of_a_capture_that_failed_is_removed(service):
    """It is in no database: whoever sent it tells."""
    assert (await wrote(service, "a")).workspace_synced
    version = (await versions(service))[0]
    stray = f"layers/{version.account_id}/chunks/{'e' * 64}"
    await service.objects.put(stray, b"sent ahead, and the capture was refused")
    service.node.layers.untidy.add(version.account_id)
    await WorkspaceUpkeep(service.node).delete_unneeded()
    assert await service.objects.sizes([stray]) == {}
    assert await files_of(service.objects, version) == {"a": "\n"}
    assert service.node.layers.untidy == set()


async def test_a_version_that_was_damaged_is_told_and_holds_up_nothing(hasty, monkeypatch):
    """Before it could be stored, by a disk that fails: there is no other copy."""
    assert (await wrote(hasty, "a")).workspace_synced
    put = hasty.objects.put

    async def refuse(key, content):
        raise OSError("no store")

    monkeypatch.setattr(hasty.objects, "put", refuse)
    assert (await wrote(hasty, "b")).workspace_synced is False
    damaged = (await versions(hasty))[0].manifest.own_layers[-1]
    path = hasty.node.layers.path(damaged.sha256)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(hasty.objects, "put", put)
    job = await wrote(hasty, "c")
    assert (job.code, job.exit_code) == (JobCode.WORKSPACE_DAMAGED, None)
    assert damaged.sha256 in job.error
    assert "restore an earlier version" in job.error
    assert await states(hasty) == ["pending", "live"]
    await hasty.app.workspaces.restore(hasty.principal, WORKSPACE, 1)
    await until_stored(hasty)
    assert await states(hasty) == ["live", "aside", "live"]
    assert (await wrote(hasty, "c")).workspace_synced
    newest = (await versions(hasty))[0]
    assert await files_of(hasty.objects, newest) == {"a": "\n", "c": "\n"}


async def move_head(service: Service) -> None:
    """Do what another daemon would: make a version of the newest, and be quicker."""
    newest = (await versions(service))[0]

    def work(tx):
        new = workspaces.NewVersion(
            account_id=newest.account_id,
            name=WORKSPACE,
            node="another",
            parent=newest.version,
            manifest=newest.manifest,
            run_id=None,
            capture=None,
            at=service.clock.now(),
        )
        assert workspaces.move_head(tx, workspaces.add(tx, new), service.clock.now())

    await service.database.write(work)


async def test_who_is_not_quick_enough_is_told_and_keeps_its_version(service):
    assert (await wrote(service, "a")).workspace_synced
    gate = service.wait_at("gate")
    script = f"{writes(service, 'b')}; echo one; {gate}"
    job = await service.running(script, workspace_id=WORKSPACE)
    await service.printed(job.request_id, "one")
    await move_head(service)
    with pytest.raises(ConflictError, match="version 3 of the workspace is stored"):
        await service.app.sync(service.principal, job.request_id)
    await service.open_gate("gate")
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.workspace_synced) == (0, False)
    told = [line for source, line in await service.log(job.request_id) if source == "system"]
    assert ["restore it" in line for line in told] == [True]
    found = {each.version: each.state for each in await versions(service)}
    assert (found[2], found[3]) == (VersionState.LIVE, VersionState.ASIDE)
    await service.app.workspaces.restore(service.principal, WORKSPACE, 3)
    await until_stored(service)
    newest = (await versions(service))[0]
    assert newest.state is VersionState.LIVE
    assert await files_of(service.objects, newest) == {"a": "\n", "b": "\n"}


async def test_changes_are_kept_when_the_vm_ends_while_the_job_is_being_stopped(
    service, monkeypatch
):
    """The last line of the log has to be written by somebody else than the shim."""

    async def refuse(self, text):
        raise ShimError("the connection is broken")

    script = f"{writes(service, 'a')}; echo one; sleep 100"
    job = await service.running(script, workspace_id=WORKSPACE)
    await service.printed(job.request_id, "one")
    monkeypatch.setattr(VmLink, "note", refuse)
    await service.app.stop(service.principal, job.request_id)
    ended = await service.until(job.request_id)
    assert (ended.code, ended.workspace_synced) == (JobCode.STOPPED, True)
    assert await files_of(service.objects, (await versions(service))[0]) == {"a": "\n"}
    assert (await service.log(job.request_id))[-1] == ("system", "the job was stopped")


async def test_changes_are_kept_of_a_job_that_this_service_cannot_go_on_with(service, monkeypatch):
    async def fail(*_):
        raise RuntimeError("of a kind that nobody foresaw")

    script = f"{writes(service, 'a')}; echo one; sleep 100"
    job = await service.running(script, workspace_id=WORKSPACE)
    await service.printed(job.request_id, "one")
    await service.stop()
    monkeypatch.setattr(VmLink, "find", fail)
    service.clock = HastyClock()
    await service.start()
    ended = await service.until(job.request_id)
    assert (ended.exit_code, ended.workspace_synced) == (137, True)
    assert await files_of(service.objects, (await versions(service))[0]) == {"a": "\n"}


async def test_nobody_forks_into_a_name_that_a_job_has(service):
    """Also while that is being stopped: its changes would not become the newest."""
    assert (await wrote(service, "a")).workspace_synced
    script = f"trap '' TERM; {writes(service, 'b')}; echo one; sleep 100"
    job = await service.running(script, workspace_id="new")
    await service.printed(job.request_id, "one")
    stopping = asyncio.ensure_future(service.app.stop(service.principal, job.request_id))
    with pytest.raises(ConflictError, match="in use"):
        await service.app.workspaces.fork(service.principal, WORKSPACE, "new", None)
    async with asyncio.timeout(DEADLINE_S):
        while not await service.database.read(_is_being_stopped):
            await asyncio.sleep(0.001)
    with pytest.raises(ConflictError, match="in use"):
        await service.app.workspaces.fork(service.principal, WORKSPACE, "new", None)
    await stopping
    assert (await service.until(job.request_id)).workspace_synced


def _is_being_stopped(tx) -> bool:
    return bool(tx.exec_driver_sql("SELECT count(*) FROM job WHERE goal = 'stopped'").scalar())
