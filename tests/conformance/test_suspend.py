"""The Engine contract: a VM is suspended, and goes on where it was."""

import asyncio
import os
import re
from pathlib import Path

import pytest

from magsd.engine.base import EndReason, Engine
from magsd.guest.shim import ShimError
from magsd.guest.state import read_stream
from magsd.model.errors import LaunchError
from tests.conformance.host import Host
from tests.conformance.suspended import COUNTING, again, all_printed, counted, gone_on, launched
from tests.conformance.vm import (
    begin,
    connected,
    eventually,
    printed,
    script,
    shell,
    within,
)

CYCLES = 20 if os.environ.get("MAGS_TEST_FULL") == "1" else 4

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)


async def test_it_goes_on_where_it_was(host: Host, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        await printed(first, "echo kept > /root/file; (sleep 1000 & echo $! > /run/pid)")
        pid = (await printed(first, "cat /run/pid")).strip()
        identity = await printed(first, "cat /etc/machine-id; hostname")
        await engine.suspend(first, snapshot)
        assert (await engine.wait(first)).reason is EndReason.KILLED
        with pytest.raises(LookupError):
            await engine.stats(first)
        async with gone_on(engine, snapshot, again(plan)) as second:
            assert await printed(second, "cat /root/file") == "kept\n"
            assert await printed(second, f"tr '\\0' ' ' < /proc/{pid}/cmdline") == "sleep 1000 "
            assert await printed(second, "cat /etc/machine-id; hostname") == identity
            now = int(await printed(second, "date +%s"))
            assert abs(now - host.clock.now().timestamp()) < 5
            await engine.stop(first)
            await printed(
                second, "echo more >> /root/file; sync; echo 3 > /proc/sys/vm/drop_caches"
            )
            assert await printed(second, "cat /root/file") == "kept\nmore\n"


async def test_a_scripts_output_and_end_come_once(
    host: Host, engine: Engine, snapshots: Path
) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        async with connected(first) as connection:
            await begin(connection, COUNTING.format(most=60))
            await connection.journal_grown(connection.journal_end + 100)
        await engine.suspend(first, snapshot)
        before = all_printed(first)
        assert before
        assert counted(60).startswith(before)
        async with gone_on(engine, snapshot, again(plan)) as second:
            async with connected(second) as connection:
                state = await within(60, connection.exited(1))
            assert state.wait_status == 7 << 8
            assert not state.has_timed_out
            assert all_printed(first, second) == counted(60)
            kept = read_stream(second.run_directory, 1)
            assert kept is not None
            assert (kept.is_over, kept.out_bytes) == (True, len(counted(60)))


async def test_streams_that_were_over_are_so_still(
    host: Host, engine: Engine, snapshots: Path
) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        async with connected(first) as connection:
            await connection.open_durable(3, script("echo done; exit 4"))
            before = await within(20, connection.exited(3))
        await engine.suspend(first, snapshot)
        async with (
            gone_on(engine, snapshot, again(plan)) as second,
            connected(second) as connection,
        ):
            await connection.open_durable(3, script("echo never"))
            assert await within(20, connection.exited(3)) == before


async def test_time_asleep_does_not_count(host: Host, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        async with connected(first) as connection:
            await connection.open_durable(1, script("echo on; sleep 1000"), deadline_s=30)
            await connection.open_durable(2, script("sleep 1000"), deadline_s=1000)
            await eventually(lambda: all_printed(first))
        await engine.suspend(first, snapshot)
        state = (snapshot / "streams").read_bytes()
        left = [int.from_bytes(state[4096 + 64 * n + 48 :][:8], "little") for n in (1, 2)]
        assert 0 < left[0] < 30_000 < left[1] < 1_000_000


async def test_other_streams_end(host: Host, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        running = asyncio.ensure_future(shell(first, "echo $$ > /run/pid; exec sleep 1000"))
        await printed(first, "until [ -s /run/pid ]; do sleep 0.02; done")
        await engine.suspend(first, snapshot)
        with pytest.raises(ShimError):
            await running
        async with gone_on(engine, snapshot, again(plan)) as second:
            await printed(second, "while [ -d /proc/$(cat /run/pid) ]; do sleep 0.02; done")


async def test_the_network_is_there_again(host: Host, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    addresses = "ip -4 -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4; ip route | head -1"
    ping = "python3 -c 'import socket; s=socket.socket(); s.settimeout(5); print(s.connect_ex({}))'"
    async with launched(engine, plan) as first:
        before = await printed(first, addresses)
        await engine.suspend(first, snapshot)
        async with gone_on(engine, snapshot, again(plan)) as second:
            assert await printed(second, addresses) == before
            # Nobody listens at the gateway, and it says so itself.
            refused = await printed(second, ping.format('("10.0.2.2", 9)'))
            assert int(refused) in {111, 113}


async def test_it_is_suspended_again_and_again(host: Host, engine: Engine, snapshots: Path) -> None:
    plan = host.plan()
    handle = await engine.launch(plan)
    fill = "head -c 3000000 /dev/urandom > {0}; sha256sum {0} | cut -d' ' -f1"
    sums = {path: await printed(handle, fill.format(path)) for path in ("/root/a", "/run/b")}
    async with connected(handle) as connection:
        await begin(connection, COUNTING.format(most=100_000))
    handles = [handle]
    for number in range(CYCLES):
        snapshot = snapshots / str(number)
        await engine.suspend(handles[-1], snapshot)
        plan = again(plan)
        handles.append(await engine.restore(snapshot, plan))
        await engine.stop(handles[-2])
        for path, wanted in sums.items():
            assert await printed(handles[-1], f"sha256sum {path} | cut -d' ' -f1") == wanted
        sums["/root/a"] = await printed(handles[-1], fill.format("/root/a"))
    async with connected(handles[-1]) as connection:
        await connection.signal(1, 9)
        assert (await within(20, connection.exited(1))).wait_status == 9
    found = all_printed(*handles)
    assert found == counted(found.count(b"\n"))
    await engine.stop(handles[-1])


async def test_the_disk_is_good_without_the_memory(
    host: Host, engine: Engine, snapshots: Path
) -> None:
    snapshot = snapshots / "snapshot"
    async with launched(engine, host.plan()) as handle:
        await printed(handle, "echo written > /root/file")
        await engine.suspend(handle, snapshot)
        async with engine.still(handle) as capture:
            assert capture.tar is not None
            content = b"".join([piece async for piece in capture.tar])
        assert re.search(rb"root/file\0", content)
        assert b"written\n" in content


async def test_what_cannot_be_suspended(host: Host, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as handle:
        snapshot.mkdir()
        with pytest.raises(LaunchError, match="there already"):
            await engine.suspend(handle, snapshot)
        with pytest.raises(LaunchError):
            await engine.suspend(handle, snapshots / "not there" / "snapshot")
        assert await printed(handle, "echo on") == "on\n"
        await engine.stop(handle)
        with pytest.raises(LookupError):
            await engine.suspend(handle, snapshots / "other")
        assert [path.name for path in snapshots.iterdir() if path.name.startswith(".")] == []
