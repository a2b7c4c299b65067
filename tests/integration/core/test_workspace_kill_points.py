"""The daemon is killed between any two steps of keeping a workspace: nothing of it is lost.

Once with a directory of objects, once with a real S3 server. What was
acknowledged is in the object store, whole; what a script wrote to its end is,
whenever the daemon died; and the next job works. `MAGS_TEST_FULL=1` tries every
point of every scene, else some are chosen by a seed.
"""

import asyncio
import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from magsd.model.errors import NotFoundError
from magsd.model.records import VersionState
from magsd.storage.objects import ObjectStoreSettings
from tests.integration.core import workspace_points
from tests.integration.core.kept_files import files_of
from tests.integration.core.kill_points import open_gate, quiet
from tests.integration.core.killed import at_any_point
from tests.integration.core.service import DEADLINE_S, Service
from tests.integration.core.wholeness import nothing_counted, processes
from tests.integration.core.workspace_points import SCENES, WORKSPACE, files, script
from tests.integration.s3_server import BUCKET, S3Server, s3_server

SAMPLES = {"directory": 3, "s3": 1}


PLAYED = workspace_points.__name__


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", SAMPLES)
async def test_killed_at_any_point(request, folder, players, template, kind, scene):
    # In one process databases are brought up to date one after the other.
    starting = asyncio.Lock()
    server = request.getfixturevalue("server") if kind == "s3" else None

    async def attempt(directory: Path, point: str) -> list[str]:
        store = None
        if server is not None:
            url = f"s3://{BUCKET}/{os.urandom(8).hex()}"
            store = ObjectStoreSettings(url, server.aws)
        trail = await players.play(directory, scene, point, store)
        await recover(directory, scene, trail, store, starting)
        return trail

    await at_any_point(folder, template, attempt, SAMPLES[kind])


async def recover(
    directory: Path,
    scene: str,
    trail: list[str],
    store: ObjectStoreSettings | None,
    starting: asyncio.Lock,
) -> None:
    """Start a service where another was killed; see that it has all there was, and goes on."""
    service = Service(directory)
    service.settings = dataclasses.replace(service.settings, **SCENES[scene].settings)
    service.object_store = store or service.object_store
    jobs = jobs_of(directory)
    async with starting:
        await service.start()
    try:
        for request_id, (name, goal) in jobs.items():
            if goal == "running":
                open_gate(directory, name)
            ended = await service.until(request_id)
            assert ended.exit_code == (143 if goal == "stopped" else 5), ended
            assert ended.workspace_synced or goal == "stopped", ended
        await all_stored(service)
        await check_kept(service, trail)
        if scene != "restore and fork":
            await check_written(service, jobs)
        await check_next(service, trail)
        await quiet(service)
        await nothing_counted(service)
    finally:
        await service.stop()
        await service.engine.sweep(frozenset())
    assert not list((directory / "changes").glob("*"))
    assert not list((directory / "layers/.staging").glob("*"))
    assert not list((directory / "objects/.staging").glob("*"))
    assert not processes(directory)


def jobs_of(directory: Path) -> dict[str, tuple[str, str]]:
    """Return name and goal of every job, as they were committed."""
    with sqlite3.connect(directory / "mags.db") as database:
        query = "SELECT request_id, name, goal FROM job ORDER BY created_at"
        found = database.execute(query).fetchall()
    database.close()
    return {request_id: (name, goal) for request_id, name, goal in found}


async def all_stored(service: Service) -> None:
    """Return when no version is on this machine alone."""
    async with asyncio.timeout(DEADLINE_S):
        while service.node.uploads._working:
            await asyncio.sleep(0.01)


async def versions_of(service: Service, name: str):
    try:
        return await service.app.workspaces.versions(service.principal, name)
    except NotFoundError:
        return []


async def check_kept(service: Service, trail: list[str]) -> None:
    """Fail unless all that was acknowledged is there."""
    acknowledged: dict[str, dict[int, dict[str, str]]] = {}
    for line in trail:
        if line.startswith("kept "):
            _, where, version, held = line.split(" ", 3)
            acknowledged.setdefault(where, {})[int(version)] = json.loads(held)
    keep = service.settings.versions_kept
    for where, its in acknowledged.items():
        found = {each.version: each for each in await versions_of(service, where)}
        if f"deleted {where}" in trail:
            assert not found
            continue
        is_deleting = "point before commit Workspaces.delete.work 1" in trail
        if is_deleting and where == WORKSPACE and not found:
            continue  # It was committed, and nobody was told.
        assert {each.state for each in found.values()} == {VersionState.LIVE}
        for number in sorted(its)[-keep:]:
            assert await files_of(service.objects, found[number]) == its[number], number


async def check_written(service: Service, jobs: dict[str, tuple[str, str]]) -> None:
    """Fail unless what scripts wrote to their ends is in the newest version."""
    if newest := await versions_of(service, WORKSPACE):
        held = await files_of(service.objects, newest[0])
        for name, goal in jobs.values():
            if goal == "running":
                assert files(name).items() <= held.items()


async def check_next(service: Service, trail: list[str]) -> None:
    """Fail unless a job can go on with each workspace."""
    for where in (WORKSPACE, "fork"):
        before = await versions_of(service, where)
        held = await files_of(service.objects, before[0]) if before else {}
        name = f"next-{where}"
        open_gate(service.directory, name)
        done = await service.run(script(service.directory, name), workspace_id=where)
        assert (done.exit_code, done.workspace_synced) == (5, True), done
        after = await versions_of(service, where)
        assert await files_of(service.objects, after[0]) == held | files(name)
