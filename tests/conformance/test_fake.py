"""What is the fake engine's own beyond the contract: its host process, and scripted faults."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from magsd.engine.base import EndReason
from magsd.engine.fake.engine import FakeEngine
from magsd.engine.fake.faults import Fault, Moment
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.state import EndCode, read_state, read_stream
from magsd.model.errors import JobCode, LaunchError
from tests.conformance.fake_host import FakeHost, is_alive, processes_of
from tests.conformance.vm import (
    begin,
    connected,
    eventually,
    journaled,
    printed,
    record_of,
    script,
    shell,
    within,
)

pytestmark = pytest.mark.parametrize("host", ["fake"], indirect=True)


async def test_all_vms_share_a_process(host: FakeHost, engine: FakeEngine) -> None:
    handles = await asyncio.gather(*(engine.launch(host.plan()) for _ in range(50)))
    assert len({record_of(handle)["shim_pid"] for handle in handles}) == 1
    assert await asyncio.gather(*(printed(handle, "id -u") for handle in handles)) == ["0\n"] * 50
    await asyncio.gather(*(engine.stop(handle) for handle in handles))


async def test_an_idle_vm_has_few_files(host: FakeHost, engine: FakeEngine) -> None:
    handle = await engine.launch(host.plan())
    names = {path.name for path in handle.run_directory.iterdir()}
    assert names == {"record.json", "sock", "state"}
    await engine.stop(handle)


async def test_a_run_directory_may_have_a_long_name(tmp_path: Path, host: FakeHost) -> None:
    deep = FakeHost(tmp_path / ("d" * 200))
    async with deep.engine() as engine:
        handle = await engine.launch(deep.plan())
        assert await printed(handle, "echo well") == "well\n"
        await engine.stop(handle)


async def test_the_host_ends_when_nobody_needs_it(host: FakeHost) -> None:
    async with host.engine() as engine:
        handle = await engine.launch(host.plan())
        (pid,) = processes_of(host.data)
    assert is_alive(pid)
    async with host.engine() as engine:
        await engine.stop(handle)
        assert is_alive(pid)
    await eventually(lambda: not is_alive(pid))
    assert not (host.data / "run" / "fake.sock").exists()


# --- a host that dies ------------------------------------------------------------------


async def test_vms_end_with_their_host(host: FakeHost, engine: FakeEngine) -> None:
    handles = [await engine.launch(host.plan()) for _ in range(3)]
    waiting = [asyncio.ensure_future(engine.wait(handle)) for handle in handles]
    async with connected(handles[0]) as connection:
        await begin(connection, "echo kept; sleep 600")
        os.kill(record_of(handles[0])["shim_pid"], signal.SIGKILL)
        with pytest.raises(ShimError):
            await connection.exited(1)
    ends = await within(10, asyncio.gather(*waiting))
    assert {end.reason for end in ends} == {EndReason.SHIM_DIED}
    assert journaled(handles[0]) == b"kept\n"
    with pytest.raises(LookupError):
        await engine.stats(handles[0])
    # The next one is launched in a new host.
    following = await engine.launch(host.plan())
    assert record_of(following)["shim_pid"] != record_of(handles[0])["shim_pid"]
    assert await printed(following, "echo well") == "well\n"
    for handle, end in zip(handles, ends, strict=True):
        assert await engine.adopt(handle.run_directory) is None
        assert await engine.stop(handle) == end
    await engine.stop(following)


async def test_a_launch_meets_a_host_that_dies(host: FakeHost, engine: FakeEngine) -> None:
    first = await engine.launch(host.plan())
    host.faults.add("launch", Fault(moment=Moment.BEGIN))
    os.kill(record_of(first)["shim_pid"], signal.SIGKILL)
    # At that moment the link may look alive still.
    try:
        handle = await within(10, engine.launch(host.plan()))
    except LaunchError:
        handle = await within(10, engine.launch(host.plan()))
    assert await printed(handle, "echo well") == "well\n"
    await engine.stop(handle)
    assert (await engine.stop(first)).reason is EndReason.SHIM_DIED


async def test_daemon_and_host_die(host: FakeHost) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
        pid = record_of(handle)["shim_pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # a later daemon is not its parent
    async with host.engine() as later:
        assert await later.adopt(handle.run_directory) is None
        assert (await within(5, later.wait(handle))).reason is EndReason.SHIM_DIED
        handles = await asyncio.gather(*(later.launch(host.plan()) for _ in range(2)))
        removed = await later.sweep(frozenset(handle.vm for handle in handles))
        assert removed == [f"VM {handle.vm}: run directory"]
        for handle in handles:
            assert (await later.stop(handle)).reason is EndReason.KILLED


async def test_a_host_that_does_not_answer_is_killed(
    host: FakeHost, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magsd.engine.fake.host_client._ANSWER_S", 0.2)
    handles = [await engine.launch(host.plan()) for _ in range(2)]
    os.kill(record_of(handles[0])["shim_pid"], signal.SIGSTOP)
    assert (await within(10, engine.stop(handles[0]))).reason is EndReason.KILLED
    assert (await within(10, engine.wait(handles[1]))).reason is EndReason.SHIM_DIED
    await engine.stop(handles[1])


async def test_two_engines_find_the_same_host(host: FakeHost) -> None:
    async with host.engine() as first, host.engine() as second:
        handles = await asyncio.gather(first.launch(host.plan()), second.launch(host.plan()))
        assert len(processes_of(host.data)) == 1
        for handle in handles:
            await first.stop(handle)
            assert (await within(5, second.wait(handle))).reason is EndReason.KILLED


# --- faults ----------------------------------------------------------------------------


async def test_a_launch_is_cancelled_at_every_turn(host: FakeHost, engine: FakeEngine) -> None:
    turn, launched = 0, 0
    while launched < 3:
        plan = host.plan()
        launching = asyncio.ensure_future(engine.launch(plan))
        for _ in range(turn):
            await asyncio.sleep(0)
        launching.cancel()
        await asyncio.wait([launching])
        if launching.cancelled():
            assert not (host.data / "run" / plan.vm).exists(), turn
            assert not [line for line in await engine.sweep(frozenset()) if plan.vm in line], turn
        else:
            await engine.stop(launching.result())
            launched += 1
        turn += 1
    assert turn > 3


@pytest.mark.parametrize("moment", Moment)
async def test_a_launch_fails_as_it_was_told(
    host: FakeHost, engine: FakeEngine, moment: Moment
) -> None:
    error = LaunchError("no room", "", JobCode.HOST_DISK_FULL)
    host.faults.add("launch", Fault(0.01, error, moment))
    plan = host.plan()
    with pytest.raises(LaunchError) as caught:
        await engine.launch(plan)
    assert caught.value is error
    assert not (host.data / "run" / plan.vm).exists()
    handle = await engine.launch(plan)
    await engine.stop(handle)


async def test_other_members_fail_as_they_were_told(host: FakeHost, engine: FakeEngine) -> None:
    handle = await engine.launch(host.plan())
    for member, call in {
        "prepare": engine.prepare,
        "adopt": lambda: engine.adopt(handle.run_directory),
        "wait": lambda: engine.wait(handle),
        "stats": lambda: engine.stats(handle),
        "sweep": lambda: engine.sweep(frozenset()),
        "stop": lambda: engine.stop(handle),
    }.items():
        host.faults.add(member, Fault(error=RuntimeError(member)))
        with pytest.raises(RuntimeError, match=member):
            await call()
    assert (await engine.stop(handle)).reason is EndReason.KILLED


async def test_a_claim_takes_its_time(host: FakeHost) -> None:
    async with host.engine(claim_s=0.05, launch_s=0.01) as engine:
        handle = await engine.launch(host.plan())
        async with connected(handle) as connection:
            await connection.request("hold")
            await connection.request("claim")
        assert await printed(handle, "echo well") == "well\n"
        await engine.stop(handle)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("agent_died", EndReason.AGENT_DIED), ("engine_died", EndReason.ENGINE_DIED)],
)
async def test_a_script_ends_its_vm(
    host: FakeHost, engine: FakeEngine, fault: str, reason: EndReason
) -> None:
    handle, other = await engine.launch(host.plan()), await engine.launch(host.plan())
    async with connected(handle) as connection:
        await begin(connection, f"echo up; fake {fault}; echo no")
        await within(5, connection.closed())
    ended = await within(5, engine.wait(handle))
    assert ended.reason is reason
    assert "the script asked for it" in ended.detail
    state = read_stream(handle.run_directory, 1)
    assert state is not None
    assert (state.is_over, journaled(handle)) == (False, b"up\n")
    assert await printed(other, "echo well") == "well\n"
    await engine.stop(handle)
    await engine.stop(other)


async def test_a_vm_that_hangs_can_be_stopped(host: FakeHost, engine: FakeEngine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await begin(connection, "echo up; fake hang")
        asked = asyncio.ensure_future(shell(handle, "echo no"))
        await connection.signal(1, 9)
        await connection.request("note", text="the shim lives")
        assert not connection.durable(1).is_over
    assert (await within(5, engine.stop(handle))).reason is EndReason.KILLED
    with pytest.raises(ShimError):
        await asked


# --- what is too much --------------------------------------------------------------------


async def test_a_flood_keeps_its_beginning_and_its_end(host: FakeHost, engine: FakeEngine) -> None:
    handle = await engine.launch(host.plan(log_rate_bytes=0))
    async with connected(handle) as connection:
        await connection.open_durable(1, script("echo first; flood 40000000; echo last"))
        # Another VM, and this one, answer meanwhile.
        assert await printed(handle, "echo well") == "well\n"
        state = await within(60, connection.exited(1))
    assert state.out_bytes == 40_000_011
    kept = sum(path.stat().st_size for path in handle.run_directory.glob("journal.*"))
    assert 15 << 20 < kept <= 17 << 20
    await engine.stop(handle)


async def test_who_breaks_the_protocol_is_let_go(host: FakeHost, engine: FakeEngine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as good:
        bad = await ShimConnection.open(handle.run_directory)
        bad._link._transport.write(b"\xff" * 100)
        await within(5, bad.closed())
        await bad.aclose()
        await good.request("note", text="still here")
    await engine.stop(handle)


async def test_a_host_without_descriptors_refuses_vms(host: FakeHost, engine: FakeEngine) -> None:
    import resource

    handle = await engine.launch(host.plan())
    pid = record_of(handle)["shim_pid"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (20, before_hard(pid)))
    plans = [host.plan() for _ in range(20)]
    results = await asyncio.gather(*map(engine.launch, plans), return_exceptions=True)
    refused = [found for found in results if isinstance(found, LaunchError)]
    assert refused
    assert "Too many open files" in refused[0].detail
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    for plan, found in zip(plans, results, strict=True):
        if isinstance(found, LaunchError):
            assert not (host.data / "run" / plan.vm).exists()
        else:
            await engine.stop(found)
    assert await printed(handle, "echo well") == "well\n"
    await engine.stop(handle)
    assert read_state(handle.run_directory).end is EndCode.KILLED


def before_hard(pid: int) -> int:
    import resource

    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
