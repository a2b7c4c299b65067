"""Node and edge over a real socket, around a real application whose engine runs nothing."""

import asyncio
import os
import random
import socket
from contextlib import asynccontextmanager

import pytest

from magsd.aio import SystemClock
from magsd.gateway import messages
from magsd.gateway.messages import VERSION, Connect, FindUrl, Hello, Hold
from magsd.gateway.node_client import NodeClient
from magsd.gateway.node_server import LEASES_MAX, NodeServer
from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.wire import pack_fields
from magsd.model.errors import CapacityError, ConflictError, NotFoundError
from magsd.model.names import RequestId, new_request_id
from magsd.model.records import JobSpec
from tests.api_service import ADMIN, DEADLINE_S, opened

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


class Service:
    """An application, and what a test does with it."""

    def __init__(self, application, principal):
        self.application = application
        self.principal = principal
        self.doors = application.doors

    async def running(self, **fields):
        """Return a persistent job that runs."""
        job = await self.application.submit(
            self.principal, JobSpec("sleep 3000", persistent=True, **fields)
        )
        return await self.until(job.request_id, lambda status: status.vm_id)

    async def published(self, port=80, **fields):
        job = await self.running(**fields)
        await self.doors.grants.open_url(self.principal, job.request_id, port)
        return job

    async def stopped(self, job):
        await self.application.stop(self.principal, job.request_id)
        await self.until(job.request_id, lambda status: status.is_final)

    async def until(self, request_id, is_reached):
        async with asyncio.timeout(DEADLINE_S):
            status = await self.application.status(self.principal, request_id)
            while not is_reached(status):
                status = await self.application.status(
                    self.principal, request_id, wait_s=5, after_generation=status.generation
                )
        return status


@pytest.fixture
async def service(tmp_path):
    async with opened(tmp_path / "data", SystemClock(), stop_wait_s=DEADLINE_S) as application:
        await application.access.first_token(ADMIN)
        yield Service(application, await application.access.authenticate(ADMIN))


@asynccontextmanager
async def edge(service):
    """An edge, and the node's side of it, inside the block."""
    ours, theirs = socket.socketpair()
    server, node = NodeServer(ours, service.doors), NodeClient(theirs)
    server.start()
    node.start()
    try:
        yield node, server
    finally:
        await node.aclose()
        await server.aclose()


@pytest.fixture
async def pair(service):
    async with edge(service) as pair:
        yield pair


@pytest.fixture
def node(pair):
    return pair[0]


@pytest.fixture
def server(pair):
    return pair[1]


@pytest.fixture
async def bare(service):
    """The node's side, and a bare socket to it."""
    ours, theirs = socket.socketpair()
    server = NodeServer(ours, service.doors)
    server.start()
    yield server, theirs
    theirs.close()
    await server.aclose()


async def eventually(check):
    async with asyncio.timeout(DEADLINE_S):
        while not check():
            await asyncio.sleep(0.001)


def send(sock, *calls):
    for call in calls:
        data = messages.encode_call(call)
        sock.sendall(len(data).to_bytes(4, "big") + data)


def held(service, job):
    return service.application._node.uses.count(job.request_id)


# --- what a gateway does -----------------------------------------------------------


async def test_a_name_leads_into_a_vm(service, node):
    job = await service.published(3000, environment={"A": "b"})
    target = await node.find_url(f"{job.subdomain}.apps.localhost")
    assert (target.request_id, target.port) == (job.request_id, 3000)
    async with node.lease(target.request_id) as lease:
        assert (lease.vm, lease.epoch) == (job.vm_id, 1)
        assert held(service, job) == 1
        connection = await lease.connection()
        done = await streams.run(
            connection, ["/bin/sh", "-c", "echo hello"], environment=ENVIRONMENT
        )
        assert done.stdout == b"hello\n"
    await eventually(lambda: held(service, job) == 0)


async def test_a_key_does_too(service, node):
    job = await service.running(environment={"A": "é\n" * 5000})
    opened = await service.doors.grants.open_ssh(service.principal, job.request_id)
    assert opened.private_key
    (fingerprint,) = service.doors._entries._keys
    target = await node.find_key(fingerprint)
    assert target.request_id == job.request_id
    assert target.environment["A"] == "é\n" * 5000
    assert target.environment["HOME"] == "/root"
    assert await node.find_key("SHA256:none") is None
    assert await node.find_key("x" * 1000) is None


async def test_names_that_nobody_has_are_none(node):
    for host in ("", "x", "0123456789ab.apps.localhost", "x" * 5000, "\0", "ä.apps.localhost"):
        assert await node.find_url(host) is None


async def test_the_connection_opens_streams_and_nothing_else(service, node):
    job = await service.published()
    async with node.lease(job.request_id) as lease:
        connection = await lease.connection()
        for verb in ("kill", "freeze", "hold", "note", "hello", "fence"):
            with pytest.raises(ShimError, match="streams only"):
                await connection.request(verb)
        with pytest.raises(ShimError):
            await connection.open_durable(5, pack_fields("exec", [("arg", "/bin/true")]))
        # That was an offence: the next one is another connection.
        again = await lease.connection()
        assert again is not connection
        await streams.run(again, ["/bin/true"], environment=ENVIRONMENT)
    status = await service.application.status(service.principal, job.request_id)
    assert status.status == "running"


async def test_all_leases_of_a_vm_share_a_connection(service, node):
    job = await service.published()

    async def use():
        async with node.lease(job.request_id) as lease:
            return await lease.connection()

    connections = await asyncio.gather(*(use() for _ in range(50)))
    assert len(set(map(id, connections))) == 1


async def test_without_a_grant_nothing_can_be_leased(service, node):
    job = await service.running(workspace_id="box")
    for request_id in (job.request_id, new_request_id(), RequestId("nonsense")):
        with pytest.raises(NotFoundError):
            async with node.lease(request_id):
                pass
    await service.doors.aliases.create(service.principal, "name", "box", None)
    async with node.lease(job.request_id):
        pass


async def test_a_job_without_a_vm_cannot_be_used(service, node, monkeypatch):
    job = await service.published()
    monkeypatch.setattr(service.application._supervisor, "run_of", lambda _: None)
    with pytest.raises(ConflictError):
        async with node.lease(job.request_id):
            pass


async def test_a_stop_ends_what_is_under_way(service, node):
    job = await service.published()
    async with node.lease(job.request_id) as lease:
        connection = await lease.connection()
        await service.stopped(job)
        async with asyncio.timeout(DEADLINE_S):
            await connection.closed()
        with pytest.raises(ShimError):
            await lease.connection()
    assert await node.find_url(f"{job.subdomain}.apps.localhost") is None
    with pytest.raises(NotFoundError):
        async with node.lease(job.request_id):
            pass


async def test_a_thousand_leases(service, node, server):
    job = await service.published()
    release, count = asyncio.Event(), 0

    async def hold():
        nonlocal count
        async with node.lease(job.request_id) as lease:
            assert lease.vm == job.vm_id
            count += 1
            await release.wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        for _ in range(1000):
            group.create_task(hold())
        await eventually(lambda: count == 1000)
        assert held(service, job) == server.leases == 1000
        release.set()
    await eventually(lambda: server.leases == held(service, job) == 0)


async def test_who_gives_up_waiting_leaves_no_lease(service, node, server, monkeypatch):
    job = await service.published()
    leases = service.application.leases
    asked = asyncio.Event()

    async def never(_status):
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(leases, "_awake", never)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), node.lease(job.request_id):
            pass
    assert asked.is_set()
    await eventually(lambda: server.leases == held(service, job) == 0)
    assert not node._waiting


# --- ends ------------------------------------------------------------------------


async def test_the_leases_of_an_edge_end_with_it(service):
    job = await service.published()
    async with edge(service) as (node, server):
        leases = [node.lease(job.request_id) for _ in range(5)]
        for lease in leases:
            await lease.__aenter__()
        assert held(service, job) == 5
        node._pipe.end("killed")
        assert await server.ended() == "the other side closed it"
        await eventually(lambda: held(service, job) == 0)
        for lease in leases:
            await lease.__aexit__(None, None, None)


async def test_without_a_node_everything_is_a_matter_of_time(service):
    job = await service.published()
    async with edge(service) as (node, server):
        async with node.lease(job.request_id) as lease:
            await server.aclose()
            await node.ended()
            with pytest.raises(ShimError):
                await lease.connection()
        for ask in (node.find_url("x"), node.find_key("x")):
            with pytest.raises(CapacityError):
                await ask
        with pytest.raises(CapacityError):
            async with node.lease(job.request_id):
                pass


# --- an edge that is not ours any more -----------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"\0\0\0\1{",
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0",
        b"\0\0\4\1" + b"x" * 2000,
    ],
)
async def test_garbage_ends_it(service, bare, said):
    server, sock = bare
    sock.sendall(said)
    assert "broken" in await server.ended()
    assert sock.recv(1) == b""


async def test_so_does_random_garbage_behind_a_greeting(service, bare):
    server, sock = bare
    send(sock, Hello(version=VERSION))
    dice = random.Random(1)
    sock.settimeout(DEADLINE_S)

    def flood():
        try:
            for _ in range(1000):
                sock.sendall(dice.randbytes(10_000))
        except OSError:
            pass

    await asyncio.to_thread(flood)
    assert "broken" in await server.ended()


@pytest.mark.parametrize(
    "calls",
    [
        [FindUrl(id=1, host="x")],
        [Hello(version=VERSION + 1)],
        [Hello(version=VERSION), Hello(version=VERSION)],
        [Hello(version=VERSION), Connect(id=1, lease=7)],
        [
            Hello(version=VERSION),
            Hold(id=1, request_id="x" * 36),
            Hold(id=1, request_id="y" * 36),
        ],
    ],
)
async def test_what_is_out_of_order_ends_it(bare, calls):
    server, sock = bare
    send(sock, *calls)
    assert "broken" in await server.ended()


async def test_leases_have_a_limit(service, bare):
    server, sock = bare
    job = await service.published()
    send(sock, Hello(version=VERSION))
    sock.setblocking(False)
    answers = asyncio.create_task(drained(sock))
    loop = asyncio.get_running_loop()
    for number in range(1, LEASES_MAX + 11):
        data = messages.encode_call(Hold(id=number, request_id=job.request_id))
        await loop.sock_sendall(sock, len(data).to_bytes(4, "big") + data)
    await eventually(lambda: server.leases == LEASES_MAX)
    sock.shutdown(socket.SHUT_WR)
    await server.ended()
    await eventually(lambda: server.leases == held(service, job) == 0)
    assert b"too many requests" in await answers


async def drained(sock):
    """Return the last of what comes."""
    loop, last = asyncio.get_running_loop(), b""
    while data := await loop.sock_recv(sock, 1 << 16):
        last = (last + data)[-100_000:]
    return last


async def test_who_asks_without_reading_is_given_up(service, bare):
    server, sock = bare
    send(sock, Hello(version=VERSION))
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    data = messages.encode_call(FindUrl(id=1, host="x.apps.localhost"))
    message = (len(data).to_bytes(4, "big") + data) * 1000

    async def flood():
        while True:
            await loop.sock_sendall(sock, message)

    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        await asyncio.wait_for(flood(), DEADLINE_S)
    assert await server.ended() == "the other side does not read"


async def test_descriptors_that_an_edge_sends_go_nowhere(service, bare):
    server, sock = bare
    send(sock, Hello(version=VERSION))
    await server.is_greeted.wait()
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    data = messages.encode_call(FindUrl(id=1, host="x"))
    for _ in range(50):
        socket.send_fds(sock, [len(data).to_bytes(4, "big") + data], [write] * 20)
        await asyncio.sleep(0)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_recv(sock, 100)
    assert len(os.listdir("/proc/self/fd")) <= before
    for descriptor in (read, write):
        os.close(descriptor)
