"""DNS as guests see it, and the life of its process."""

import asyncio
import contextlib
import os
import shutil
import socket
from pathlib import Path

import dns.flags
import dns.rcode
import pytest

from magsd.engine.process import read_start_time
from magsd.model.errors import LaunchError
from tests.integration.network.wire import both_kinds
from tests.integration.network.world import (
    NEIGHBOUR,
    WEB,
    addresses,
    ask,
    datagram_socket,
    eventually,
    inside,
)


@both_kinds
async def test_dns_answers_public_names_by_udp_and_tcp(start, take, resolver):
    network = await start()
    slot = await take(network)
    for by_tcp in (False, True):
        answer = await ask(slot.guest_fd, network.dns_address, "public.example.", by_tcp=by_tcp)
        assert addresses(answer) == [WEB]


async def test_dns_does_not_tell_of_internal_names(start, take, resolver):
    network = await start()
    slot = await take(network)
    for name in ("internal.example.", "host.example."):
        answer = await ask(slot.guest_fd, network.dns_address, name)
        assert answer.rcode() == dns.rcode.REFUSED
        assert addresses(answer) == []
    mixed = await ask(slot.guest_fd, network.dns_address, "mixed.example.")
    assert addresses(mixed) == [WEB]
    asked = len(resolver.asked)
    reverse = await ask(slot.guest_fd, network.dns_address, "3.2.1.10.in-addr.arpa.", "PTR")
    assert reverse.rcode() == dns.rcode.NXDOMAIN
    assert len(resolver.asked) == asked


async def test_dns_tells_of_what_the_operator_opened(start, take, resolver):
    network = await start(egress_allow=("10.1.2.3",))
    slot = await take(network)
    answer = await ask(slot.guest_fd, network.dns_address, "internal.example.")
    assert addresses(answer) == ["10.1.2.3"]


async def test_dns_sends_large_answers_by_tcp(start, take, resolver):
    network = await start()
    slot = await take(network)
    short = await ask(slot.guest_fd, network.dns_address, "large.example.", "TXT")
    assert short.flags & dns.flags.TC
    full = await ask(slot.guest_fd, network.dns_address, "large.example.", "TXT", by_tcp=True)
    assert len(full.answer[0]) == 20


async def test_dns_says_so_when_no_resolver_answers(start, take, directory):
    (directory / "resolv.conf").write_text(f"nameserver {NEIGHBOUR}\n")
    network = await start()
    slot = await take(network)
    answer = await ask(slot.guest_fd, network.dns_address, "public.example.")
    assert answer.rcode() == dns.rcode.SERVFAIL


async def test_one_guest_has_so_many_dns_connections(start, take, resolver, closing):
    network = await start()
    one, other = await take(network), await take(network)
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(17):
        with inside(one.guest_fd):
            clients.append(closing.enter_context(socket.socket()))
        clients[-1].setblocking(False)
        await loop.sock_connect(clients[-1], (network.dns_address, 53))
    async with asyncio.timeout(5):
        assert await loop.sock_recv(clients[-1], 1) == b""
    answer = await ask(other.guest_fd, network.dns_address, "public.example.", by_tcp=True)
    assert addresses(answer) == [WEB]


async def test_dns_survives_what_is_no_query(start, take, resolver):
    network = await start()
    slot = await take(network)
    with datagram_socket(slot.guest_fd) as sender:
        for nonsense in (b"", b"\0", b"\xff" * 12, os.urandom(600), b"\0" * 4000):
            sender.sendto(nonsense, (network.dns_address, 53))
    answer = await ask(slot.guest_fd, network.dns_address, "public.example.")
    assert addresses(answer) == [WEB]


async def test_dns_follows_the_hosts_resolvers(start, take, resolver, directory):
    (directory / "resolv.conf").write_text("nameserver 203.0.113.250\n")
    network = await start()
    slot = await take(network)
    (directory / "resolv.conf").write_text(f"nameserver {WEB}\n")
    answer = await ask(slot.guest_fd, network.dns_address, "public.example.")
    assert addresses(answer) == [WEB]


async def test_the_forwarder_has_no_rights(start, directory):
    network = await start()
    pid = network.dns_pid
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert "0" not in status["Uid"].split()
    assert status["Groups"].strip() == ""
    assert status["CapEff"] == status["CapPrm"] == "0" * 16
    assert status["NoNewPrivs"] == "1"
    assert os.getsid(pid) == pid


async def test_a_forwarder_of_another_version_is_replaced(start, take, resolver, directory):
    first = await start()
    pid = first.dns_pid
    await first.aclose(remove=False)
    elsewhere = directory / "resolv-2.conf"
    shutil.copy(directory / "resolv.conf", elsewhere)
    second = await start(resolv_conf=elsewhere)
    assert second.dns_pid != pid
    assert read_start_time(pid) is None
    slot = await take(second)
    answer = await ask(slot.guest_fd, second.dns_address, "public.example.")
    assert addresses(answer) == [WEB]


async def test_a_forwarder_that_ends_is_started_again(start, take, resolver):
    network = await start()
    slot = await take(network)
    pid = network.dns_pid
    os.kill(pid, 9)
    await eventually(lambda: network.dns_pid not in {None, pid})

    async def answers():
        try:
            answer = await ask(slot.guest_fd, network.dns_address, "public.example.")
        except ConnectionRefusedError:
            return False
        return addresses(answer) == [WEB]

    await eventually(answers)


async def test_a_taken_port_is_said(start, closing):
    network = await start()
    os.kill(network.dns_pid, 9)
    await network.aclose(remove=False)
    blocker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closing.callback(blocker.close)
    await eventually(lambda: _binds(blocker, network.dns_address))
    with pytest.raises(LaunchError, match=r"port 53 of 198.19.240.1 is taken"):
        await start()


def _binds(blocker, address):
    with contextlib.suppress(OSError):
        blocker.bind((address, 53))
        return True
    return False
