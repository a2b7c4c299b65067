"""Clients that stay: WebSockets, event streams, TLS, those that do nothing, and the end."""

import asyncio
import os
import ssl
import subprocess
import sys
from dataclasses import replace

import pytest
import websockets

from magsd.gateway.ingress import Ingress
from magsd.gateway.ingress_settings import IngressSettings
from magsd.model.errors import InvalidError
from tests.integration.gateway.node import StandInNode
from tests.integration.gateway.world import (
    GET,
    HOST,
    World,
    answering,
    echo,
    read_answer,
    read_head,
)
from tests.integration.shim_process import resident_bytes, until

UPGRADE = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for all names below ours, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    name = "*.apps.test"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    command += ["-keyout", folder / "key", "-out", folder / "certificate"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def encrypted(folder, **more) -> IngressSettings:
    certificate, key = (folder / "certificate").read_bytes(), (folder / "key").read_bytes()
    return IngressSettings(certificate=certificate, key=key, startup_s=0, drain_s=0.1, **more)


async def raw(reader, writer):
    """Switch protocols, and then send back what comes."""
    await read_head(reader)
    writer.write(SWITCHED)
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def test_a_web_socket(world: World):
    async def handler(connection):
        async for message in connection:
            await connection.send(message)

    async with websockets.serve(handler, "127.0.0.1", 0) as server:
        await world.publish(server.sockets[0].getsockname()[1])
        await world.start()
        url = f"ws://{HOST}/"
        async with websockets.connect(url, host="127.0.0.1", port=world.port, max_size=None) as ws:
            for message in ("hello", b"x" * 1_000_000, "bye"):
                await ws.send(message)
                assert await ws.recv() == message
            assert world.leases() == 1


async def test_each_direction_of_a_switched_connection_ends_by_itself(world: World):
    await world.serve(raw)
    await world.start()
    reader, writer = await world.connect()
    writer.write(UPGRADE + b"early")
    assert (await read_head(reader)).startswith(b"HTTP/1.1 101 ")
    assert await reader.readexactly(5) == b"early"
    writer.write(b"last")
    writer.write_eof()
    assert await reader.read() == b"last"


async def test_a_switched_connection_that_is_still_keeps_no_vm_awake(world: World):
    await world.serve(raw)
    await world.start(IngressSettings(upgrade_idle_s=0.05, drain_s=0.1))
    reader, writer = await world.connect()
    writer.write(UPGRADE)
    await read_head(reader)
    for word in (b"one", b"two"):
        await world.no_lease()
        writer.write(word)
        assert await reader.readexactly(3) == word
    assert world.node.leased.total() == 3


async def test_a_switched_connection_whose_vm_began_another_life_is_cut(world: World):
    await world.serve(raw)
    await world.start(IngressSettings(upgrade_idle_s=0.05, drain_s=0.1))
    reader, writer = await world.connect()
    writer.write(UPGRADE)
    await read_head(reader)
    await world.no_lease()
    for request_id, lease in world.node.vms.items():
        world.node.vms[request_id] = replace(lease, epoch=lease.epoch + 1)
    writer.write(b"hello")
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_a_switched_connection_of_a_lost_vm_is_cut(world: World):
    await world.serve(raw)
    await world.start()
    reader, writer = await world.connect()
    writer.write(UPGRADE)
    await read_head(reader)
    world.kill_vm()
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_events_come_when_they_are_sent(world: World):
    more = asyncio.Event()

    async def handler(reader, writer):
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await more.wait()
        writer.write(b"data: 2\n\n")

    await world.serve(handler)
    await world.start()
    reader, writer = await world.connect()
    writer.write(GET)
    await reader.readuntil(b"data: 1\n\n")
    assert world.leases() == 1
    more.set()
    await reader.readuntil(b"data: 2\n\n")
    await reader.readuntil(b"0\r\n\r\n")


async def test_connections_that_never_ask_harm_nobody(world: World):
    await world.serve(answering())
    await world.start(IngressSettings(head_s=0.3, startup_s=0, drain_s=0.1))
    slow = [await world.connect() for _ in range(100)]
    for number, (_, writer) in enumerate(slow):
        writer.write(GET[: number % len(GET)])
    for _ in range(20):
        reader, writer = await world.connect()
        writer.write(GET)
        assert (await read_answer(reader))[1] == b"hello"
    for reader, _ in slow:
        assert (await reader.read())[:13] in (b"", b"HTTP/1.1 408 ")
    assert world.node.leased.total() == 20


async def test_one_connection_too_many_takes_the_place_of_one_that_waits(world: World):
    release = asyncio.Event()

    async def handler(reader, writer):
        await read_head(reader)
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    await world.serve(handler)
    await world.start(IngressSettings(connections_max=3, startup_s=0, drain_s=0.1))
    busy = [await world.connect() for _ in range(2)]
    for _, writer in busy:
        writer.write(GET)
    await until(lambda: world.leases() == 2)
    idle, _ = await world.connect()
    newest, to_newest = await world.connect()
    assert await idle.read() == b""
    to_newest.write(GET)
    await until(lambda: world.leases() == 3)
    refused, _ = await world.connect()
    with pytest.raises(ConnectionResetError):
        await refused.read()
    release.set()
    for reader in (newest, *(reader for reader, _ in busy)):
        assert (await read_answer(reader))[1] == b"hi"


async def test_what_is_under_way_when_the_gateway_ends(world: World):
    release = asyncio.Event()

    async def handler(reader, writer):
        await read_head(reader)
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    await world.serve(handler)
    await world.start(IngressSettings(startup_s=0, drain_s=60))
    idle, _ = await world.connect()
    reader, writer = await world.connect()
    writer.write(GET)
    await until(lambda: world.leases() == 1)
    stopping = asyncio.create_task(world.stop())
    assert await idle.read() == b""
    release.set()
    head, body = await read_answer(reader)
    assert b"Connection: close" in head
    assert body == b"hi"
    writer.close()
    await stopping


async def test_https_with_a_given_certificate(world: World, certificate):
    await world.serve(echo)
    await world.start(encrypted(certificate))
    tls = ssl.create_default_context(cafile=certificate / "certificate")
    tls.set_alpn_protocols(["h2", "http/1.1"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.port, ssl=tls, server_hostname=HOST
    )
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    body = b"x" * 1_000_000
    writer.write(b"POST / HTTP/1.1\r\nHost: %b\r\n" % HOST.encode())
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert (await read_answer(reader))[1] == body
    writer.close()


async def test_what_a_server_ends_after_an_upgrade_ends_in_https_too(world: World, certificate):
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(SWITCHED + b"bye")

    await world.serve(handler)
    await world.start(encrypted(certificate, upgrade_idle_s=600))
    tls = ssl.create_default_context(cafile=certificate / "certificate")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.port, ssl=tls, server_hostname=HOST
    )
    writer.write(UPGRADE)
    assert (await reader.read()).endswith(b"bye")
    await world.no_lease()
    writer.close()


async def test_a_break_is_seen_in_https_too(world: World, certificate):
    async def handler(reader, writer):
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")

    await world.serve(handler)
    await world.start(encrypted(certificate))
    tls = ssl.create_default_context(cafile=certificate / "certificate")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.port, ssl=tls, server_hostname=HOST
    )
    writer.write(GET)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError, ssl.SSLError)):
        await read_answer(reader)
    writer.close()


def test_a_certificate_that_is_none(certificate):
    other = IngressSettings(certificate=b"x", key=(certificate / "key").read_bytes())
    with pytest.raises(InvalidError, match="certificate"):
        Ingress(StandInNode(), other)


def test_a_certificate_is_taken_by_a_process_that_gave_up_its_rights(certificate):
    """Such a process cannot open what belongs to it by every way."""
    code = (
        "import os, sys; from pathlib import Path;"
        "from magsd.gateway.ingress import Ingress;"
        "from magsd.gateway.ingress_settings import IngressSettings;"
        "cert, key = (Path(sys.argv[1], n).read_bytes() for n in ('certificate', 'key'));"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "Ingress(None, IngressSettings(certificate=cert, key=key))"
    )
    subprocess.run([sys.executable, "-c", code, certificate], check=True)


async def test_a_gigabyte_each_way_in_flat_memory(world: World, tmp_path):
    """By curl; the gateway and both servers are in this process."""
    await world.serve(echo)
    await world.start()
    size = 1 << 30
    source = tmp_path / "zeros"
    with source.open("wb") as file:
        file.truncate(size)
    url = f"http://{HOST}:{world.port}/"
    command = ["curl", "-sS", "--resolve", f"{HOST}:{world.port}:127.0.0.1", "-T", source, url]
    command += ["-X", "POST", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"]
    own = os.getpid()
    before = resident_bytes(own)
    curl = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    most = before
    waiting = asyncio.ensure_future(curl.communicate())
    while not waiting.done():
        most = max(most, resident_bytes(own))
        await asyncio.wait([waiting], timeout=0.05)
    assert (await waiting)[0] == b"200 %d" % size
    assert most - before < 64 << 20
