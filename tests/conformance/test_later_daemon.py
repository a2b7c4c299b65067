"""The Engine contract: VMs outlive the daemon, and a later one finds them."""

import asyncio
import json

from magsd.engine.base import EndReason, Engine
from tests.conformance.host import Host
from tests.conformance.vm import (
    begin,
    connected,
    journaled,
    printed,
    shell_to_the_end,
    within,
)

COUNTING = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done"


async def test_a_later_daemon_adopts_a_vm(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
    async with host.engine() as later:
        assert await later.adopt(handle.run_directory) == handle
        assert await later.adopt(handle.run_directory) == handle
        assert await printed(handle, "echo still here") == "still here\n"
        assert (await later.stats(handle)).processes >= 1
        waiting = asyncio.ensure_future(later.wait(handle))
        assert (await later.stop(handle)).reason is EndReason.KILLED
        assert (await waiting).reason is EndReason.KILLED
        assert await later.adopt(handle.run_directory) is None


async def test_no_output_is_lost_between_two_daemons(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
        async with connected(handle) as connection:
            await begin(connection, COUNTING)
    async with host.engine() as later:
        assert await later.adopt(handle.run_directory) == handle
        async with connected(handle) as connection:
            assert (await within(20, connection.exited(1))).wait_status == 0
        assert journaled(handle) == b"1\n2\n3\n4\n5\n6\n7\n8\n"
        await later.stop(handle)


async def test_an_adopted_memory_hog_ends(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan(memory_mb=512 if host.is_linux else 128))
    async with host.engine() as later:
        await later.adopt(handle.run_directory)
        if host.is_linux:
            assert await printed(handle, f"{host.hog}; echo $?") == "137\n"
            await later.stop(handle)
            return
        running = asyncio.ensure_future(shell_to_the_end(handle, host.hog))
        assert (await within(60, later.wait(handle))).reason is EndReason.OUT_OF_MEMORY
        await running
        await later.stop(handle)


async def test_a_vm_of_another_boot_is_gone(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await engine.stop(handle)
    path = handle.run_directory / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "boot_id": "another"}))
    (handle.run_directory / "state").unlink()
    assert await engine.adopt(handle.run_directory) is None
    assert (await engine.wait(handle)).reason is EndReason.HOST_RESTARTED


async def test_a_folder_without_a_vm_is_not_adopted(host: Host, engine: Engine) -> None:
    folder = host.data / "run" / host.plan().vm
    folder.mkdir()
    assert await engine.adopt(folder) is None
    (folder / "record.json").write_text("{}")
    assert await engine.adopt(folder) is None
    assert await engine.adopt(folder / "nowhere") is None


async def test_a_later_daemon_stops_what_it_has_not_adopted(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
    async with host.engine() as later:
        assert (await later.stop(handle)).reason is EndReason.KILLED


async def test_a_sweep_removes_what_is_not_kept(host: Host) -> None:
    async with host.engine() as earlier:
        lost, kept = [await earlier.launch(host.plan()) for _ in range(2)]
    async with host.engine() as later:
        own = await later.launch(host.plan())
        assert await later.sweep(frozenset({kept.vm})) == [f"VM {lost.vm}: {host.swept}"]
        assert not lost.run_directory.exists()
        assert await later.sweep(frozenset({kept.vm})) == []
        for handle in (kept, own):
            assert await printed(handle, "echo well") == "well\n"
            await later.stop(handle)
