"""The Engine contract: what a VM is, how it ends, and how that is told."""

import asyncio
import contextlib

import pytest

from magsd.engine.base import EndReason, Engine
from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.state import read_stream
from tests.conformance.host import Host
from tests.conformance.roots import on_every_root
from tests.conformance.vm import (
    begin,
    connected,
    introduced,
    journaled,
    printed,
    script,
    shell,
    shell_to_the_end,
    within,
)

LEFT_AFTER_STOP = {"record.json", "state"}


async def test_a_vm_runs_a_command(host: Host, engine: Engine) -> None:
    plan = host.plan()
    handle = await engine.launch(plan)
    assert (handle.vm, handle.epoch) == (plan.vm, plan.epoch)
    assert handle.run_directory.is_absolute()
    result = await shell(handle, "echo out; echo err >&2; exit 7")
    assert (result.wait_status >> 8, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    ended = await engine.stop(handle)
    assert ended.reason is EndReason.KILLED
    assert host.files(handle) == LEFT_AFTER_STOP


async def test_a_vm_is_what_its_plan_says(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan(vcpus=1.5, hostname="named"))
    await introduced(handle, host.clock, "named")
    assert await printed(handle, "nproc; hostname; id -u") == f"{host.processors(1.5)}\nnamed\n0\n"
    await engine.stop(handle)


async def test_capabilities_are_told(host: Host, engine: Engine) -> None:
    told = engine.capabilities
    assert told == engine.capabilities
    assert told.name
    assert told.isolation
    assert told.max_vcpus >= 1


@on_every_root
async def test_a_vm_can_be_told_who_it_is(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        told = await streams.control(
            connection,
            "identity",
            hostname="another",
            machine_id="5a" * 16,
            clock_ns="1700000000000000000",
        )
        # Where a root has no such file none is made: it would become part of the disk.
        assert told.all("absent") == ([] if host.has_machine_id else ["/etc/machine-id"])
        await streams.write_file(connection, "/run/mags/script", b"echo $GREETING\n", mode=0o700)
        found = [piece async for piece in streams.read_file(connection, "/run/mags/script")]
        assert b"".join(found) == b"echo $GREETING\n"
        argv = ["/bin/sh", "/run/mags/script"]
        ran = await streams.run(connection, argv, environment={"GREETING": "well met"})
        assert ran.stdout == b"well met\n"
        with pytest.raises(ShimError, match="/nowhere"):
            _ = [piece async for piece in streams.read_file(connection, "/nowhere")]
    machine_id = f"{'5a' * 16}\n" if host.has_machine_id else ""
    found = await printed(handle, "hostname; cat /etc/machine-id 2>/dev/null || true")
    assert found == f"another\n{machine_id}"
    await engine.stop(handle)


# --- durable streams -----------------------------------------------------------------


async def test_durable_output_and_its_end_are_in_the_journal(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.open_durable(1, script("echo kept; echo told >&2; exit 3"))
        state = await connection.exited(1)
        # Asked for again, it is what it was.
        await connection.open_durable(1, script("echo again"))
    assert (state.wait_status, state.out_bytes, state.err_bytes) == (3 << 8, 5, 5)
    assert (journaled(handle), journaled(handle, channel=2)) == (b"kept\n", b"told\n")
    await engine.stop(handle)
    written = read_stream(handle.run_directory, 1)
    assert written is not None
    assert (written.is_over, written.wait_status, written.out_bytes) == (True, 3 << 8, 5)


@pytest.mark.parametrize(("number", "status"), [(15, 15), (9, 9)])
async def test_a_signal_ends_a_script(host: Host, engine: Engine, number: int, status: int) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await begin(connection, "echo begun; sleep 600")
        await connection.signal(1, number)
        assert (await within(20, connection.exited(1))).wait_status == status
    await engine.stop(handle)


@on_every_root
async def test_a_script_may_refuse_to_end(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await begin(connection, "trap '' TERM; echo begun; sleep 600")
        await connection.signal(1, 15)
        assert await printed(handle, "echo well") == "well\n"
        assert not connection.durable(1).is_over
        await connection.signal(1, 9)
        assert (await within(20, connection.exited(1))).wait_status == 9
    await engine.stop(handle)


@on_every_root
@pytest.mark.parametrize(("signalled", "status"), [("TERM", 15), ("KILL", 9)])
async def test_a_script_may_end_itself(
    host: Host, engine: Engine, signalled: str, status: int
) -> None:
    handle = await engine.launch(host.plan())
    result = await shell(handle, f"kill -{signalled} $$; echo not reached")
    assert (result.wait_status, result.stdout) == (status, b"")
    assert (await shell(handle, "no-such-program")).wait_status == 127 << 8
    await engine.stop(handle)


async def test_a_deadline_ends_a_script(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.open_durable(1, script("sleep 600"), deadline_s=0.3)
        state = await within(20, connection.exited(1))
    assert (state.has_timed_out, state.wait_status) == (True, 15)
    await engine.stop(handle)


# --- ends ------------------------------------------------------------------------------


async def test_a_vm_ends_when_it_powers_off(host: Host, engine: Engine) -> None:
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


async def test_a_guest_that_kills_its_first_process_ends(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    if host.is_linux:
        # Whose first process nobody inside can kill.
        assert await printed(handle, "kill -9 1; echo well") == "well\n"
        await engine.stop(handle)
        return
    running = asyncio.ensure_future(shell_to_the_end(handle, "kill -9 1; sleep 60"))
    ended = await within(5, engine.wait(handle))
    assert ended.reason is EndReason.AGENT_DIED, ended
    await running
    await engine.stop(handle)


async def test_a_memory_hog_ends_the_vm(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan(memory_mb=512 if host.is_linux else 128))
    if host.is_linux:
        # The hog alone ends.
        assert (await within(60, shell(handle, f"{host.hog}; echo $?"))).stdout == b"137\n"
        await engine.stop(handle)
        return
    running = asyncio.ensure_future(shell_to_the_end(handle, host.hog))
    ended = await within(60, engine.wait(handle))
    assert ended.reason is EndReason.OUT_OF_MEMORY
    await running
    await engine.stop(handle)


async def test_a_fork_bomb_ends_the_vm(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    if host.is_linux:
        # No more can be begun by others; the agent can.
        async with connected(handle) as connection:
            await connection.open_durable(1, script(host.bomb))
            assert (await within(60, connection.exited(1))).wait_status != 0
            assert (await streams.control(connection, "stats")).number("processes") > 100
            argv = ["/bin/echo", "well"]
            assert (await streams.run(connection, argv, environment={})).stdout == b"well\n"
        await engine.stop(handle)
        return
    running = asyncio.ensure_future(shell_to_the_end(handle, host.bomb))
    ended = await within(60, engine.wait(handle))
    assert ended.reason is EndReason.TOO_MANY_PROCESSES
    await running
    await engine.stop(handle)


async def test_a_shim_that_is_lost_ends_the_vm(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    waiting = [asyncio.ensure_future(engine.wait(handle)) for _ in range(3)]
    await host.lose_shim(handle)
    ended = await within(5, engine.wait(handle))
    assert ended.reason is EndReason.SHIM_DIED, ended
    assert await within(5, asyncio.gather(*waiting)) == [ended] * 3
    assert await engine.stop(handle) == ended


@pytest.mark.parametrize("reason", ["fenced", "out_of_memory", "host_disk_full"])
async def test_a_shim_can_be_told_why_its_vm_ends(host: Host, engine: Engine, reason: str) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        with pytest.raises(ShimError):
            await connection.request("kill", reason=reason)
    assert (await within(5, engine.wait(handle))).reason == reason
    await engine.stop(handle)


async def test_stop_twice_and_at_once(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    ends = await asyncio.gather(*(engine.stop(handle) for _ in range(4)), engine.wait(handle))
    assert {end.reason for end in ends} == {EndReason.KILLED}
    assert (await engine.stop(handle)).reason is EndReason.KILLED


async def test_a_stop_that_is_given_up_goes_on(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    stopping = asyncio.ensure_future(engine.stop(handle))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await engine.stop(handle)).reason is EndReason.KILLED
    assert host.files(handle) == LEFT_AFTER_STOP


async def test_stats_are_those_of_a_living_vm(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    first = await engine.stats(handle)
    assert 1 << 20 < first.memory_bytes < 512 << 20
    assert first.processes >= 1
    await printed(handle, host.work)
    assert (await engine.stats(handle)).cpu_ns > first.cpu_ns
    await engine.stop(handle)
    with pytest.raises(LookupError):
        await engine.stats(handle)
