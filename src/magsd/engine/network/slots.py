"""A network slot: what stands between one guest and the host's network.

Two namespaces that only descriptors hold. The *guest*'s has `eth0` with the
address every guest has; the *router*'s has the other end, and `up0`, whose
own other end is the host's interface `mags<instance>-<n>`:

    guest                    router                         host
    eth0 10.0.2.15/24 ---- gw0 10.0.2.2/24
                           up0 198.18.x.y+2/30 ------------ mags<instance>-<n> 198.18.x.y+1/30

In a slot *with a tap* `gw0` is the tap: the engine gets its descriptor and
brings a guest that makes frames of its own; the guest's namespace is empty.

The router gives the guest's packets the slot's address and drops those with
any other source. When the last descriptor closes (the shim's, at the VM's
end) the kernel removes both namespaces and with them the host's interface.
A tap's descriptor keeps the router's namespace as well.

`SlotBuilder` blocks: it belongs to one thread, which it moves through the
namespaces. Which numbers are free is decided by `host`.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from magsd.engine.network import nft, rules
from magsd.engine.network.layout import (
    GATEWAY_ADDRESS,
    GATEWAY_MAC,
    GUEST_ADDRESS,
    GUEST_PREFIX,
    SLOT_PREFIX,
    Layout,
)
from magsd.engine.network.namespaces import (
    current_namespace,
    disable_ipv6,
    enter_namespace,
    enter_new_namespace,
    write_setting,
)
from magsd.engine.network.tap import open_tap
from magsd.model.errors import LaunchError

_GONE: Final = {errno.ENODEV, errno.ENXIO}


@dataclass
class Slot:
    """A slot as its user holds it. Whoever has it closes it; the VM has descriptors of its own."""

    index: int
    """From 1; the same number makes the uid of a VM's processes."""
    guest_fd: int
    """The network namespace for the engine."""
    hold_fds: tuple[int, ...]
    """To be kept open, with `guest_fd`, for as long as the VM lives."""
    _undo: contextlib.ExitStack = field(repr=False)
    tap_fd: int | None = None
    """The wire of a slot with a tap: one read or write is one Ethernet frame. The one
    who has this last ends the interface; None in a slot of the other kind."""

    def close(self) -> None:
        """Close the descriptors. Idempotent. Without a VM the slot vanishes."""
        self._undo.close()


class SlotBuilder:
    """Makes slots, and the host's interfaces in general, from one thread of its own."""

    def __init__(self, layout: Layout) -> None:
        """Open the host's netlink socket; the calling thread is in the host's namespace."""
        self._layout = layout
        with contextlib.ExitStack() as undo:
            self._host_fd = current_namespace()
            undo.callback(os.close, self._host_fd)
            self.host = IPRoute()
            undo.callback(self.host.close)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close the netlink socket."""
        self._undo.close()

    def build(self, index: int, *, tap: bool = False) -> Slot:
        """Make slot `index` (15 to 30 ms). Raises `LaunchError`; nothing is left then."""
        try:
            with contextlib.ExitStack() as undo:
                router_fd = _enter_router(undo)
                with IPRoute() as router:
                    tap_fd = _add_tap(router, undo) if tap else None
                    guest_fd = _enter_guest(undo)
                    if not tap:
                        _add_guest_pair(router, guest_fd)
                    enter_namespace(router_fd)
                    nft.run(rules.router_table())  # names gw0, and stands before up0
                    self._add_uplink(router, router_fd, index)
                self._connect_host(index)
                return Slot(index, guest_fd, (router_fd,), undo.pop_all(), tap_fd)
        except (OSError, NetlinkError, ValueError) as error:
            raise LaunchError(
                "a network for the sandbox could not be made: "
                "is this process root, and are veth and nf_tables in the host's kernel?",
                f"slot {index}: {error!r}",
            ) from error
        finally:
            enter_namespace(self._host_fd)

    def _add_uplink(self, router: Any, router_fd: int, index: int) -> None:
        _add_pair(self.host, self._layout.interface(index), "up0", router_fd)
        _set_up(router, "up0", str(self._layout.router_address(index)), SLOT_PREFIX)
        router.route("add", dst="0.0.0.0/0", gateway=str(self._layout.host_address(index)))

    def _connect_host(self, index: int) -> None:
        enter_namespace(self._host_fd)
        name = self._layout.interface(index)
        quiet_interface(name)
        write_setting(f"ipv4/conf/{name}/forwarding", "1")
        write_setting(f"ipv4/conf/{name}/rp_filter", "1")
        _set_up(self.host, name, str(self._layout.host_address(index)), SLOT_PREFIX)

    def interfaces(self) -> list[str]:
        """Return the names of the host's interfaces."""
        return [name for _, name in socket.if_nameindex()]

    def add_dns_interface(self) -> None:
        """Make the interface that bears the nameserver's address; one that is there stays."""
        # A veth whose peer stays down: a dummy is not in every kernel, veth must be anyway.
        name, peer = self._layout.dns_interface, self._layout.dns_peer
        try:
            with _tolerating({errno.EEXIST}):
                self.host.link("add", ifname=name, kind="veth", peer=peer)
            quiet_interface(name)
            (index,) = self.host.link_lookup(ifname=name)
            address = str(self._layout.dns_address)
            self.host.addr("replace", index=index, address=address, prefixlen=32)
            self.host.link("set", index=index, state="up")
        except (OSError, NetlinkError) as error:
            raise LaunchError(
                f"the interface {name} could not be made: "
                f"is this process root, and is veth in the host's kernel (`modprobe veth`)?",
                repr(error),
            ) from error

    def remove(self, name: str) -> None:
        """Delete an interface of the host, and its other end. Nothing happens when it is gone."""
        if found := self.host.link_lookup(ifname=name):
            with _tolerating(_GONE):
                self.host.link("del", index=found[0])


def _enter_router(undo: contextlib.ExitStack) -> int:
    """Move to a router's namespace made for it; return its descriptor."""
    router_fd = enter_new_namespace()
    undo.callback(os.close, router_fd)
    disable_ipv6()
    write_setting("ipv4/ip_forward", "1")
    write_setting("ipv4/conf/all/rp_filter", "1")
    return router_fd


def _enter_guest(undo: contextlib.ExitStack) -> int:
    """Move to a guest's namespace made for it, with nothing in it; return its descriptor."""
    guest_fd = enter_new_namespace()
    undo.callback(os.close, guest_fd)
    disable_ipv6()
    return guest_fd


def _add_guest_pair(router: Any, guest_fd: int) -> None:
    """Connect router and guest; the calling thread is in the guest's namespace."""
    with IPRoute() as guest:
        _add_pair(router, "gw0", "eth0", guest_fd)
        _set_up(router, "gw0", GATEWAY_ADDRESS, GUEST_PREFIX)
        _set_up(guest, "eth0", GUEST_ADDRESS, GUEST_PREFIX)
        guest.link("set", index=1, state="up")
        guest.route("add", dst="0.0.0.0/0", gateway=GATEWAY_ADDRESS)


def _add_tap(router: Any, undo: contextlib.ExitStack) -> int:
    """Let `gw0` be a tap; the calling thread is in the router's namespace."""
    tap_fd = open_tap("gw0")
    undo.callback(os.close, tap_fd)
    (index,) = router.link_lookup(ifname="gw0")
    router.link("set", index=index, address=GATEWAY_MAC)
    _set_up(router, "gw0", GATEWAY_ADDRESS, GUEST_PREFIX)
    return tap_fd


def quiet_interface(name: str) -> None:
    """Give an interface of the host no IPv6 address. Gone meanwhile: the caller will see it."""
    with contextlib.suppress(FileNotFoundError):
        write_setting(f"ipv6/conf/{name}/disable_ipv6", "1")


def _add_pair(here: Any, name: str, peer: str, peer_namespace: int) -> None:
    peer_end = {"ifname": peer, "net_ns_fd": peer_namespace}
    here.link("add", ifname=name, kind="veth", peer=peer_end)


def _set_up(here: Any, name: str, address: str, prefix: int) -> None:
    (index,) = here.link_lookup(ifname=name)
    here.addr("add", index=index, address=address, prefixlen=prefix)
    here.link("set", index=index, state="up")


@contextlib.contextmanager
def _tolerating(numbers: set[int]) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in numbers:
            raise
