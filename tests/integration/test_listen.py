"""Servers on the loopback of a VM, with the real agent behind the real shim."""

import asyncio
import contextlib
import os
import signal
import socket

import pytest

from magsd.guest.listen import listen
from magsd.guest.shim import ShimError
from tests.integration.shim_process import DEADLINE_S, ShimProcess


@pytest.fixture
async def vm(tmp_path):
    """A connection to a VM in the host's network; its end ends every wait."""
    async with await ShimProcess.open(tmp_path) as shim:
        loop = asyncio.get_running_loop()
        too_late = loop.call_later(DEADLINE_S, os.kill, shim.pid, signal.SIGKILL)
        yield await shim.connect()
        too_late.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_who_connects_becomes_a_stream(vm, host):
    address = "::1" if host == "::1" else "127.0.0.1"
    async with await listen(vm, host, 0) as listener:
        for word in (b"one", b"two"):
            reader, writer = await asyncio.open_connection(address, listener.port)
            stream, peer, port = await listener.accept()
            assert (peer, port) == writer.get_extra_info("sockname")[:2]
            async with stream:
                writer.write(word)
                assert await stream.read() == word
                await stream.write(b"answer")
                await stream.write_eof()
                assert await reader.read() == b"answer"
            writer.close()


async def test_what_was_accepted_outlives_its_listener(vm):
    async with await listen(vm, "127.0.0.1", 0) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        stream, _, _ = await listener.accept()
    async with stream:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listener.port)
        await stream.write(b"still")
        assert await reader.readexactly(5) == b"still"
    writer.close()


async def test_many_wait_and_each_has_its_turn(vm):
    async with await listen(vm, "127.0.0.1", 0) as listener:
        pairs = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(60)]
        for number, (_, writer) in enumerate(pairs):
            writer.write(str(number).encode())
        told = set()
        for _ in pairs:
            stream, _, _ = await listener.accept()
            async with stream:
                told.add(int(await stream.read()))
        assert told == set(range(60))
        for _, writer in pairs:
            writer.close()


async def test_who_was_not_accepted_is_hung_up_on(vm):
    async with await listen(vm, "127.0.0.1", 0) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        accepting = asyncio.create_task(listener.accept())
        stream, _, _ = await accepting
        await stream.aclose()
        other, second = await asyncio.open_connection("127.0.0.1", listener.port)
    for one in (reader, other):
        with contextlib.suppress(ConnectionResetError):
            assert await one.read() == b""
    writer.close()
    second.close()


async def test_a_port_that_is_taken(vm):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ShimError, match="Address in use"),
    ):
        await listen(vm, "127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
async def test_nothing_but_the_loopback(vm, host):
    with pytest.raises(ShimError, match="not available"):
        await listen(vm, host, 0)


@pytest.mark.parametrize(("host", "port"), [("", 80), ("a\0b", 80), ("::1", -1), ("::1", 65536)])
async def test_what_is_no_place(vm, host, port):
    with pytest.raises(ValueError, match="not a place"):
        await listen(vm, host, port)


async def test_a_listener_that_is_closed_accepts_nobody(vm):
    listener = await listen(vm, "127.0.0.1", 0)
    accepting = asyncio.create_task(listener.accept())
    await asyncio.sleep(0)
    await listener.aclose()
    with pytest.raises(ShimError):
        await accepting
