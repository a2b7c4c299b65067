"""The Engine contract: what a VM is, how it is found again, how it ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from magsd.engine.base import EndReason, Handle
from magsd.engine.cgroup import CgroupTree
from magsd.engine.gvisor import GvisorEngine
from magsd.guest import streams
from magsd.guest.journal import JournalReader
from magsd.guest.shim import ShimError
from magsd.guest.wire import Channel, pack_fields
from magsd.model.errors import LaunchError
from tests.conformance.conftest import Host, connected, printed, shell, within

LEFT_AFTER_STOP = {"record.json", "state"}


async def test_a_vm_runs_a_command(host: Host, engine: GvisorEngine) -> None:
    plan = host.plan()
    handle = await engine.launch(plan)
    assert (handle.vm, handle.epoch) == (plan.vm, plan.epoch)
    assert handle.run_directory.is_absolute()
    result = await shell(handle, "echo out; echo err >&2; exit 7")
    assert (result.wait_status >> 8, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    ended = await engine.stop(handle)
    assert ended.reason is EndReason.KILLED
    assert host.files(handle) == LEFT_AFTER_STOP


async def test_a_vm_is_what_its_plan_says(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(vcpus=1.5, memory_mb=300, disk_gb=3, hostname="named"))
    cpus = min(2, len(os.sched_getaffinity(0)))
    assert (await printed(handle, "nproc")).strip() == str(cpus)
    assert (await printed(handle, "hostname")).strip() == "named"
    memory_kb = int((await printed(handle, "grep MemTotal /proc/meminfo")).split()[1])
    assert memory_kb == 300 << 10
    disk_kb = int((await printed(handle, "df -k / | tail -1")).split()[1])
    assert 2.8 * (1 << 20) < disk_kb < 3 * (1 << 20)
    assert await printed(handle, "id -u; cat /proc/self/status | grep CapEff") == (
        "0\nCapEff:\t0000003fffffdfff\n"
    )
    await printed(handle, "for d in proc sys dev/shm dev/pts; do [ -d /$d ] || exit 1; done")
    await engine.stop(handle)


async def test_the_hosts_files_are_seen_inside(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    assert await printed(handle, "cat /etc/pip.conf") == "[global]\ntimeout = 7\n"
    assert host.network.dns_address in await printed(handle, "cat /etc/resolv.conf")
    # They are no part of the disk: what is captured later holds none of them.
    await printed(handle, "umount /etc/pip.conf")
    assert await printed(handle, "cat /etc/pip.conf") == ""
    await engine.stop(handle)


async def test_durable_output_and_its_end_are_in_the_journal(
    host: Host, engine: GvisorEngine
) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        words = [("arg", "/bin/sh"), ("arg", "-c"), ("arg", "echo kept; exit 3")]
        await connection.open_durable(1, pack_fields("exec", words))
        state = await connection.exited(1)
    assert state.wait_status == 3 << 8
    records, _ = JournalReader(handle.run_directory).read(0)
    output = b"".join(r.payload for r in records if (r.channel, r.kind) == (Channel.OUT, 1))
    assert output == b"kept\n"
    await engine.stop(handle)


async def test_a_vm_ends_when_it_powers_off(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    waiting = asyncio.ensure_future(engine.wait(handle))
    async with connected(handle) as connection:
        with contextlib.suppress(ShimError):
            await streams.control(connection, "poweroff")
        await connection.closed()
    ended = await within(10, waiting)
    assert ended.reason is EndReason.AGENT_DIED
    # Long after, and by others: the same answer.
    assert await engine.wait(handle) == ended
    assert await engine.stop(handle) == ended
    assert host.files(handle) == LEFT_AFTER_STOP


# --- network ---------------------------------------------------------------------


async def test_without_network_there_is_only_loopback(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(network=False))
    assert await printed(handle, "ls /sys/class/net 2>/dev/null || ip -o link | cut -d: -f2") in (
        "lo\n",
        " lo\n",
    )
    assert (await shell(handle, connect("8.8.8.8", 53))).wait_status != 0
    await engine.stop(handle)


async def test_the_host_is_out_of_reach(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    with socket.create_server(("0.0.0.0", 0), backlog=64) as server:
        port = server.getsockname()[1]
        slot = record_of(handle)["slot"]
        third = host.slot_net.rpartition(".")[0]
        own = {_own_address(), "127.0.0.1", "10.0.2.2", f"{third}.{slot * 4 + 1}", f"{third}.1"}
        for address in sorted(own):
            result = await shell(handle, connect(address, port))
            assert result.wait_status != 0, address
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    await engine.stop(handle)


def record_of(handle: Handle) -> dict[str, Any]:
    return dict(json.loads((handle.run_directory / "record.json").read_text()))


def connect(address: str, port: int) -> str:
    code = f"import socket; socket.create_connection(('{address}', {port}), 2)"
    return f'python3 -c "{code}"'


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


# --- limits ----------------------------------------------------------------------


async def test_the_disk_has_an_end(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(disk_gb=1))
    full = await shell(handle, "dd if=/dev/zero of=/root/big bs=4M")
    assert full.wait_status != 0
    assert b"No space left" in full.stderr
    # And it heals.
    assert await printed(handle, "rm /root/big && echo well > /root/small && cat /root/small")
    await engine.stop(handle)


async def test_the_disk_has_an_end_of_files(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(disk_gb=1))
    code = "import os\nfor i in range(1 << 20): os.symlink('x', f'/root/d/{i}')"
    full = await shell(handle, f'mkdir /root/d; python3 -c "{code}"')
    assert full.wait_status != 0
    assert b"No space left" in full.stderr
    assert await printed(handle, "rm /root/d/*9 && echo well > /root/small && cat /root/small")
    await engine.stop(handle)


async def test_a_memory_hog_ends_the_vm(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(memory_mb=128))
    hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    running = asyncio.ensure_future(_ignoring_its_end(shell(handle, f'python3 -c "{hog}"')))
    ended = await within(60, engine.wait(handle))
    assert ended.reason is EndReason.OUT_OF_MEMORY
    await running
    await engine.stop(handle)


async def test_a_fork_bomb_ends_the_vm(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(pids_limit=150))
    bomb = "while :; do sleep 60 & done"
    running = asyncio.ensure_future(_ignoring_its_end(shell(handle, bomb)))
    ended = await within(60, engine.wait(handle))
    assert ended.reason is EndReason.TOO_MANY_PROCESSES
    await running
    await engine.stop(handle)


async def test_stats_are_those_of_a_living_vm(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    first = await engine.stats(handle)
    assert 1 << 20 < first.memory_bytes < 512 << 20
    assert first.processes > 3
    await printed(handle, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    assert (await engine.stats(handle)).cpu_ns > first.cpu_ns
    await engine.stop(handle)
    with pytest.raises(LookupError):
        await engine.stats(handle)


# --- ends ------------------------------------------------------------------------


def engine_processes(handle: Handle, host: Host) -> dict[str, int]:
    """The VM's processes on the host by name, from its control group."""
    group = CgroupTree.of_host(host.settings.instance).group(handle.vm)
    found: dict[str, int] = {}
    for pid in group.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            found.setdefault(Path(words[0]).name, pid)
    return found


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        ("shim", EndReason.SHIM_DIED),
        ("runsc", EndReason.ENGINE_DIED),
        ("runsc-sandbox", EndReason.ENGINE_DIED),
        # Its sentry then kills the guest's first process, and that is what is seen.
        ("runsc-gofer", EndReason.AGENT_DIED),
    ],
)
async def test_whoever_is_killed_the_vm_ends(
    host: Host, engine: GvisorEngine, victim: str, reason: EndReason
) -> None:
    handle = await engine.launch(host.plan())
    processes = {**engine_processes(handle, host), "shim": record_of(handle)["shim_pid"]}
    os.kill(processes[victim], signal.SIGKILL)
    ended = await within(5, engine.wait(handle))
    assert ended.reason is reason, ended
    assert await engine.stop(handle) == ended


async def test_a_guest_that_kills_its_first_process_ends(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    running = asyncio.ensure_future(_ignoring_its_end(shell(handle, "kill -9 1; sleep 60")))
    ended = await within(5, engine.wait(handle))
    assert ended.reason is EndReason.AGENT_DIED, ended
    await running
    await engine.stop(handle)


async def test_stop_twice_and_at_once(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    ends = await asyncio.gather(*(engine.stop(handle) for _ in range(4)), engine.wait(handle))
    assert {end.reason for end in ends} == {EndReason.KILLED}
    assert (await engine.stop(handle)).reason is EndReason.KILLED


async def test_a_shim_that_does_not_answer_is_killed(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    record = record_of(handle)
    os.kill(record["shim_pid"], signal.SIGSTOP)
    assert (await within(20, engine.stop(handle))).reason is EndReason.KILLED
    assert (await engine.wait(handle)).reason is EndReason.KILLED


async def test_a_frozen_vm_can_be_stopped(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.request("freeze", deadline_ms="60000")
        ended = await within(20, engine.stop(handle))
    assert ended.reason is EndReason.KILLED


async def test_a_shim_killed_while_frozen_leaves_nothing(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    record = record_of(handle)
    async with connected(handle) as connection:
        await connection.request("freeze", deadline_ms="60000")
        os.kill(record["shim_pid"], signal.SIGKILL)
        ended = await within(20, engine.stop(handle))
    assert ended.reason is EndReason.SHIM_DIED


async def test_a_stop_that_is_given_up_goes_on(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    stopping = asyncio.ensure_future(engine.stop(handle))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await engine.stop(handle)).reason is EndReason.KILLED
    assert host.files(handle) == LEFT_AFTER_STOP


# --- a later daemon ----------------------------------------------------------------


async def test_a_later_daemon_adopts_a_vm(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
    async with host.engine() as later:
        assert await later.adopt(handle.run_directory) == handle
        assert await later.adopt(handle.run_directory) == handle
        assert await printed(handle, "echo still here") == "still here\n"
        assert (await later.stats(handle)).processes > 3
        waiting = asyncio.ensure_future(later.wait(handle))
        assert (await later.stop(handle)).reason is EndReason.KILLED
        assert (await waiting).reason is EndReason.KILLED
        assert await later.adopt(handle.run_directory) is None


async def test_an_adopted_memory_hog_ends(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan(memory_mb=128))
    async with host.engine() as later:
        await later.adopt(handle.run_directory)
        hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
        running = asyncio.ensure_future(_ignoring_its_end(shell(handle, f'python3 -c "{hog}"')))
        assert (await within(60, later.wait(handle))).reason is EndReason.OUT_OF_MEMORY
        await running
        await later.stop(handle)


async def test_a_vm_that_ended_meanwhile_is_not_adopted(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
        record = record_of(handle)
    os.kill(record["shim_pid"], signal.SIGKILL)
    os.waitpid(record["shim_pid"], 0)  # a later daemon is not its parent
    async with host.engine() as later:
        ended = await within(5, later.wait(handle))
        assert ended.reason is EndReason.SHIM_DIED
        assert await later.adopt(handle.run_directory) is None
        assert await later.stop(handle) == ended


async def test_a_vm_of_another_boot_is_gone(host: Host, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    await engine.stop(handle)
    path = handle.run_directory / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "boot_id": "another"}))
    (handle.run_directory / "state").unlink()
    assert await engine.adopt(handle.run_directory) is None
    assert (await engine.wait(handle)).reason is EndReason.HOST_RESTARTED


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
        (host.data / "disks" / "0badcafe.ext4").touch()
        removed = await later.sweep(frozenset({kept.vm}))
        assert len(removed) == 2
        assert f"VM {lost.vm}: run directory, control group, disk" in removed
        assert "VM 0badcafe: disk" in removed
        assert not lost.run_directory.exists()
        assert await later.sweep(frozenset({kept.vm})) == []
        for handle in (kept, own):
            assert await printed(handle, "echo well") == "well\n"
            await later.stop(handle)


async def test_a_vm_needs_an_image_and_a_name_of_its_own(host: Host, engine: GvisorEngine) -> None:
    plan = host.plan()
    handle = await engine.launch(plan)
    with pytest.raises(LaunchError, match="already"):
        await engine.launch(plan)
    assert await printed(handle, "echo well") == "well\n"
    await engine.stop(handle)
    with pytest.raises(LaunchError, match="layers"):
        await engine.launch(host.plan(layers=()))


async def _ignoring_its_end(work) -> None:
    with contextlib.suppress(ShimError):
        await work
