"""A host and an internet of our own, in namespaces that only this process holds.

The test's thread stands in the *host* namespace: what it opens, starts and
changes there ends with it. The *internet* is another namespace, which every
packet of the host's goes to; it bears any address, also private ones, so that
only a rule can keep a guest from them.
"""

import asyncio
import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import dns.flags
import dns.message
import dns.rrset
from pyroute2 import IPRoute

from magsd.engine.network.namespaces import (
    current_namespace,
    enter_namespace,
    enter_new_namespace,
)

HOST = "198.51.100.2"
NEIGHBOUR = "198.51.100.1"
WEB = "203.0.113.7"
"""A host on the internet: a web server, and the host's resolver."""
PRIVATE = ("169.254.169.254", "10.1.2.3", "172.20.0.9", "192.168.7.7", "100.64.0.9")
PORT = 80


@contextlib.contextmanager
def returning():
    """Come back to this namespace. No `await` inside: the thread is everybody's."""
    before = current_namespace()
    try:
        yield
    finally:
        enter_namespace(before)
        os.close(before)


@contextlib.contextmanager
def inside(namespace):
    """Stand in another namespace, as `returning`."""
    with returning():
        enter_namespace(namespace)
        yield


class World:
    def __init__(self, stack):
        original = current_namespace()
        stack.callback(os.close, original)
        stack.callback(enter_namespace, original)
        self.internet = enter_new_namespace()
        stack.callback(os.close, self.internet)
        self.host = enter_new_namespace()
        stack.callback(os.close, self.host)
        with IPRoute() as host:
            host.link("set", index=1, state="up")
            peer = {"ifname": "eth0", "net_ns_fd": self.internet}
            host.link("add", ifname="eth0", kind="veth", peer=peer)
            (index,) = host.link_lookup(ifname="eth0")
            host.addr("add", index=index, address=HOST, prefixlen=24)
            host.link("set", index=index, state="up")
        with inside(self.internet), IPRoute() as internet:
            internet.link("set", index=1, state="up")
            (index,) = internet.link_lookup(ifname="eth0")
            internet.addr("add", index=index, address=NEIGHBOUR, prefixlen=24)
            internet.link("set", index=index, state="up")
            for address in (WEB, *PRIVATE):
                internet.addr("add", index=1, address=address, prefixlen=32)
        with IPRoute() as host:
            host.route("add", dst="0.0.0.0/0", gateway=NEIGHBOUR)

    @staticmethod
    def interfaces():
        return {name for _, name in socket.if_nameindex()}


def change(work, namespace=None):
    """Let `work` change a network by netlink, in a thread: pyroute2 needs its own loop."""

    def run():
        if namespace is not None:
            enter_namespace(namespace)
        with IPRoute() as netlink:
            work(netlink)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


def add_address(address, prefix, interface="lo", namespace=None):
    def work(netlink):
        (index,) = netlink.link_lookup(ifname=interface)
        netlink.addr("add", index=index, address=address, prefixlen=prefix)
        netlink.link("set", index=index, state="up")

    change(work, namespace)


class Echo:
    """A TCP server that tells every client its address."""

    def __init__(self):
        self._server = None

    @classmethod
    async def open(cls, namespace, address="0.0.0.0", port=PORT):
        echo = cls()
        with inside(namespace):
            listener = socket.create_server((address, port))
        echo._server = await asyncio.start_server(echo._tell, sock=listener)
        return echo

    async def _tell(self, reader, writer):
        writer.write(writer.get_extra_info("peername")[0].encode())
        writer.close()
        await writer.wait_closed()

    async def aclose(self):
        self._server.close()
        await self._server.wait_closed()


class Resolver(asyncio.DatagramProtocol):
    """The host's resolver: answers from a table, by UDP and TCP."""

    def __init__(self, records):
        self.records = records
        self.asked = []
        self._transport = None
        self._server = None

    @classmethod
    async def open(cls, namespace, records, address=WEB):
        resolver = cls(records)
        with inside(namespace):
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            datagrams.bind((address, 53))
            datagrams.setblocking(False)
            listener = socket.create_server((address, 53))
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: resolver, sock=datagrams)
        resolver._server = await asyncio.start_server(resolver._serve, sock=listener)
        return resolver

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        self._transport.sendto(self._answer(data, most=512), addr)

    async def _serve(self, reader, writer):
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = self._answer(await reader.readexactly(length), most=65535)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()
        await writer.wait_closed()

    def _answer(self, wire, most):
        query = dns.message.from_wire(wire)
        self.asked.append(query.question[0].name.to_text())
        reply = dns.message.make_response(query)
        name = query.question[0].name
        for kind, *data in self.records.get(name.to_text(), ()):
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *data))
        return reply.to_wire(max_size=most, prefer_truncation=True)

    async def aclose(self):
        self._transport.close()
        self._server.close()
        await self._server.wait_closed()


async def fetch(namespace, address, *, family=socket.AF_INET, timeout_s=5):
    """Connect from a namespace and return what the server says, or the error's name."""
    with inside(namespace):
        client = socket.socket(family, socket.SOCK_STREAM)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    with client:
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_connect(client, (address, PORT))
                said = b""
                while data := await loop.sock_recv(client, 100):
                    said += data
                return said.decode()
        except OSError as error:
            return type(error).__name__


def datagram_socket(namespace, address=None, port=0):
    with inside(namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.setblocking(False)
        if address is not None:
            sender.bind((address, port))
    return sender


async def ask(namespace, server, name, kind="A", *, by_tcp=False):
    """Ask a nameserver from a namespace, as a guest's resolver does."""
    query = dns.message.make_query(name, kind)
    kind_of_socket = socket.SOCK_STREAM if by_tcp else socket.SOCK_DGRAM
    with inside(namespace):
        client = socket.socket(socket.AF_INET, kind_of_socket)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    with client:
        async with asyncio.timeout(10):
            await loop.sock_connect(client, (server, 53))
            await loop.sock_sendall(client, query.to_wire(prepend_length=by_tcp))
            if not by_tcp:
                wire = await loop.sock_recv(client, 65535)
            else:
                wire = await _read_all(loop, client)
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    return response


async def _read_all(loop, client):
    received = b""
    while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
        data = await loop.sock_recv(client, 65535)
        assert data
        received += data
    return received[2:]


def addresses(response):
    return sorted(
        record.address
        for rrset in response.answer
        for record in rrset
        if hasattr(record, "address")
    )


async def eventually(condition, timeout_s=10):
    """Wait for a condition that no event tells of."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)
