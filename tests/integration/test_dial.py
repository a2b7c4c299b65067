"""TCP connections from inside a VM, with the real agent behind the real shim."""

import asyncio
import errno
import hashlib
import os
import signal
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from magsd.guest import streams
from magsd.guest.dial import DialError, dial
from magsd.guest.shim import ShimError
from magsd.guest.wire import SCOPED_STREAMS_MAX, Channel
from tests.integration.shim_process import DEADLINE_S, ShimProcess

BIG = os.urandom(1 << 16) * 60 + b"and a bit"


@pytest.fixture
async def vm(tmp_path):
    """A connection to a VM in the host's network; its end ends every wait."""
    async with await ShimProcess.open(tmp_path) as shim:
        loop = asyncio.get_running_loop()
        too_late = loop.call_later(DEADLINE_S, os.kill, shim.pid, signal.SIGKILL)
        yield await shim.connect()
        too_late.cancel()


@asynccontextmanager
async def serving(handle, host="127.0.0.1"):
    """A server that calls `handle(reader, writer)` for each connection; yields its port."""

    async def serve(reader, writer):
        try:
            await handle(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with AsyncExitStack() as undo:
        group = await undo.enter_async_context(asyncio.TaskGroup())
        sock = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        server = await asyncio.start_server(
            lambda reader, writer: group.create_task(serve(reader, writer)), sock=sock
        )
        undo.callback(server.close)
        yield sock.getsockname()[1]


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def read_all(stream):
    content = bytearray()
    while data := await stream.read():
        content += data
    return bytes(content)


async def test_bytes_go_and_come(vm):
    async with serving(echo) as port, await dial(vm, "127.0.0.1", port) as stream:
        await stream.write(b"hello")
        assert await stream.read() == b"hello"
        await stream.write_eof()
        assert await stream.read() == b""
        assert (await stream.exit()).value == 0


async def test_much_goes_through_both_ways_at_once(vm):
    async with serving(echo) as port, await dial(vm, "localhost", port) as stream:

        async def send():
            await stream.write(BIG)
            await stream.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            content = await read_all(stream)
        assert hashlib.sha256(content).digest() == hashlib.sha256(BIG).digest()


async def test_localhost_is_both_families(vm):
    async with serving(echo, "::1") as port, await dial(vm, "localhost", port) as stream:
        await stream.write(b"six")
        assert await stream.read() == b"six"
        await stream.write_eof()
        assert await stream.read() == b""


async def test_a_name_is_looked_up_in_the_guest(vm):
    name = socket.gethostname()
    async with serving(echo, "0.0.0.0") as port, await dial(vm, name, port) as stream:
        await stream.write(b"named")
        assert await stream.read() == b"named"
        await stream.write_eof()
        assert await stream.read() == b""


async def test_a_server_that_speaks_first_and_hangs_up(vm):
    async def handle(reader, writer):
        writer.write(b"bye")

    async with serving(handle) as port, await dial(vm, "127.0.0.1", port) as stream:
        assert await read_all(stream) == b"bye"
        assert not stream.is_over
        await stream.write_eof()
        assert (await stream.exit()).value == 0


async def test_a_server_that_answers_after_the_end_of_the_request(vm):
    async def handle(reader, writer):
        writer.write(f"{len(await reader.read())}".encode())

    async with serving(handle) as port, await dial(vm, "127.0.0.1", port) as stream:
        await stream.write(BIG)
        await stream.write_eof()
        assert await read_all(stream) == str(len(BIG)).encode()
        assert (await stream.exit()).value == 0


async def test_nobody_listens(vm):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(DialError, match="refused") as caught:
            await dial(vm, host, port)
        assert caught.value.errno == errno.ECONNREFUSED


async def test_a_name_that_is_not_known(vm):
    with pytest.raises(DialError) as caught:
        await dial(vm, "no-such-host.invalid", 80)
    assert caught.value.errno == errno.EHOSTUNREACH


async def test_a_connection_that_breaks_is_no_end(vm):
    async def handle(reader, writer):
        await reader.readexactly(1)
        writer.write(b"half")
        await writer.drain()
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    async with serving(handle) as port, await dial(vm, "127.0.0.1", port) as stream:
        await stream.write(b"x")
        with pytest.raises(ShimError, match="reset"):
            await read_all(stream)


async def test_a_stream_that_is_closed_breaks_its_connection(vm):
    seen = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        try:
            while await reader.read(100):
                pass
            seen.set_result(None)
        except ConnectionResetError as error:
            seen.set_result(error)

    async with serving(handle) as port:
        async with await dial(vm, "127.0.0.1", port) as stream:
            await stream.write(b"a part")
        assert isinstance(await seen, ConnectionResetError)


async def test_a_stream_that_ended_its_input_closes_in_order(vm):
    seen = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        seen.set_result(await reader.read())

    async with serving(handle) as port:
        async with await dial(vm, "127.0.0.1", port) as stream:
            await stream.write(b"all of it")
            await stream.write_eof()
        assert await seen == b"all of it"


async def test_a_slow_reader_holds_no_other(vm):
    async def pour(reader, writer):
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with (
        serving(pour) as poured,
        serving(echo) as port,
        await dial(vm, "127.0.0.1", poured) as slow,
        await dial(vm, "127.0.0.1", port) as quick,
    ):
        assert await slow.read()
        await quick.write(BIG[:100_000])
        content = b""
        while len(content) < 100_000:
            content += await quick.read()
        assert content == BIG[:100_000]


async def test_a_server_that_does_not_read_holds_the_writer_alone(vm):
    is_over = asyncio.Event()

    async def deaf(reader, writer):
        writer.transport.pause_reading()
        await is_over.wait()
        writer.transport.abort()

    async with serving(deaf) as port, await dial(vm, "127.0.0.1", port) as stream:
        writing = asyncio.create_task(stream.write(bytes(64 << 20)))
        environment = {"PATH": "/usr/bin:/bin"}
        for _ in range(5):
            done = await streams.run(vm, ["echo", "on"], environment=environment)
            assert done.stdout == b"on\n"
        assert not writing.done()
        is_over.set()
        await stream.aclose()
        with pytest.raises(ShimError):
            await writing


async def test_strangers_leave_streams_for_the_daemon(tmp_path):
    async with (
        await ShimProcess.open(tmp_path) as shim,
        asyncio.timeout(DEADLINE_S),
        serving(echo) as port,
        AsyncExitStack() as undo,
    ):
        ours, theirs = await shim.connect(), await shim.connect()
        await theirs.request("scope")
        opened = [
            await undo.enter_async_context(await dial(theirs, "127.0.0.1", port))
            for _ in range(SCOPED_STREAMS_MAX)
        ]
        with pytest.raises(ShimError, match="too many"):
            await dial(theirs, "127.0.0.1", port)
        async with await dial(ours, "127.0.0.1", port) as stream:
            await stream.write_eof()
            assert await stream.read() == b""
        for number, stream in enumerate(opened):
            await stream.write(str(number).encode())
        for number, stream in enumerate(opened):
            assert await stream.read() == str(number).encode()
        await opened[0].aclose()
        async with await dial(theirs, "127.0.0.1", port) as stream:
            await stream.write_eof()
            assert await stream.read(Channel.OUT) == b""


@pytest.mark.parametrize(("host", "port"), [("", 80), ("a\0b", 80), ("a", 0), ("a", 65536)])
async def test_what_is_no_place(vm, host, port):
    with pytest.raises(ValueError, match="not a place"):
        await dial(vm, host, port)
