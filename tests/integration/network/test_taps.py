"""What a hostile kernel behind a tap achieves with frames of its own making."""

import asyncio
import os
import socket
import struct

import dns.message
import pytest

from magsd.engine.network.layout import GATEWAY_MAC
from magsd.model.errors import LaunchError
from tests.integration.network.wire import (
    ARP,
    GATEWAY,
    GUEST,
    IPV4,
    IPV6,
    Wire,
    arp_reply,
    arp_request,
    both_kinds,
    ethernet,
    is_ipv4,
    kind_of,
    mac,
    ping,
    tagged,
    tcp_syn,
    udp,
)
from tests.integration.network.world import (
    HOST,
    NEIGHBOUR,
    PORT,
    PRIVATE,
    WEB,
    Echo,
    addresses,
    change,
    datagram_socket,
    fetch,
    inside,
)

_RST = 0x04


@pytest.fixture
def acquire_tap(closing):
    async def acquire(network):
        slot = await network.acquire(tap=True)
        closing.callback(slot.close)
        return slot

    return acquire


@pytest.fixture
async def guest(start, acquire_tap):
    """A slot and its wire, the gateway's ARP request answered as a guest would."""
    network = await start()
    slot = await acquire_tap(network)
    wire = Wire(slot.tap_fd)
    wire.send(arp_request(GATEWAY))
    assert await wire.receive(lambda frame: kind_of(frame) == ARP) is not None
    return network, slot, wire


def interfaces_of(namespace):
    with inside(namespace):
        return {name for _, name in socket.if_nameindex()}


def neighbours(namespace):
    found = set()

    def look(router):
        entries = router.get_neighbours(family=socket.AF_INET)
        found.update(entry.get("NDA_DST") for entry in entries)

    change(look, namespace)
    return found


async def arrived(receiver):
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(receiver, 100)


async def test_the_gateway_has_a_fixed_address_and_answers_for_itself(guest):
    _, slot, wire = guest
    assert interfaces_of(slot.guest_fd) == {"lo"}
    assert interfaces_of(slot.hold_fds[0]) == {"lo", "gw0", "up0"}
    wire.send(arp_request(GATEWAY))
    reply = await wire.receive(lambda frame: kind_of(frame) == ARP)
    assert reply[6:12] == reply[22:28] == mac(GATEWAY_MAC)
    assert reply[28:32] == socket.inet_aton(GATEWAY)


async def test_frames_by_hand_reach_dns_and_the_internet(world, guest, resolver):
    network, _, wire = guest
    query = dns.message.make_query("public.example.", "A")
    wire.send(udp(network.dns_address, query.to_wire()))
    answer = await wire.receive(
        lambda frame: is_ipv4(frame, socket.IPPROTO_UDP, network.dns_address)
    )
    assert addresses(dns.message.from_wire(answer[42:])) == [WEB]
    wire.send(ping(WEB))
    assert await wire.receive(lambda frame: is_ipv4(frame, socket.IPPROTO_ICMP, WEB))


async def test_a_connection_to_the_host_is_reset_and_never_made(world, guest, closing):
    network, _, wire = guest
    service = await Echo.open(world.host)
    closing.push_async_callback(service.aclose)
    for address in (HOST, "198.19.240.5", network.dns_address, GATEWAY, NEIGHBOUR, *PRIVATE):
        wire.send(tcp_syn(address, PORT))
        answer = await wire.receive(lambda frame: kind_of(frame) == IPV4)
        assert is_ipv4(answer, socket.IPPROTO_TCP, address)
        assert answer[47] & _RST


async def test_the_host_answers_no_ping_nor_datagram(world, guest):
    network, _, wire = guest
    with datagram_socket(world.host, HOST) as service:
        wire.send(udp(HOST, b"hello", ports=(4000, service.getsockname()[1])))
        for address in (HOST, "198.19.240.5", network.dns_address, GATEWAY, *PRIVATE):
            wire.send(ping(address))
        assert await wire.receive(lambda frame: kind_of(frame) == IPV4, timeout_s=0.5) is None
        with pytest.raises(BlockingIOError):
            service.recv(100)


async def test_only_honest_untagged_ipv4_is_forwarded(world, guest):
    _, _, wire = guest
    with datagram_socket(world.internet, WEB) as receiver:
        ports = (4000, receiver.getsockname()[1])
        for sender in ("10.0.2.99", GATEWAY, "198.19.240.6", HOST, "8.8.8.8", "127.0.0.1"):
            wire.send(udp(WEB, b"forged", sender=sender, ports=ports))
        # A priority tag alone (VLAN 0) is no VLAN: the source is looked at behind it.
        wire.send(tagged(0, udp(WEB, b"forged", sender="8.8.8.8", ports=ports)))
        for vlan in (1, 5, 4095):
            wire.send(tagged(vlan, udp(WEB, b"tagged", ports=ports)))
            wire.send(tagged(vlan, tagged(vlan, udp(WEB, b"tagged", ports=ports))))
        wire.send(_ipv6_datagram())
        wire.send(udp(WEB, b"honest", ports=ports))
        assert await arrived(receiver) == b"honest"


async def test_frames_that_are_none_are_survived(world, guest):
    _, _, wire = guest
    honest = udp(WEB, b"honest", ports=(4000, 53))
    for frame in (
        *(honest[:length] for length in range(14, len(honest))),
        ethernet(IPV4, b"\xff" * 60),
        ethernet(IPV4, b"\x4f" + bytes(19)),
        ethernet(ARP, b"\xff" * 28),
        ethernet(ARP, b""),
        ethernet(0x88CC, os.urandom(1500)),
        ethernet(0x0004, os.urandom(100)),
        os.urandom(9000),
    ):
        wire.send(frame)
    with datagram_socket(world.internet, WEB) as receiver:
        wire.send(udp(WEB, b"honest", ports=(4000, receiver.getsockname()[1])))
        assert await arrived(receiver) == b"honest"


async def test_forged_arp_harms_nobody_else(world, start, acquire_tap):
    network = await start()
    one, other = await acquire_tap(network), await acquire_tap(network)
    liar, honest = Wire(one.tap_fd), Wire(other.tap_fd)
    honest.send(arp_request(GATEWAY))
    assert await honest.receive(lambda frame: kind_of(frame) == ARP)
    for sender in (GATEWAY, GUEST, HOST, NEIGHBOUR, "198.19.240.5"):
        liar.send(arp_reply(GATEWAY, sender=sender))
        liar.send(arp_reply(sender, sender=sender, source="52:54:00:00:00:03"))
    with datagram_socket(world.internet, WEB) as receiver:
        honest.send(udp(WEB, b"honest", ports=(4000, receiver.getsockname()[1])))
        assert await arrived(receiver) == b"honest"
        liar.send(udp(WEB, b"liar", ports=(4000, receiver.getsockname()[1])))
        assert await arrived(receiver) == b"liar"
    assert list(honest.drain()) == []


@both_kinds
async def test_a_guest_has_one_place_in_the_hosts_table_of_neighbours(start, take, internet):
    """The table is one for all namespaces: whoever fills it cuts off the host and all guests."""
    slot = await take(await start())
    with inside(slot.guest_fd):
        forger = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with forger:
        forger.bind(("eth0", 0))
        for number in range(3, 40):
            forger.send(arp_request(GATEWAY, sender=f"10.0.2.{number}"))
    assert await fetch(slot.guest_fd, WEB) == HOST
    on_link = {address for address in neighbours(slot.hold_fds[0]) if address.startswith("10.0.2.")}
    assert on_link == {GUEST}


async def test_a_guest_sees_no_frames_but_its_own(world, start, acquire_tap):
    network = await start()
    one, other = await acquire_tap(network), await acquire_tap(network)
    busy, idle = Wire(one.tap_fd), Wire(other.tap_fd)
    busy.send(arp_request(GATEWAY))
    busy.send(ping(WEB))
    assert await busy.receive(lambda frame: is_ipv4(frame, socket.IPPROTO_ICMP, WEB))
    with datagram_socket(world.host) as host:
        router = f"198.19.240.{other.index * 4 + 2}"
        host.sendto(b"hello", (router, 4000))
    busy.send(ping(WEB))
    assert await busy.receive(lambda frame: is_ipv4(frame, socket.IPPROTO_ICMP, WEB))
    assert list(idle.drain()) == []


async def test_a_guest_that_reads_nothing_holds_a_thousand_frames_at_most(world, guest):
    """What the host keeps for a guest has an end."""
    _, _, wire = guest
    with datagram_socket(world.internet, WEB) as server:
        wire.send(udp(WEB, b"hello", ports=(4000, server.getsockname()[1])))
        async with asyncio.timeout(5):
            _, guest_address = await asyncio.get_running_loop().sock_recvfrom(server, 100)
        for _ in range(3000):
            server.sendto(bytes(1000), guest_address)
    frames = [frame for frame in wire.drain() if is_ipv4(frame, socket.IPPROTO_UDP, WEB)]
    assert 0 < len(frames) <= 2100  # the tap's ring, and the queue before it


async def test_no_tap_is_said_with_the_next_step(world, start, acquire_tap, monkeypatch, tmp_path):
    monkeypatch.setattr("magsd.engine.network.tap._DEVICE", tmp_path / "tun")
    network = await start()
    before = world.interfaces()
    with pytest.raises(LaunchError, match="modprobe tun"):
        await acquire_tap(network)
    assert world.interfaces() == before


def _ipv6_datagram():
    ends = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(
        socket.AF_INET6, "2001:db8::1"
    )
    header = struct.pack("!IHBB", 6 << 28, 8, socket.IPPROTO_UDP, 64)
    return ethernet(IPV6, header + ends + struct.pack("!HHHH", 4000, 53, 8, 0))
