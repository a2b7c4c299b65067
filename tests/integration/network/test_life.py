"""Restart, stop, leftovers, forwarding, and what is refused at the start."""

import os

import pytest

from magsd.engine.network import nft
from magsd.engine.network.namespaces import enter_new_namespace, read_setting, write_setting
from magsd.engine.process import read_start_time
from magsd.model.errors import LaunchError
from tests.integration.network.wire import both_kinds
from tests.integration.network.world import (
    HOST,
    NEIGHBOUR,
    WEB,
    Echo,
    World,
    add_address,
    addresses,
    ask,
    change,
    eventually,
    fetch,
    returning,
)


def add_lan(closing):
    """A network behind the host, 192.168.50.0/24, with one other machine."""
    with returning():
        lan = enter_new_namespace()
    closing.callback(os.close, lan)
    peer = {"ifname": "eth0", "net_ns_fd": lan}
    change(lambda host: host.link("add", ifname="lan0", kind="veth", peer=peer))
    for interface, address, namespace in (
        ("lan0", "192.168.50.1", None),
        ("eth0", "192.168.50.2", lan),
    ):
        add_address(address, 24, interface, namespace)
    change(lambda machine: machine.route("add", dst="0.0.0.0/0", gateway="192.168.50.1"), lan)
    write_setting("ipv4/conf/lan0/forwarding", "1")
    return lan


@both_kinds
async def test_a_restart_finds_the_forwarder_and_living_slots_go_on(
    world, start, take, internet, resolver
):
    first = await start()
    slot = await take(first)
    pid = first.dns_pid
    await first.aclose(remove=False)
    assert await fetch(slot.guest_fd, WEB) == HOST
    answer = await ask(slot.guest_fd, first.dns_address, "public.example.")
    assert addresses(answer) == [WEB]

    second = await start()
    assert second.dns_pid == pid
    assert await second.leftovers() == [f"mags7e57-{slot.index}"]
    second.adopt(slot.index)
    assert await second.leftovers() == []
    assert await second.remove_leftovers() == []
    assert await fetch(slot.guest_fd, WEB) == HOST
    assert (await take(second)).index != slot.index


@both_kinds
async def test_slots_that_no_vm_has_are_removed_after_a_restart(world, start, take):
    first = await start()
    slot = await take(first)
    await first.aclose(remove=False)
    second = await start()
    assert await second.remove_leftovers() == [f"mags7e57-{slot.index}"]
    assert await second.leftovers() == []
    assert f"mags7e57-{slot.index}" not in world.interfaces()


async def test_parts_of_other_instances_are_leftovers_when_their_last_is_gone(start):
    network = await start()
    change(lambda host: host.link("add", ifname="mags0bad-3", kind="veth", peer="mags0bad-4"))
    nft.run("table inet mags_0bad { }")
    assert set(await network.leftovers()) == {"mags0bad-3", "mags0bad-4", "table inet mags_0bad"}
    change(lambda host: host.link("add", ifname="mags0bad-dns", kind="veth", peer="mags0bad-dnp"))
    assert await network.leftovers() == []


async def test_a_clean_stop_leaves_nothing(world, start, directory):
    before = world.interfaces()
    assert read_setting("ipv4/conf/eth0/forwarding") == "0"
    network = await start(spare=2, spare_taps=2)
    pid = network.dns_pid
    slot = await network.acquire(tap=True)
    assert read_setting("ipv4/conf/eth0/forwarding") == "1"
    assert read_setting("ipv4/ip_forward") == "0"
    slot.close()
    await network.release(slot.index)
    await network.aclose(remove=True)
    assert world.interfaces() == before
    assert nft.run("list tables") == ""
    assert read_start_time(pid) is None
    assert read_setting("ipv4/conf/eth0/forwarding") == "0"
    assert sorted(path.name for path in directory.iterdir()) == ["host", "resolv.conf"]


async def test_forwarding_is_put_back_also_after_a_crash(start):
    first = await start()
    await first.aclose(remove=False)
    assert read_setting("ipv4/conf/eth0/forwarding") == "1"
    second = await start()
    await second.aclose(remove=True)
    assert read_setting("ipv4/conf/eth0/forwarding") == "0"


async def test_forwarding_stays_until_the_last_instance_stops(start, take, internet, directory):
    (directory / "other").mkdir()
    one = await start()
    other = await start(
        instance="7e58", slot_net="198.19.241.0/24", run_directory=directory / "other"
    )
    slot = await take(other)
    await one.aclose(remove=True)
    assert await fetch(slot.guest_fd, WEB) == HOST
    await other.aclose(remove=True)
    assert read_setting("ipv4/conf/eth0/forwarding") == "0"


async def test_a_host_that_becomes_a_router_meanwhile_stays_one(start):
    network = await start()
    write_setting("ipv4/ip_forward", "1")
    add_address("192.168.60.1", 24)
    await eventually(lambda: "drop" not in nft.run("list table inet mags_uplinks"))
    await network.aclose(remove=True)
    assert read_setting("ipv4/conf/eth0/forwarding") == "1"


async def test_a_host_that_is_a_router_stays_one(start):
    write_setting("ipv4/conf/eth0/forwarding", "1")
    network = await start()
    await network.aclose(remove=True)
    assert read_setting("ipv4/conf/eth0/forwarding") == "1"


async def test_a_host_that_was_no_router_does_not_become_one(world, start, closing):
    """A neighbour that sends its packets to us gets no further than before."""
    await start()
    write_setting("ipv4/conf/eth0/forwarding", "1")
    namespace = add_lan(closing)
    service = await Echo.open(namespace)
    closing.push_async_callback(service.aclose)
    assert await fetch(world.host, "192.168.50.2") == "192.168.50.1"
    change(
        lambda internet: internet.route("add", dst="192.168.50.0/24", gateway=HOST),
        world.internet,
    )
    assert await fetch(world.internet, "192.168.50.2", timeout_s=1) == "TimeoutError"
    nft.run("delete table inet mags_uplinks")
    assert await fetch(world.internet, "192.168.50.2") == NEIGHBOUR


async def test_a_slot_net_that_the_host_routes_is_refused(start):
    change(lambda host: host.route("add", dst="198.19.240.128/25", gateway=NEIGHBOUR))
    with pytest.raises(LaunchError, match=r"198.19.240.128/25 on eth0.*set MAGSD_SLOT_NET"):
        await start()
    assert not any(name.startswith("mags") for name in World.interfaces())


async def test_two_instances_with_one_slot_net_are_refused(start, directory):
    await start()
    with pytest.raises(LaunchError, match="set MAGSD_SLOT_NET"):
        await start(instance="7e58", run_directory=directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot_net": "nonsense"}, "SLOT_NET is not a network"),
        ({"slot_net": "198.19.240.0/30"}, "too small"),
        ({"egress_allow": ("example.com",)}, "EGRESS_ALLOW"),
        ({"dns_user": "nobody-at-all"}, "useradd --system"),
    ],
)
@pytest.mark.usefixtures("world")
async def test_what_is_wrong_is_said_with_the_next_step(start, changes, message):
    before = World.interfaces()
    with pytest.raises(LaunchError, match=message):
        await start(**changes)
    assert World.interfaces() == before
    assert nft.run("list tables") == ""
    assert read_setting("ipv4/conf/eth0/forwarding") == "0"
