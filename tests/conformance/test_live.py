"""What a live sandbox is asked for, with a guest of each engine: connections, terminals, numbers."""

import asyncio
import os
import struct
from collections.abc import Callable

import pytest

from magsd.engine.base import Engine
from magsd.guest.dial import DialError, dial
from magsd.guest.listen import listen
from magsd.guest.process import Process, Terminal, spawn
from magsd.guest.sftp import sftp
from magsd.guest.shim import ShimConnection
from magsd.guest.stats import GuestStats, stats
from magsd.guest.streams import read_file, run
from magsd.guest.wire import Channel
from tests.conformance.host import Host
from tests.conformance.vm import ENVIRONMENT, begin, connected, introduced

GUESTS = ("gvisor", "qemu")
on_guests = pytest.mark.parametrize("host", GUESTS, indirect=True)
on_guests_and_alpine = pytest.mark.parametrize(
    "host", [*GUESTS, *(f"{name}-alpine" for name in GUESTS)], indirect=True
)
SERVER = """python3 -u -c '
import socket
server = socket.create_server(("", 8000), backlog=200)
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    content = b""
    while data := peer.recv(65536):
        content += data
    peer.sendall(str(len(content)).encode())
    peer.close()
'"""


async def _all(process: Process) -> tuple[bytes, int]:
    content = b""
    async with process:
        while piece := await process.read_any():
            assert piece[0] is Channel.OUT
            content += piece[1]
        return content, os.waitstatus_to_exitcode(await process.wait())


async def _until(connection: ShimConnection, check: Callable[[GuestStats], bool]) -> GuestStats:
    """Read a guest's numbers until they are as wanted."""
    async with asyncio.timeout(60):
        while not check(now := await stats(connection)):
            await asyncio.sleep(0)
    return now


async def _read_until(process: Process, text: bytes) -> None:
    content = b""
    while text not in content:
        piece = await process.read_any()
        assert piece is not None, content
        content += piece[1]


@on_guests
async def test_a_server_inside_is_reached(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock, "named")
    async with connected(handle) as connection:
        with pytest.raises(DialError, match="refused"):
            await dial(connection, "localhost", 8000)
        await begin(connection, SERVER)
        for name, size in (("localhost", 0), ("127.0.0.1", 10), ("named", 3_000_000)):
            async with await dial(connection, name, 8000) as stream:
                await stream.write(bytes(size))
                await stream.write_eof()
                assert await stream.read() == str(size).encode()
                assert await stream.read() == b""
                assert (await stream.exit()).value == 0
    await engine.stop(handle)


@on_guests
async def test_many_connections_at_once(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    async with connected(handle) as connection:
        await begin(connection, SERVER)

        async def ask(number: int) -> int:
            async with await dial(connection, "127.0.0.1", 8000) as stream:
                await stream.write(bytes(number))
                await stream.write_eof()
                return int(await stream.read())

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(number)) for number in range(150)]
        assert [task.result() for task in asked] == list(range(150))
    await engine.stop(handle)


@on_guests_and_alpine
async def test_a_terminal_is_one(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    script = "tty; stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2; exit 3"
    async with connected(handle) as connection:
        process = await spawn(
            connection,
            ["/bin/sh", "-c", script],
            environment=ENVIRONMENT,
            terminal=Terminal("xterm", 100, 30),
        )
        content, code = await _all(process)
    name, *rest = content.split(b"\r\n")
    assert name.startswith(b"/dev/pts/")
    assert (rest, code) == ([b"30 100", b"xterm", b""], 3)
    await engine.stop(handle)


@on_guests
async def test_a_terminal_is_the_sessions(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    script = (
        "trap 'stty size' WINCH; trap 'echo interrupted; exit 9' INT;"
        "echo ready; while :; do sleep 0.01; done"
    )

    async with connected(handle) as connection, asyncio.timeout(60):
        process = await spawn(
            connection,
            ["/bin/sh", "-c", script],
            environment=ENVIRONMENT,
            terminal=Terminal("xterm", 80, 24),
        )
        await _read_until(process, b"ready")
        await process.resize(132, 50)
        await _read_until(process, b"50 132")
        await process.write(b"\x03")
        content, code = await _all(process)
        assert content.endswith(b"interrupted\r\n")
        assert code == 9
    await engine.stop(handle)


@on_guests
async def test_a_terminal_that_goes_takes_its_session_along(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    async with connected(handle) as connection:
        before = (await stats(connection)).processes
        for script in ("echo ready; sleep 1000", "trap '' HUP; echo ready; while :; do :; done"):
            process = await spawn(
                connection,
                ["/bin/sh", "-c", script],
                environment=ENVIRONMENT,
                terminal=Terminal("xterm", 80, 24),
            )
            await _read_until(process, b"ready")
            assert (await stats(connection)).processes > before
            await process.aclose()
            await _until(connection, lambda now: now.processes == before)
    await engine.stop(handle)


@on_guests
async def test_input_at_a_terminal_can_end(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    async with connected(handle) as connection, asyncio.timeout(60):
        process = await spawn(
            connection,
            ["/bin/sh", "-c", "cat; echo over"],
            environment=ENVIRONMENT,
            terminal=Terminal("xterm", 80, 24),
        )
        await process.write(b"line\n")
        await process.write_eof()
        content, code = await _all(process)
    assert content.startswith(b"line\r\nline\r\n")
    assert content.endswith(b"over\r\n")
    assert code == 0
    await engine.stop(handle)


@on_guests_and_alpine
async def test_files_by_sftp(host: Host, engine: Engine) -> None:
    content = os.urandom(700_000)
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    async with connected(handle) as connection, asyncio.timeout(60):
        async with await sftp(connection) as stream:
            await stream.write(_packet(1, struct.pack(">I", 3)))
            await stream.write(_packet(3, _numbered(1), _string(b"new"), struct.pack(">II", 26, 0)))
            for at in range(0, len(content), 200_000):
                place = _string(b"00000000") + struct.pack(">Q", at)
                await stream.write(_packet(6, _numbered(2), place, _string(content[at:][:200_000])))
            await stream.write(_packet(16, _numbered(3), _string(b"new")))
            await stream.write_eof()
            answers = b""
            while piece := await stream.read():
                answers += piece
            assert (await stream.exit()).value == 0
        assert _string(b"/root/new") in answers
        found = [piece async for piece in read_file(connection, "/root/new")]
    assert b"".join(found) == content
    await engine.stop(handle)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _numbered(number: int) -> bytes:
    return struct.pack(">I", number)


def _packet(kind: int, *parts: bytes) -> bytes:
    return _string(bytes([kind]) + b"".join(parts))


@on_guests
async def test_somebody_outside_listens_inside(host: Host, engine: Engine) -> None:
    script = """python3 -c '
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as it:
    it.sendall(b"question")
    it.shutdown(socket.SHUT_WR)
    print(it.makefile("rb").read().decode())
' "$0" """
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    async with (
        connected(handle) as connection,
        asyncio.timeout(60),
        await listen(connection, "127.0.0.1", 0) as listener,
    ):
        argv = ["/bin/sh", "-c", script, str(listener.port)]
        asking = asyncio.create_task(run(connection, argv, environment=ENVIRONMENT))
        stream, peer, _ = await listener.accept()
        async with stream:
            assert await stream.read() == b"question"
            assert await stream.read() == b""
            await stream.write(b"answer")
            await stream.write_eof()
            assert (peer, (await stream.exit()).value) == ("127.0.0.1", 0)
        assert (await asking).stdout == b"answer\n"
    await engine.stop(handle)


@on_guests
async def test_what_the_guest_has_used(host: Host, engine: Engine) -> None:
    second_ns = 1_000_000_000
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    async with connected(handle) as connection:
        begun = await stats(connection)
        process = await spawn(connection, ["sleep", "1000"], environment=ENVIRONMENT)
        asleep = await _until(connection, lambda now: now.processes > begun.processes)
        later = await _until(connection, lambda now: now.now_ns > asleep.now_ns + second_ns)
        assert later.busy_since(asleep) < 0.1
        await process.aclose()

        spinning = "while :; do :; done"
        process = await spawn(connection, ["sh", "-c", spinning], environment=ENVIRONMENT)
        busy = await _until(connection, lambda now: now.cpu_ns > later.cpu_ns + second_ns // 2)
        await process.aclose()

        # What came and went between two readings counts, too.
        brief = "for i in 1 2 3 4 5 6 7 8; do sh -c 'i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done'; done"
        process = await spawn(connection, ["sh", "-c", brief], environment=ENVIRONMENT)
        assert await _all(process) == (b"", 0)
        ended = await stats(connection)
        assert ended.cpu_ns - busy.cpu_ns > second_ns // 10
        assert ended.processes == begun.processes
    await engine.stop(handle)
