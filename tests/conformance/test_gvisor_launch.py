"""Every step of a launch in gVisor fails in turn; nothing is left of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from magsd.engine.base import EndReason, Plan
from magsd.engine.gvisor import GvisorEngine
from magsd.guest.journal import JournalReader, append_note
from magsd.model.errors import JobCode, LaunchError
from magsd.storage.images import ImageStore
from tests import census
from tests.conformance.gvisor_host import GvisorHost
from tests.conformance.test_launch import nothing_new
from tests.conformance.vm import within

FOR_GVISOR = pytest.mark.parametrize("host", ["gvisor"], indirect=True)


async def fails(engine: GvisorEngine, plan: Plan) -> LaunchError:
    with pytest.raises(LaunchError) as caught:
        await within(30, engine.launch(plan))
    return caught.value


@FOR_GVISOR
async def test_a_damaged_layer(host: GvisorHost, engine: GvisorEngine) -> None:
    cut = host.data / "layers" / "cut.sqfs"
    cut.write_bytes(host.image.layers[0].read_bytes()[: 1 << 20])
    for layer in (cut, host.data / "layers" / "missing.sqfs"):
        plan = host.plan(layers=(*host.image.layers, layer))
        with nothing_new(host):
            error = await fails(engine, plan)
            assert error.job_code is JobCode.IMAGE_DAMAGED
            assert host.files(plan) == set()


@FOR_GVISOR
async def test_a_run_directory_keeps_its_journal(host: GvisorHost, engine: GvisorEngine) -> None:
    plan = host.plan(layers=(host.data / "layers" / "missing.sqfs",))
    directory = host.data / "run" / plan.vm
    directory.mkdir()
    append_note(directory, "waiting for a place", 1)
    await fails(engine, plan)
    assert {path.name for path in directory.iterdir()} == {"journal.head"}
    records, _ = JournalReader(directory).read(0)
    assert [record.payload.rstrip() for record in records] == [b"waiting for a place"]
    # And a launch that works appends to it.
    handle = await engine.launch(replace(plan, layers=host.image.layers))
    assert JournalReader(directory).read(0)[0][0] == records[0]
    await engine.stop(handle)


@FOR_GVISOR
@pytest.mark.parametrize("name", ["runsc", "shim_program", "agent_program"])
async def test_a_program_that_ends_at_once(host: GvisorHost, tmp_path: Path, name: str) -> None:
    async with host.engine() as whole:
        version = whole._parts.runsc_version
    broken = tmp_path / name
    broken.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo 'runsc version {version}'\n")
    broken.chmod(0o755)
    async with host.engine(**{name: broken}) as engine:
        plan = host.plan()
        with nothing_new(host):
            error = await fails(engine, plan)
            assert error.message
            assert error.detail
            assert host.files(plan) == set()


@FOR_GVISOR
async def test_a_program_that_vanishes(host: GvisorHost, tmp_path: Path) -> None:
    shim = tmp_path / "mags-shim"
    shim.write_bytes(host.settings.shim_program.read_bytes())
    shim.chmod(0o755)
    async with host.engine(shim_program=shim) as engine:
        shim.unlink()
        with nothing_new(host):
            assert "make setup" in (await fails(engine, host.plan())).message


@FOR_GVISOR
async def test_a_shim_that_hangs_is_given_up(host: GvisorHost, tmp_path: Path) -> None:
    """It never says that it is ready; it is killed, and with it nothing remains."""
    hanging = tmp_path / "mags-shim"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    async with host.engine(shim_program=hanging) as engine:
        with nothing_new(host):
            await fails(engine, host.plan())


async def test_all_slots_are_taken(data: Path) -> None:
    host = GvisorHost(data, ImageStore(data).get("standard"))
    before = census.take(data)
    try:
        await host.open(slot_net=host.slot_net.replace("/24", "/28"), spare=1)
        async with host.engine() as engine:
            handles = [await engine.launch(host.plan()) for _ in range(3)]
            error = await fails(engine, host.plan())
            assert "slots" in error.message
            ended = await engine.stop(handles.pop())
            assert ended.reason is EndReason.KILLED
            handles.append(await engine.launch(host.plan()))
            for handle in handles:
                await engine.stop(handle)
    finally:
        await host.aclose()
    assert not census.left_behind(before, data, ignoring=("file run/",))


@FOR_GVISOR
async def test_prepare_says_what_is_missing(host: GvisorHost, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'runsc version release-20221219.0'\n")
    old.chmod(0o755)
    wrong = {
        "backports": {"runsc": old},
        "runsc": {"runsc": tmp_path / "nowhere"},
        "mags-shim is missing": {"shim_program": tmp_path / "nowhere"},
        "mags-agent is missing": {"agent_program": tmp_path / "nowhere"},
    }
    for text, settings in wrong.items():
        async with host.unprepared(**settings) as engine:
            with pytest.raises(LaunchError, match=text):
                await engine.prepare()
            with pytest.raises(LaunchError, match="not prepared"):
                await engine.launch(host.plan())
