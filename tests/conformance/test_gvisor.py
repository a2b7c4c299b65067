"""What is gVisor's own beyond the contract: network, files, limits, processes on the host."""

import asyncio
import os
import signal
import socket

import pytest

from magsd.engine.base import EndReason
from magsd.engine.cgroup import CgroupTree
from magsd.engine.gvisor import GvisorEngine
from magsd.model.errors import LaunchError
from magsd.model.names import VmId
from tests.conformance.gvisor_host import GvisorHost
from tests.conformance.vm import connected, printed, record_of, shell, within

pytestmark = pytest.mark.parametrize("host", ["gvisor"], indirect=True)


async def test_a_vm_has_what_its_plan_says(host: GvisorHost, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(memory_mb=300, disk_gb=3))
    memory_kb = int((await printed(handle, "grep MemTotal /proc/meminfo")).split()[1])
    assert memory_kb == 300 << 10
    disk_kb = int((await printed(handle, "df -k / | tail -1")).split()[1])
    assert 2.8 * (1 << 20) < disk_kb < 3 * (1 << 20)
    assert await printed(handle, "cat /proc/self/status | grep CapEff") == (
        "CapEff:\t0000003fffffdfff\n"
    )
    await printed(handle, "for d in proc sys dev/shm dev/pts; do [ -d /$d ] || exit 1; done")
    await engine.stop(handle)


async def test_the_hosts_files_are_seen_inside(host: GvisorHost, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    assert await printed(handle, "cat /etc/pip.conf") == "[global]\ntimeout = 7\n"
    assert host.network.dns_address in await printed(handle, "cat /etc/resolv.conf")
    # They are no part of the disk: what is captured later holds none of them.
    await printed(handle, "umount /etc/pip.conf")
    assert await printed(handle, "cat /etc/pip.conf") == ""
    await engine.stop(handle)


async def test_a_vm_needs_layers(host: GvisorHost, engine: GvisorEngine) -> None:
    with pytest.raises(LaunchError, match="layers"):
        await engine.launch(host.plan(layers=()))


# --- network ---------------------------------------------------------------------


async def test_without_network_there_is_only_loopback(
    host: GvisorHost, engine: GvisorEngine
) -> None:
    handle = await engine.launch(host.plan(network=False))
    assert await printed(handle, "ls /sys/class/net 2>/dev/null || ip -o link | cut -d: -f2") in (
        "lo\n",
        " lo\n",
    )
    assert (await shell(handle, connect("8.8.8.8", 53))).wait_status != 0
    await engine.stop(handle)


async def test_the_host_is_out_of_reach(host: GvisorHost, engine: GvisorEngine) -> None:
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


def connect(address: str, port: int) -> str:
    code = f"import socket; socket.create_connection(('{address}', {port}), 2)"
    return f'python3 -c "{code}"'


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


# --- limits ----------------------------------------------------------------------


async def test_the_disk_has_an_end(host: GvisorHost, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(disk_gb=1))
    full = await shell(handle, "dd if=/dev/zero of=/root/big bs=4M")
    assert full.wait_status != 0
    assert b"No space left" in full.stderr
    # And it heals.
    assert await printed(handle, "rm /root/big && echo well > /root/small && cat /root/small")
    await engine.stop(handle)


async def test_the_disk_has_an_end_of_files(host: GvisorHost, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan(disk_gb=1))
    code = "import os\nfor i in range(1 << 20): os.symlink('x', f'/root/d/{i}')"
    full = await shell(handle, f'mkdir /root/d; python3 -c "{code}"')
    assert full.wait_status != 0
    assert b"No space left" in full.stderr
    assert await printed(handle, "rm /root/d/*9 && echo well > /root/small && cat /root/small")
    await engine.stop(handle)


async def test_the_processes_of_a_vm_are_counted(host: GvisorHost, engine: GvisorEngine) -> None:
    handle = await engine.launch(host.plan())
    assert (await engine.stats(handle)).processes > 3
    await engine.stop(handle)


# --- ends ------------------------------------------------------------------------


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
    host: GvisorHost, engine: GvisorEngine, victim: str, reason: EndReason
) -> None:
    handle = await engine.launch(host.plan())
    processes = {**host.processes(handle), "shim": record_of(handle)["shim_pid"]}
    os.kill(processes[victim], signal.SIGKILL)
    ended = await within(5, engine.wait(handle))
    assert ended.reason is reason, ended
    assert await engine.stop(handle) == ended


async def test_a_shim_that_does_not_answer_is_killed(
    host: GvisorHost, engine: GvisorEngine
) -> None:
    handle = await engine.launch(host.plan())
    record = record_of(handle)
    os.kill(record["shim_pid"], signal.SIGSTOP)
    assert (await within(20, engine.stop(handle))).reason is EndReason.KILLED
    assert (await engine.wait(handle)).reason is EndReason.KILLED


async def test_a_shim_killed_while_frozen_leaves_nothing(
    host: GvisorHost, engine: GvisorEngine
) -> None:
    handle = await engine.launch(host.plan())
    record = record_of(handle)
    async with connected(handle) as connection:
        await connection.request("freeze", deadline_ms="60000")
        os.kill(record["shim_pid"], signal.SIGKILL)
        ended = await within(20, engine.stop(handle))
    assert ended.reason is EndReason.SHIM_DIED


async def test_a_vm_that_ended_meanwhile_is_not_adopted(host: GvisorHost) -> None:
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


async def test_a_sweep_finds_a_disk_alone(host: GvisorHost, engine: GvisorEngine) -> None:
    host.disk(VmId("0badcafe")).touch()
    assert await engine.sweep(frozenset()) == ["VM 0badcafe: disk"]


async def test_one_that_waits_goes_behind_others_until_it_is_claimed(
    host: GvisorHost, engine: GvisorEngine
) -> None:
    handle = await engine.launch(host.plan(waits=True))
    weight = CgroupTree.of_host(host.settings.instance).group(handle.vm).weight
    assert weight.file.read_text().strip() == weight.last
    async with connected(handle) as connection:
        await connection.request("hold")
        await connection.request("claim")
        assert weight.file.read_text().strip() == weight.usual
    await engine.stop(handle)


async def test_one_that_waits_ends_with_the_engine_that_made_it(host: GvisorHost) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan(waits=True))
        kept = await earlier.launch(host.plan())
    await asyncio.to_thread(os.waitpid, record_of(handle)["shim_pid"], 0)  # as its parent's end
    async with host.engine() as later:
        ended = await within(10, later.wait(handle))
        assert (ended.reason, ended.detail) == (EndReason.KILLED, "nobody claimed it")
        await later.stop(handle)
        assert await later.adopt(kept.run_directory) is not None
        await later.stop(kept)
