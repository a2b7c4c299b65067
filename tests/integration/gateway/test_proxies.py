"""The gateway behind the proxies that we describe, and alone: no answer from the wrong VM."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from magsd.gateway.ingress_settings import IngressSettings
from tests.integration.gateway.servers import caddy, nginx
from tests.integration.gateway.tenants import NAMES, tenant, visit
from tests.integration.gateway.world import World, read_answer, read_head
from tests.integration.shim_process import until

BEHIND = IngressSettings(trusted_proxies=(ip_network("127.0.0.0/8"),), startup_s=0, drain_s=0.1)
TELLING = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


async def tenants(world: World, settings: IngressSettings = BEHIND) -> None:
    for name in NAMES:
        await world.serve(tenant(name), f"{name.decode()}.apps.test")
    await world.start(settings)


async def telling(reader, writer):
    """Answer with the head of the request."""
    head = await read_head(reader)
    writer.write(TELLING % (len(head), head))


@asynccontextmanager
async def asked(known):
    """Have an endpoint that says which names are ours; yield its port and what it was asked."""
    names = []

    async def handler(reader, writer):
        line = (await read_head(reader)).split(b"\r\n")[0]
        name = line.partition(b"domain=")[2].partition(b" ")[0].partition(b"&")[0].decode()
        names.append(name)
        status = b"200 OK" if name in known else b"404 Not Found"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], names


def of_caddy(folder) -> ssl.SSLContext:
    authority = folder / "caddy/pki/authorities/local/root.crt"
    return ssl.create_default_context(cafile=authority)


async def test_two_tenants_without_a_proxy(world: World):
    await tenants(world)
    await visit(world.port)


async def test_two_tenants_behind_nginx(world: World, tmp_path):
    await tenants(world)
    async with nginx(tmp_path / "nginx", world.port) as port:
        await visit(port)


async def test_two_tenants_behind_caddy(world: World, tmp_path):
    await tenants(world)
    folder = tmp_path / "caddy"
    async with (
        asked({"red.apps.test", "blue.apps.test"}) as (ask, names),
        caddy(folder, world.port, ask) as port,
    ):
        await until((folder / "caddy/pki/authorities/local/root.crt").exists)
        await visit(port, of_caddy(folder), is_one_host_each=True)
        assert set(names) == {"red.apps.test", "blue.apps.test"}


async def test_a_name_that_nothing_is_published_under_gets_no_certificate(world: World, tmp_path):
    await tenants(world)
    folder = tmp_path / "caddy"
    async with asked(set()) as (ask, names), caddy(folder, world.port, ask) as port:
        await until((folder / "caddy/pki/authorities/local/root.crt").exists)
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=of_caddy(folder), server_hostname="red.apps.test"
            )
        assert names == ["red.apps.test"]


@pytest.mark.parametrize("which", ["nginx", "caddy"])
async def test_what_a_server_is_told_behind_a_proxy(world: World, tmp_path, which):
    await world.serve(telling, "red.apps.test")
    await world.start(BEHIND)
    request = (
        b"GET / HTTP/1.1\r\nHost: red.apps.test\r\nX-Forwarded-For: 6.6.6.6\r\n"
        b"X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil.test\r\nForwarded: for=6.6.6.6\r\n\r\n"
    )
    folder = tmp_path / which
    async with asked({"red.apps.test"}) as (ask, _):
        if which == "nginx":
            async with nginx(folder, world.port) as port:
                told = await _told(port, request)
            assert b"x-forwarded-for: 6.6.6.6, 127.0.0.1, 127.0.0.1\r\n" in told
            assert b"x-forwarded-proto: http\r\n" in told
        else:
            async with caddy(folder, world.port, ask) as port:
                await until((folder / "caddy/pki/authorities/local/root.crt").exists)
                told = await _told(port, request, of_caddy(folder))
            assert b"x-forwarded-for: 127.0.0.1, 127.0.0.1\r\n" in told
            assert b"x-forwarded-proto: https\r\n" in told
    assert b"x-forwarded-host: red.apps.test\r\n" in told
    assert told.count(b"forwarded: ") == 1
    assert b"evil" not in told


async def _told(port, request, tls=None) -> bytes:
    name = "red.apps.test" if tls else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    writer.write(request)
    _, body = await read_answer(reader)
    writer.close()
    return body.lower()
