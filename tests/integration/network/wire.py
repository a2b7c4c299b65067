"""The guest's side of a tap: a real network stack behind it, or frames made by hand."""

import asyncio
import contextlib
import os
import socket
import struct

import pytest

from magsd.engine.network.layout import GATEWAY_MAC, GUEST_MAC
from magsd.engine.network.namespaces import disable_ipv6, enter_new_namespace
from magsd.engine.network.tap import open_tap
from tests.integration.network.world import add_address, change, returning

GUEST = "10.0.2.15"
GATEWAY = "10.0.2.2"
both_kinds = pytest.mark.parametrize("take", [False, True], ids=["veth", "tap"], indirect=True)
"""For a test that takes slots with `take`: what holds for one kind holds for the other."""

ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def attach_stack(tap_fd, stack):
    """Put the kernel's own network stack behind a tap; return its namespace.

    It has the interface `eth0`, as the guest of a slot without a tap has.
    """
    with returning():
        namespace = enter_new_namespace()
        stack.callback(os.close, namespace)
        disable_ipv6()
        cable = open_tap("eth0")
        stack.callback(os.close, cable)

    def configure(guest):
        (index,) = guest.link_lookup(ifname="eth0")
        guest.link("set", index=index, address=GUEST_MAC)
        guest.link("set", index=1, state="up")

    change(configure, namespace)
    add_address(GUEST, 24, "eth0", namespace)
    change(lambda guest: guest.route("add", dst="0.0.0.0/0", gateway=GATEWAY), namespace)
    loop = asyncio.get_running_loop()
    for source, target in ((tap_fd, cable), (cable, tap_fd)):
        loop.add_reader(source, _pump, source, target)
        stack.callback(loop.remove_reader, source)
    return namespace


def _pump(source, target):
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = os.read(source, 1 << 16)
            with contextlib.suppress(OSError):  # the other end is down or full: a lost frame
                os.write(target, frame)


class Wire:
    """A guest that writes what it likes."""

    def __init__(self, tap_fd):
        self._tap_fd = tap_fd

    def send(self, frame):
        os.write(self._tap_fd, frame)

    async def receive(self, is_wanted, timeout_s=5):
        """Return the first frame that is wanted, and None when none comes in time."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._tap_fd, readable.set)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for frame in self.drain():
                        if is_wanted(frame):
                            return frame
                    readable.clear()
                    await readable.wait()
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(self._tap_fd)

    def drain(self):
        """Yield the frames that are there."""
        with contextlib.suppress(BlockingIOError):
            while True:
                yield os.read(self._tap_fd, 1 << 16)


def ethernet(kind, payload, *, source=GUEST_MAC, target=GATEWAY_MAC):
    return mac(target) + mac(source) + struct.pack("!H", kind) + payload


def tagged(vlan, frame):
    return frame[:12] + struct.pack("!HH", VLAN, vlan) + frame[12:]


def arp_request(address, *, sender=GUEST, source=GUEST_MAC):
    payload = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + mac(source) + socket.inet_aton(sender)
    payload += bytes(6) + socket.inet_aton(address)
    return ethernet(ARP, payload, source=source, target="ff:ff:ff:ff:ff:ff")


def arp_reply(address, *, sender=GUEST, source=GUEST_MAC):
    payload = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + mac(source) + socket.inet_aton(sender)
    payload += mac(GATEWAY_MAC) + socket.inet_aton(address)
    return ethernet(ARP, payload, source=source)


def udp(target, data, *, sender=GUEST, ports=(4000, 53)):
    header = struct.pack("!HHHH", *ports, 8 + len(data), 0)  # no checksum: IPv4 allows it
    return ethernet(IPV4, _ipv4(socket.IPPROTO_UDP, sender, target, header + data))


def tcp_syn(target, port, *, sender=GUEST):
    header = struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 5 << 4, 0x02, 65535, 0, 0)
    ends = socket.inet_aton(sender) + socket.inet_aton(target)
    pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header))
    sum_ = struct.pack("!H", checksum(pseudo + header))
    return ethernet(
        IPV4, _ipv4(socket.IPPROTO_TCP, sender, target, header[:16] + sum_ + header[18:])
    )


def ping(target, *, sender=GUEST):
    header = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    header = header[:2] + struct.pack("!H", checksum(header)) + header[4:]
    return ethernet(IPV4, _ipv4(socket.IPPROTO_ICMP, sender, target, header))


def _ipv4(protocol, sender, target, payload):
    ends = socket.inet_aton(sender) + socket.inet_aton(target)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def kind_of(frame):
    return int.from_bytes(frame[12:14], "big")


def is_ipv4(frame, protocol, sender):
    return (
        kind_of(frame) == IPV4
        and frame[23] == protocol
        and frame[26:30] == socket.inet_aton(sender)
    )
