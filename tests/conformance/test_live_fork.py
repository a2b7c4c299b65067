"""The Engine contract: copies are made of a VM that goes on itself."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from magsd.engine.base import Engine, Handle
from magsd.guest.journal import JournalReader
from magsd.model.names import new_vm_id
from tests.conformance.host import Host
from tests.conformance.shim_host import ShimHost
from tests.conformance.suspended import COUNTING, all_printed, counted, gone_on, launched
from tests.conformance.vm import begin, connected, eventually, printed, within

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)

DRAWING = """
import os, time
while not os.path.exists('/run/go'):
    print(os.urandom(8).hex(), flush=True)
    time.sleep(0.001)
"""


async def test_copies_are_others(host: Host, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    who = "cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1"
    async with launched(engine, plan) as first:
        await printed(first, "echo kept > /root/file")
        async with connected(first) as connection:
            await begin(connection, COUNTING.format(most=60))
        await engine.suspend(first, snapshot, keep_running=True)
        plans = [replace(plan, vm=new_vm_id(), hostname=f"copy-{n}") for n in range(2)]
        async with (
            gone_on(engine, snapshot, plans[0]) as second,
            gone_on(engine, snapshot, plans[1]) as third,
        ):
            told = [(await printed(h, who)).split("\n", 2) for h in (first, second, third)]
            assert [hostname for _, hostname, _ in told[1:]] == ["copy-0", "copy-1"]
            assert len({machine_id for machine_id, _, _ in told}) == 3
            assert len({random for _, _, random in told}) == 3
            for handle in (second, third):
                assert await printed(handle, "cat /root/file; echo own > /root/file") == "kept\n"
            assert await printed(first, "cat /root/file") == "kept\n"
            # The script goes on in all of them, each with its own later output.
            for handle in (first, second, third):
                async with connected(handle) as connection:
                    assert (await within(60, connection.exited(1))).wait_status == 7 << 8
            assert all_printed(first) == counted(60)


async def test_nothing_runs_in_a_copy_before_it_is_another(
    host: Host, engine: Engine, snapshots: Path
) -> None:
    """Whoever draws random numbers all the time draws none that another copy draws."""
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        async with connected(first) as connection:
            await begin(connection, f'exec python3 -c "{DRAWING}"')
        await engine.suspend(first, snapshot, keep_running=True)
        drawn = []
        for _ in range(3):
            async with gone_on(engine, snapshot, replace(plan, vm=new_vm_id())) as copy:
                await printed(copy, "touch /run/go")
                async with connected(copy) as connection:
                    await within(20, connection.exited(1))
                drawn.append(_lines_of(copy))
    everything = [line for lines in drawn for line in lines]
    assert len(everything) > 10
    # The first of each may be one that was cut in two.
    assert len(set(everything)) == len(everything)


def _lines_of(handle: Handle) -> list[bytes]:
    reader, position, content = JournalReader(handle.run_directory), 0, b""
    while records := reader.read(position)[0]:
        position = records[-1].end_position
        content += b"".join(r.payload for r in records if (r.stream, r.kind) == (1, 1))
    return [line for line in content.split(b"\n") if len(line) == 16]


async def test_it_goes_on_with_all_its_streams(host: Host, engine: Engine, snapshots: Path) -> None:
    async with launched(engine, host.plan()) as handle:
        running = asyncio.ensure_future(printed(handle, "cat /run/fifo"))
        await printed(handle, "mkfifo /run/fifo")
        for number in range(3):
            await engine.suspend(handle, snapshots / str(number), keep_running=True)
        running.cancel()
        async with connected(handle) as connection:
            await begin(connection, COUNTING.format(most=30))
            await engine.suspend(handle, snapshots / "last", keep_running=True)
            assert (await within(60, connection.exited(1))).wait_status == 7 << 8
        assert all_printed(handle) == counted(30)


async def test_its_disk_goes_with_it(host: ShimHost, engine: Engine, snapshots: Path) -> None:
    snapshot = snapshots / "snapshot"
    async with launched(engine, host.plan()) as handle:
        await engine.suspend(handle, snapshot, keep_running=True)
        (owner,) = host.disk(handle.vm).parent.glob("*.of")
        assert owner.with_suffix(".ext4").exists()
        await engine.sweep(frozenset([handle.vm]))
        assert owner.with_suffix(".ext4").exists()
        shutil.rmtree(snapshot)
        await engine.sweep(frozenset([handle.vm]))
        assert not owner.with_suffix(".ext4").exists()
        assert not owner.is_symlink()
        await eventually(lambda: not host.errors)
