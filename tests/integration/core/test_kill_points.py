"""The daemon is killed between any two of its steps; the next one finds everything right.

`MAGS_TEST_FULL=1` tries every point of every scene; else those of long scenes
are tried in part, chosen by a seed.
"""

import asyncio
import dataclasses
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.core import kill_points
from tests.integration.core.kill_points import SCENES, open_gate, quiet, waiting
from tests.integration.core.killed import at_any_point
from tests.integration.core.service import RESTARTED, Service
from tests.integration.core.wholeness import nothing_counted, processes

SAMPLE = 3
WHOLE = ("hit",)
STOPPED = "the job was stopped"


PLAYED = kill_points.__name__


@pytest.mark.parametrize("scene", SCENES)
async def test_killed_at_any_point(folder, players, template, scene):
    # In one process databases are brought up to date one after the other.
    starting = asyncio.Lock()

    async def attempt(directory: Path, point: str) -> list[str]:
        trail = await players.play(directory, scene, point)
        await recover(directory, scene, trail, starting)
        return trail

    await at_any_point(folder, template, attempt, None if scene in WHOLE else SAMPLE)


async def recover(directory: Path, scene: str, trail: list[str], starting: asyncio.Lock) -> None:
    """Start a service where another was killed; see all jobs to their right ends."""
    acknowledged = {line.split()[1] for line in trail if line.startswith("acknowledged ")}
    rows = rows_of(directory)
    assert acknowledged <= rows.keys()
    left = {path.name for path in (directory / "run").glob("*")}
    service = Service(directory)
    service.settings = dataclasses.replace(service.settings, **SCENES[scene].settings)
    async with starting:
        await service.start()
    try:
        for request_id, (name, goal, *_) in rows.items():
            if goal == "running":
                open_gate(directory, name)
            ended = await service.until(request_id)
            await check_job(service, ended, goal, is_same_end=rows[request_id][2:])
        if service.settings.pool_min:
            await service.waiting(service.settings.pool_min)
        await quiet(service)
        assert not waiting(service) & left
        await nothing_counted(service)
        check_files(directory, service)
        listed = await service.app.list_jobs(service.principal, page=1, page_size=10)
        assert listed.total == len(rows)
    finally:
        await service.stop()
        await service.engine.sweep(frozenset())
    assert not list((directory / "run").glob("*"))
    assert not processes(directory)


def rows_of(directory: Path) -> dict[str, tuple]:
    """Return name, goal, state and exit code of every job, as they were committed."""
    with sqlite3.connect(directory / "mags.db") as database:
        found = database.execute(
            "SELECT job.request_id, job.name, goal, state, exit_code"
            " FROM job JOIN run ON run.request_id = job.request_id"
        ).fetchall()
    database.close()
    return {row[0]: row[1:] for row in found}


async def check_job(service: Service, ended, goal: str, is_same_end: tuple) -> None:
    """Fail unless a job ended as it had to, with all its log, and began once at most."""
    state, exit_code = is_same_end
    assert ended.exit_code == (143 if goal == "stopped" else 5), ended
    if state == "ended":
        assert ended.exit_code == exit_code
    marks = service.directory / f"{ended.name}.marks"
    begun = len(marks.read_text().splitlines()) if marks.exists() else 0
    lines = await service.log(ended.request_id)
    system = Counter(line for source, line in lines if source == "system")
    printed = [line for source, line in lines if source != "system"]
    assert system.keys() <= {RESTARTED, STOPPED}, lines
    assert system[RESTARTED] <= 2, lines
    if goal == "stopped":
        assert begun <= 1
        assert printed in ([], ["one"]), lines
        if ended.vm_id:
            assert system[STOPPED] == 1, lines
    else:
        assert begun == 1, begun
        assert printed == ["one", "two"], lines
        assert not system[STOPPED]


def check_files(directory: Path, service: Service) -> None:
    """Fail unless what is kept of jobs is what rows know of."""
    with sqlite3.connect(directory / "mags.db") as database:
        known = set(database.execute("SELECT request_id, epoch FROM log_index").fetchall())
    database.close()
    stored = {
        (path.parent.name, int(path.name)) for path in (directory / "objects").glob("logs/*/*/*")
    }
    assert stored == known
    assert set(service.node.places.put_away_ones()) <= known
    assert not list((directory / "tmp").glob("*"))
