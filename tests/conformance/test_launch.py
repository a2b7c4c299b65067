"""The Engine contract: a launch is done or leaves nothing, wherever it is given up."""

import asyncio
import contextlib
from typing import Any

import pytest

from magsd.engine.base import Engine
from magsd.guest.journal import JournalReader, append_note
from magsd.model.errors import LaunchError
from tests import census
from tests.conformance.fake_host import FakeHost
from tests.conformance.gvisor_host import GvisorHost
from tests.conformance.host import Host
from tests.conformance.vm import eventually, printed, within

SPARE = ("descriptor", "interface", "process mkfs")
STEPS = [
    pytest.param(name, step, id=f"{name}-{step}")
    for name, kind in (("gvisor", GvisorHost), ("fake", FakeHost))
    for step in kind.steps
]


@contextlib.contextmanager
def nothing_new(host: Host) -> Any:
    """Fail when what stands in the block leaves anything, spare disks and slots aside."""
    before = census.take(host.data)
    yield
    assert not census.left_behind(before, host.data, ignoring=SPARE)


@pytest.mark.parametrize(("host", "step"), STEPS, indirect=["host"])
async def test_a_launch_is_cancelled(host: Host, engine: Engine, step: str) -> None:
    # Not the usual size, so that making a disk takes a moment.
    plan = host.plan(disk_gb=3)
    with nothing_new(host):
        host.linger_at(step)
        launching = asyncio.ensure_future(engine.launch(plan))
        await asyncio.sleep(0)
        await eventually(lambda: launching.done() or host.has_reached(step, plan))
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        assert not (host.data / "run" / plan.vm).exists()
    # The name is free again.
    handle = await engine.launch(plan)
    assert await printed(handle, "echo well") == "well\n"
    await engine.stop(handle)


async def test_a_launch_is_cancelled_again_and_again(host: Host, engine: Engine) -> None:
    plan = host.plan()
    with nothing_new(host):
        host.linger_at("engine")
        launching = asyncio.ensure_future(engine.launch(plan))
        await eventually(lambda: host.has_reached("engine", plan))
        while not launching.done():
            launching.cancel()
            await asyncio.sleep(0)
        assert launching.cancelled()


async def test_a_vm_needs_a_name_of_its_own(host: Host, engine: Engine) -> None:
    plan = host.plan()
    first = asyncio.ensure_future(engine.launch(plan))
    await asyncio.sleep(0)
    with pytest.raises(LaunchError, match="already"):
        await engine.launch(plan)
    handle = await first
    with pytest.raises(LaunchError, match="already"):
        await engine.launch(plan)
    assert await printed(handle, "echo well") == "well\n"
    await engine.stop(handle)


async def test_a_launch_goes_on_with_the_journal_that_is_there(host: Host, engine: Engine) -> None:
    plan = host.plan()
    directory = host.data / "run" / plan.vm
    directory.mkdir()
    append_note(directory, "waiting for a place", 1)
    host.linger_at("record")
    launching = asyncio.ensure_future(engine.launch(plan))
    await eventually(lambda: host.has_reached("record", plan))
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(30, launching)
    assert {path.name for path in directory.iterdir()} == {"journal.head"}
    records, _ = JournalReader(directory).read(0)
    assert [record.payload.rstrip() for record in records] == [b"waiting for a place"]
    handle = await engine.launch(plan)
    assert JournalReader(directory).read(0)[0][0] == records[0]
    await engine.stop(handle)


async def test_many_are_launched_at_once(host: Host, engine: Engine) -> None:
    handles = await asyncio.gather(*(engine.launch(host.plan()) for _ in range(4)))
    told = await asyncio.gather(*(printed(handle, "echo up") for handle in handles))
    assert told == ["up\n"] * 4
    await asyncio.gather(*(engine.stop(handle) for handle in handles))
