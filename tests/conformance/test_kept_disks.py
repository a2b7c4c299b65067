"""A VM that goes on from the disk that an earlier one of its name left."""

import asyncio
import dataclasses

import pytest

from magsd.engine.base import Engine, Handle, Plan
from magsd.guest.journal import JournalReader
from magsd.model.errors import JobCode, LaunchError
from tests.conformance.host import Host
from tests.conformance.test_engine import LEFT_AFTER_STOP
from tests.conformance.vm import begin, connected, introduced, printed, record_of


def later(host: Host, handle: Handle) -> Plan:
    """Return the plan of a VM that goes on from the disk of one that was stopped."""
    return dataclasses.replace(host.plan(), vm=handle.vm, epoch=handle.epoch + 1, has_disk=True)


async def test_it_has_what_the_one_before_has_written(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, "echo 0 > /root/file; echo stays > /root/other")
    for number in range(3):
        await engine.stop(handle, keep_changes=True)
        handle = await engine.launch(later(host, handle))
        await introduced(handle, host.clock)
        assert await printed(handle, "cat /root/file /root/other") == f"{number}\nstays\n"
        await printed(handle, f"echo {number + 1} > /root/file")
    assert handle.epoch == 4
    await engine.stop(handle)
    assert host.files(handle) == LEFT_AFTER_STOP
    with pytest.raises(LaunchError) as refused:
        await engine.launch(later(host, handle))
    assert refused.value.job_code is JobCode.STATE_LOST


async def test_its_journal_goes_on_where_the_one_before_has_ended(
    host: Host, engine: Engine
) -> None:
    handle = await engine.launch(host.plan())
    for text in ("one", "two"):
        async with connected(handle) as connection:
            await begin(connection, f"echo {text}")
            await connection.exited(1)
        await engine.stop(handle, keep_changes=True)
        if text == "one":
            handle = await engine.launch(later(host, handle))
    records, _ = JournalReader(handle.run_directory).read(0)
    assert [record.payload for record in records if record.kind == 1] == [b"one\n", b"two\n"]
    assert [record.offset for record in records if record.kind == 1] == [0, 0]
    await engine.stop(handle)


async def test_a_launch_that_is_given_up_leaves_the_disk(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, "echo kept > /root/file")
    await engine.stop(handle, keep_changes=True)
    for turns in (1, 5, 50, 500):
        launching = asyncio.ensure_future(engine.launch(later(host, handle)))
        for _ in range(turns):
            await asyncio.sleep(0)
        launching.cancel()
        await asyncio.wait([launching])
        if not launching.cancelled() and launching.exception() is None:
            await engine.stop(launching.result(), keep_changes=True)
    handle = await engine.launch(later(host, handle))
    await introduced(handle, host.clock)
    assert await printed(handle, "cat /root/file") == "kept\n"
    await engine.stop(handle)


@pytest.mark.parametrize("host", ["gvisor", "qemu"], indirect=True)
async def test_what_has_ended_has_no_network_that_could_be_given_back_again(
    host: Host, engine: Engine
) -> None:
    handle = await engine.launch(host.plan())
    assert record_of(handle)["slot"]
    await engine.stop(handle, keep_changes=True)
    assert record_of(handle)["slot"] == 0
    await engine.stop(handle)
