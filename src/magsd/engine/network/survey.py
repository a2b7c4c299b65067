"""What the host's own network looks like, as far as the rules depend on it.

Reads addresses and routes; changes nothing.
"""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from magsd.engine.network.layout import Layout, interface_instance
from magsd.model.errors import LaunchError

_RT_SCOPE_LINK: Final = 253
_RTN_UNICAST: Final = 1
_TRIES: Final = 10
_EVERYTHING: Final = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True)
class Survey:
    """The host's network at one moment; two that are equal need the same rules."""

    connected: frozenset[IPv4Network]
    """The host's addresses and the networks it reaches without a gateway."""
    uplinks: frozenset[str]
    """Interfaces that guests' packets leave by."""
    routed: frozenset[tuple[IPv4Network, str]] = field(compare=False)
    """Where everything but the default goes, and the host's addresses: network, interface."""

    def conflicts(self, layout: Layout) -> list[str]:
        """Say which routes of others overlap the instance's slots."""
        return sorted(
            f"{network} on {interface}"
            for network, interface in self.routed
            if network.overlaps(layout.slot_net)
            and not interface.startswith(layout.interface_prefix)
        )


def survey(host: IPRoute, allowed: Iterable[IPv4Network] = ()) -> Survey:
    """Look at the network that `host` is a socket of.

    `allowed` are networks that the operator opened: their way out is an uplink too.
    Raises `LaunchError` when the kernel does not tell.
    """
    for _ in range(_TRIES):
        try:
            return _survey(host, allowed)
        except NetlinkDumpInterrupted:
            continue  # it changed while it was read
        except (NetlinkError, OSError) as error:
            raise LaunchError("the host's network could not be read", repr(error)) from error
    raise LaunchError("the host's network changes faster than it can be read")


def _survey(host: IPRoute, allowed: Iterable[IPv4Network]) -> Survey:
    names = {link["index"]: str(link.get("ifname")) for link in host.get_links()}
    connected: set[IPv4Network] = set()
    routed: set[tuple[IPv4Network, str]] = set()
    for message in host.get_addr(family=socket.AF_INET):
        interface = names.get(message["index"], "")
        networks = set(_address_networks(message))
        routed |= {(network, interface) for network in networks}
        if interface_instance(interface) is None:
            connected |= networks
    uplinks: set[str] = set()
    for message in host.get_routes(family=socket.AF_INET, type=_RTN_UNICAST):
        network = _destination(message)
        interfaces = [names[index] for index in _out_interfaces(message) if index in names]
        if network == _EVERYTHING:
            uplinks |= set(interfaces)
            continue
        routed |= {(network, interface) for interface in interfaces}
        is_ours = any(interface_instance(interface) for interface in interfaces)
        if message["scope"] == _RT_SCOPE_LINK and not is_ours:
            connected.add(network)
    for network in allowed:
        uplinks |= {names[index] for index in _way_to(host, network) if index in names}
    uplinks = {name for name in uplinks if name != "lo" and interface_instance(name) is None}
    return Survey(frozenset(connected), frozenset(uplinks), frozenset(routed))


def _address_networks(message: Any) -> Iterator[IPv4Network]:
    # IFA_ADDRESS is the far end on a point-to-point link, IFA_LOCAL the host's own.
    for name in ("IFA_LOCAL", "IFA_ADDRESS"):
        if (address := message.get(name)) is not None:
            yield IPv4Network(f"{address}/32")
            yield IPv4Network((address, message["prefixlen"]), strict=False)


def _destination(message: Any) -> IPv4Network:
    destination = message.get("RTA_DST")
    return _EVERYTHING if destination is None else IPv4Network((destination, message["dst_len"]))


def _out_interfaces(message: Any) -> Iterator[int]:
    if (index := message.get("RTA_OIF")) is not None:
        yield index
    for hop in message.get("RTA_MULTIPATH") or ():
        yield hop["oif"]


def _way_to(host: IPRoute, network: IPv4Network) -> Iterator[int]:
    try:
        for message in host.route("get", dst=str(network[0])):
            yield from _out_interfaces(message)
    except NetlinkError:
        return  # no route to it: nothing to open
