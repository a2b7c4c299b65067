"""Forwarded connections by OpenSSH's client: to the VM's ports, and from them."""

import asyncio
import contextlib
import os
import socket

import pytest

from tests.integration.shim_process import until
from tests.integration.ssh_world import HOST, PATIENCE_S, world

MEGABYTE = 1 << 20
BIG = os.urandom(MEGABYTE) * 20


@pytest.fixture
async def vm(tmp_path):
    async with world(tmp_path) as made:
        yield made


@pytest.fixture
async def web():
    """A server that is inside, since the VM has the host's network; it counts and echoes."""

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        body = BIG if b"GET /big" in head else b"hello"
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        return sock.getsockname()[1]


@contextlib.asynccontextmanager
async def tunnel(vm, *words):
    process = await vm.start(vm.ssh_words("-N", *words, options=("ExitOnForwardFailure=yes",)))
    try:
        await until(lambda: vm.node.held == 1)
        yield process
    finally:
        process.terminate()
        await process.communicate()


async def curl(vm, *words):
    return await vm.run(
        [
            "curl",
            "-sS",
            "--fail",
            "--retry",
            "20",
            "--retry-delay",
            "1",
            "--retry-connrefused",
            *words,
        ]
    )


async def test_a_local_port_leads_inside(vm, web):
    port = free_port()
    async with tunnel(vm, "-L", f"{port}:localhost:{web}"):
        for path, body in (("", b"hello"), ("big", BIG)):
            done = await curl(vm, f"http://{HOST}:{port}/{path}")
            assert done.out == body, done.err
        several = [curl(vm, f"http://{HOST}:{port}/") for _ in range(20)]
        assert [done.out for done in await asyncio.gather(*several)] == [b"hello"] * 20


async def test_a_socks_proxy_leads_inside(vm, web):
    port = free_port()
    async with tunnel(vm, "-D", str(port)):
        proxy = f"socks5h://{HOST}:{port}"
        done = await curl(vm, "--proxy", proxy, f"http://localhost:{web}/")
        assert done.out == b"hello", done.err


async def test_standard_input_and_output_lead_inside(vm, web):
    done = await vm.ssh("-W", f"{HOST}:{web}", input=b"GET / HTTP/1.0\r\n\r\n")
    assert done.code == 0, done.err
    assert done.out.endswith(b"hello")


async def test_a_half_that_is_closed_leaves_the_other_open(vm):
    async def answer(reader, writer):
        writer.write(b"%d" % len(await reader.read()))
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await vm.ssh("-W", f"{HOST}:{port}", input=BIG)
    assert done.out == str(len(BIG)).encode()


async def test_a_port_that_nobody_listens_on(vm):
    done = await vm.ssh("-W", f"{HOST}:{free_port()}")
    assert done.code == 255
    assert b"refused" in done.err
    done = await vm.ssh("-W", f"{HOST}:70000")
    assert done.code == 255


async def test_a_port_inside_leads_to_the_client(vm, web):
    port = free_port()
    async with tunnel(vm, "-R", f"{port}:{HOST}:{web}"):
        for path, body in (("", b"hello"), ("big", BIG)):
            done = await curl(vm, f"http://{HOST}:{port}/{path}")
            assert done.out == body, done.err
        listening = await vm.ssh(f"ss -Hltn sport = :{port}")
        assert f"{HOST}:{port}".encode() in listening.out
        assert b"0.0.0.0:" not in listening.out.replace(b"0.0.0.0:*", b"")
    with pytest.raises(ConnectionRefusedError):
        await until_refused(port)


async def until_refused(port: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            await writer.wait_closed()


async def test_any_free_port_inside(vm):
    process = await vm.start(vm.ssh_words("-N", "-R", "0:127.0.0.1:9"))
    try:
        line = await process.stderr.readline()
        assert b"Allocated port" in line
    finally:
        process.terminate()
        await process.communicate()


async def test_a_port_that_is_taken_is_refused(vm, web):
    done = await vm.ssh("-R", f"{web}:{HOST}:9", "true", options=("ExitOnForwardFailure=yes",))
    assert done.code == 255
    assert b"remote port forwarding failed" in done.err


async def test_what_is_not_forwarded_is_refused_and_the_session_goes_on(vm):
    env = {"DISPLAY": ":9", "SSH_AUTH_SOCK": str(vm.folder / "agent")}
    done = await vm.ssh("-X", "-A", "echo $SSH_AUTH_SOCK$DISPLAY.", env=env)
    assert (done.code, done.out) == (0, b".\n")
    local = vm.folder / "local"
    process = await vm.start(vm.ssh_words("-L", f"{local}:/run/inside", "sleep 1000"))
    try:
        await until(local.exists)
        reader, writer = await asyncio.open_unix_connection(str(local))
        assert await reader.read() == b""
        writer.close()
        done = await vm.ssh(
            "-R", "/run/inside:/run/outside", "true", options=("ExitOnForwardFailure=yes",)
        )
        assert done.code == 255
    finally:
        process.kill()
        await process.communicate()


async def test_connections_end_with_the_vm(vm):
    async def answer(reader, writer):
        writer.write(b"begun")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        process = await vm.start(vm.ssh_words("-W", f"{HOST}:{port}"))
        assert await process.stdout.read(5) == b"begun"
        os.kill(vm.shim.pid, 9)
        async with asyncio.timeout(PATIENCE_S):
            await process.communicate()
        assert process.returncode == 255
