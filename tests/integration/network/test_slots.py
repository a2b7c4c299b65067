"""What a guest reaches, and the life of a slot."""

import asyncio
import os
import socket
import subprocess

import pytest

from magsd.model.errors import LaunchError
from tests.integration.network.wire import both_kinds
from tests.integration.network.world import (
    HOST,
    NEIGHBOUR,
    PORT,
    PRIVATE,
    WEB,
    Echo,
    add_address,
    change,
    datagram_socket,
    eventually,
    fetch,
)


@both_kinds
async def test_a_guest_reaches_the_internet_with_the_hosts_address(start, take, internet):
    slot = await take(await start())
    assert await fetch(slot.guest_fd, WEB) == HOST


@both_kinds
@pytest.mark.parametrize("address", [*PRIVATE, NEIGHBOUR])
async def test_a_guest_does_not_reach_private_networks_or_the_hosts_own(
    world, start, take, internet, address
):
    slot = await take(await start())
    assert await fetch(world.host, address) in {HOST}
    assert await fetch(slot.guest_fd, address) == "ConnectionRefusedError"


@both_kinds
async def test_a_guest_does_not_reach_the_host(world, start, take, closing):
    network = await start()
    slot = await take(network)
    service = await Echo.open(world.host)
    closing.push_async_callback(service.aclose)
    host_end = "198.19.240.5"
    for address in (HOST, host_end, network.dns_address, "127.0.0.1", "10.0.2.2"):
        if address != "10.0.2.2":
            assert "Error" not in await fetch(world.host, address)
        assert await fetch(slot.guest_fd, address) == "ConnectionRefusedError"


@both_kinds
async def test_guests_do_not_reach_each_other_nor_the_host_them(world, start, take, closing):
    network = await start()
    one, other = await take(network), await take(network)
    service = await Echo.open(other.guest_fd)
    closing.push_async_callback(service.aclose)
    assert await fetch(other.guest_fd, "10.0.2.15") == "10.0.2.15"
    router = f"198.19.240.{other.index * 4 + 2}"
    assert await fetch(one.guest_fd, router) == "ConnectionRefusedError"
    assert await fetch(world.host, router, timeout_s=1) == "TimeoutError"


@both_kinds
async def test_a_guest_can_send_from_its_own_address_only(world, start, take):
    slot = await take(await start())
    add_address("10.0.2.99", 24, "eth0", slot.guest_fd)
    with (
        datagram_socket(world.internet, WEB) as receiver,
        datagram_socket(slot.guest_fd, "10.0.2.99") as forger,
        datagram_socket(slot.guest_fd, "10.0.2.15") as honest,
    ):
        forger.sendto(b"forged", receiver.getsockname())
        honest.sendto(b"honest", receiver.getsockname())
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().sock_recv(receiver, 100) == b"honest"


@both_kinds
async def test_a_guest_has_so_many_connections_and_no_more(world, start, take):
    network = await start()
    one, other = await take(network), await take(network)
    loop = asyncio.get_running_loop()
    with datagram_socket(world.internet, WEB) as receiver:
        target = receiver.getsockname()
        for number in range(2048):
            _send(one, b"%d" % number, target, 20000 + number)
            async with asyncio.timeout(5):
                assert await loop.sock_recv(receiver, 100) == b"%d" % number
        _send(one, b"too many", target, 19999)
        _send(other, b"another guest", target)
        async with asyncio.timeout(5):
            assert await loop.sock_recv(receiver, 100) == b"another guest"


def _send(slot, data, target, port=0):
    with datagram_socket(slot.guest_fd, "10.0.2.15", port) as sender:
        sender.sendto(data, target)


@both_kinds
async def test_a_guest_has_no_ipv6(start, take):
    slot = await take(await start())
    assert await fetch(slot.guest_fd, "2001:db8::1", family=socket.AF_INET6) == "OSError"


@both_kinds
async def test_the_operator_opens_a_network_or_one_port_of_it(world, start, take, internet):
    slot = await take(await start(egress_allow=("10.1.2.3", f"172.20.0.9:{PORT}", "192.168.7.7:1")))
    assert await fetch(slot.guest_fd, "10.1.2.3") == HOST
    assert await fetch(slot.guest_fd, "172.20.0.9") == HOST
    assert await fetch(slot.guest_fd, "192.168.7.7") == "ConnectionRefusedError"


@both_kinds
async def test_a_network_that_the_host_joins_later_is_denied_too(world, start, take, internet):
    slot = await take(await start())
    assert await fetch(slot.guest_fd, WEB) == HOST
    change(lambda host: host.route("add", dst=f"{WEB}/32", gateway=NEIGHBOUR))
    add_address("203.0.113.100", 25)

    async def is_refused():
        return await fetch(slot.guest_fd, WEB) == "ConnectionRefusedError"

    await eventually(is_refused)


@pytest.mark.parametrize("tap", [False, True])
async def test_a_slot_vanishes_with_its_last_descriptor(world, start, tap):
    network = await start()
    slot = await network.acquire(tap=tap)
    name = f"mags7e57-{slot.index}"
    held = os.dup(slot.guest_fd)
    slot.close()
    await eventually(lambda: name not in world.interfaces())
    os.close(held)
    await network.release(slot.index)
    again = await network.acquire()
    assert again.index == slot.index
    again.close()


@pytest.mark.parametrize("tap", [False, True])
async def test_a_slot_goes_on_with_the_vms_process_and_ends_when_it_is_killed(world, start, tap):
    network = await start()
    slot = await network.acquire(tap=tap)
    name = f"mags7e57-{slot.index}"
    # What keeps the slot: the shim's descriptors, or that of the tap alone.
    kept = (slot.tap_fd,) if tap else slot.hold_fds
    with subprocess.Popen(["sleep", "60"], pass_fds=kept) as process:
        try:
            slot.close()
            # The kernel removes by and by: once a later one has gone, this would have too.
            later = await network.acquire(tap=tap)
            later.close()
            await eventually(lambda: f"mags7e57-{later.index}" not in world.interfaces())
            assert name in world.interfaces()
            assert await network.leftovers() == []
        finally:
            process.kill()
    await eventually(lambda: name not in world.interfaces())


@both_kinds
async def test_release_cuts_off_what_a_vm_left_behind(world, start, take, internet):
    network = await start()
    slot = await take(network)
    await network.release(slot.index)
    assert f"mags7e57-{slot.index}" not in world.interfaces()
    assert await fetch(slot.guest_fd, WEB) in {"OSError", "TimeoutError"}


async def test_spare_slots_are_there_before_they_are_asked_for(world, start, take):
    network = await start(spare=2)
    await eventually(lambda: {"mags7e57-1", "mags7e57-2"} <= world.interfaces())
    assert (await take(network)).index == 1
    await eventually(lambda: "mags7e57-3" in world.interfaces())


async def test_both_kinds_have_spares_with_numbers_of_their_own(world, start):
    network = await start(spare=1, spare_taps=2)
    await eventually(lambda: {f"mags7e57-{index}" for index in (1, 2, 3)} <= world.interfaces())
    slots = [await network.acquire(tap=tap) for tap in (True, False, True, False)]
    for slot in slots:
        slot.close()
    assert len({slot.index for slot in slots}) == 4
    assert [slot.tap_fd is not None for slot in slots] == [True, False, True, False]


async def test_a_number_that_is_taken_is_not_given(start):
    network = await start()
    slot = await network.acquire(taken={1, 2})
    assert slot.index == 3
    slot.close()
    network.adopt(1)
    other = await network.acquire()
    assert other.index not in {1, 3}
    other.close()


@both_kinds
async def test_a_network_that_is_full_says_so(start, take):
    network = await start(slot_net="198.19.240.0/28")
    for _ in range(3):
        await take(network)
    with pytest.raises(LaunchError, match="all 3 network slots are taken"):
        await network.acquire()
