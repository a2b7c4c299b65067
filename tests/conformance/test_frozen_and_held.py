"""The Engine contract: what is frozen stands still, what is held ends with its holder."""

import asyncio

import pytest

from magsd.engine.base import EndReason, Engine
from magsd.guest.shim import ShimConnection, ShimError
from tests.conformance.host import Host
from tests.conformance.vm import begin, connected, journaled, printed, script, shell, within


async def test_a_frozen_vm_stands_still(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection, connected(handle) as another:
        await begin(connection, "while true; do echo tick; sleep 0.01; done")
        await connection.request("freeze", deadline_ms="0")
        # What was printed before is out once the shim has answered twice.
        asked = asyncio.ensure_future(shell(handle, "echo asked"))
        await another.request("note", text="first")
        before = journaled(handle)
        await another.request("note", text="second")
        assert journaled(handle) == before
        assert not asked.done()
        with pytest.raises(ShimError):
            await another.request("freeze", deadline_ms="1000")
        await another.request("thaw")
        assert (await within(20, asked)).stdout == b"asked\n"
        await connection.journal_grown(connection.journal_end)
    await engine.stop(handle)


async def test_a_freeze_ends_by_itself(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.request("freeze", deadline_ms="200")
        assert await within(20, printed(handle, "echo well")) == "well\n"
        await connection.request("freeze", deadline_ms="0")
    # And with the connection that asked for it.
    assert await within(20, printed(handle, "echo well")) == "well\n"
    await engine.stop(handle)


async def test_a_frozen_vm_can_be_stopped(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.request("freeze", deadline_ms="60000")
        ended = await within(20, engine.stop(handle))
    assert ended.reason is EndReason.KILLED


async def test_a_held_vm_ends_with_its_holder(host: Host, engine: Engine) -> None:
    for is_frozen in (False, True):
        handle = await engine.launch(host.plan())
        async with connected(handle) as holder:
            await holder.request("hold")
            await holder.request("hold")
            if is_frozen:
                await holder.request("freeze", deadline_ms="0")
        ended = await within(20, engine.wait(handle))
        assert (ended.reason, ended.detail) == (EndReason.KILLED, "nobody claimed it")
        await engine.stop(handle)


async def test_a_claimed_vm_is_thawed_and_lives_on(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as holder, connected(handle) as another:
        await _refused(holder, "claim")
        await holder.request("hold")
        await _refused(another, "hold")
        await _refused(another, "claim")
        await holder.request("freeze", deadline_ms="0")
        await holder.request("claim")
        assert await within(20, printed(handle, "echo well")) == "well\n"
        await _refused(holder, "claim")
    assert await printed(handle, "echo still") == "still\n"
    await engine.stop(handle)


async def test_a_scoped_connection_may_use_streams_only(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.request("scope")
        for verb in ("hold", "claim", "freeze", "thaw", "kill", "note", "fence"):
            await _refused(connection, verb)
        with pytest.raises(ShimError):
            await connection.open_durable(1, script("echo no"))
    assert await printed(handle, "echo well") == "well\n"
    await engine.stop(handle)


async def test_a_fence_ends_a_vm_unless_it_is_renewed(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        await connection.request("fence", deadline_ms="60000")
        await connection.request("fence", deadline_ms="0")
        assert await printed(handle, "echo well") == "well\n"
        await connection.request("fence", deadline_ms="50")
        assert (await within(20, engine.wait(handle))).reason is EndReason.FENCED
    await engine.stop(handle)


async def _refused(connection: ShimConnection, verb: str) -> None:
    with pytest.raises(ShimError):
        await connection.request(verb)
