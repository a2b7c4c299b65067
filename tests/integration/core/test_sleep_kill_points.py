"""The daemon is killed between any two steps of sleep and wake: the job is there as before.

`MAGS_TEST_FULL=1` tries every point of every scene, else some are chosen by a seed.
"""

import asyncio
from pathlib import Path

import pytest

from magsd.model.lifecycle import Status
from tests.integration.core import sleep_points
from tests.integration.core.kept_files import files_of
from tests.integration.core.kill_points import quiet
from tests.integration.core.killed import at_any_point
from tests.integration.core.service import RESTARTED, Service
from tests.integration.core.sleep_points import SCENES, WORKSPACE, WRITTEN
from tests.integration.core.test_kill_points import check_files, rows_of
from tests.integration.core.test_sleep import ASLEEP, CUT_OFF, OWN_DISK, STOPPED
from tests.integration.core.wholeness import nothing_counted, processes

SAMPLE = 3
PLAYED = sleep_points.__name__


@pytest.mark.parametrize("scene", SCENES)
async def test_killed_at_any_point(folder, players, template, scene):
    # In one process databases are brought up to date one after the other.
    starting = asyncio.Lock()

    async def attempt(directory: Path, point: str) -> list[str]:
        trail = await players.play(directory, scene, point)
        await recover(directory, starting)
        return trail

    await at_any_point(folder, template, attempt, SAMPLE)


async def recover(directory: Path, starting: asyncio.Lock) -> None:
    """Start a service where another was killed: the job is used, sleeps, is used, and stopped."""
    ((request_id, (_, goal, _, _)),) = rows_of(directory).items()
    service = Service(directory)
    async with starting:
        await service.start()
    try:
        if goal != "stopped":
            await use(service, request_id)
            await service.app._supervisor.put_to_sleep(request_id)
            await service.until(request_id, lambda now: now.sleeping)
            await use(service, request_id)
            await service.app.stop(service.principal, request_id)
        ended = await service.until(request_id)
        assert (ended.status, ended.exit_code) == (Status.COMPLETED, 143), ended
        await check_log(service, request_id)
        await quiet(service)
        await nothing_counted(service)
        check_files(directory, service)
        if ended.workspace_id is not None:
            assert ended.workspace_synced
            newest = (await service.app.workspaces.versions(service.principal, WORKSPACE))[0]
            assert await files_of(service.objects, newest) == {"file": f"{WRITTEN}\n"}
        assert (directory / "marks").read_text() == "begun\n", "a script is run once"
    finally:
        await service.stop()
        await service.engine.sweep(frozenset())
    assert not list((directory / "changes").glob("*"))
    assert not list((directory / "run").glob("*"))
    assert not processes(directory)


async def use(service: Service, request_id: str) -> None:
    """Have a command find what the script wrote."""
    command = f"cat {service.directory}/changes/$(hostname)/file"
    done = await service.app.execs.run(service.principal, request_id, command, 20)
    assert (done.exit_code, done.stdout) == (0, f"{WRITTEN}\n".encode()), done
    status = await service.app.status(service.principal, request_id)
    assert status.status is Status.RUNNING


async def check_log(service: Service, request_id: str) -> None:
    """Fail unless the log tells of each sleep and each start, in turn."""
    page = await service.app.logs(service.principal, request_id, after=0)
    seqs = [line.seq for line in page.lines]
    assert seqs == sorted(set(seqs))
    lines = [(line.source.value, line.message) for line in page.lines]
    assert lines.count(("stdout", "one")) == 1
    assert lines.count(STOPPED) == 1
    assert lines.count(CUT_OFF) <= 1
    known = {("stdout", "one"), ("stdout", "started"), ASLEEP, CUT_OFF, OWN_DISK, STOPPED}
    assert set(lines) <= {*known, ("system", RESTARTED)}, lines
