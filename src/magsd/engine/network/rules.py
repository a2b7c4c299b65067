"""The nftables rules, as text: what a guest may reach.

Pure: who knows the host's addresses (`survey`) and who applies the text
(`nft`) is elsewhere. Three rulesets: the host's table, one an instance; the
one about uplinks, one a host; the one inside each slot's router namespace.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses
from typing import Final, Self

from magsd.engine.network.layout import GUEST_ADDRESS, Layout

PRIVATE: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",
    )
)
"""Never reached from a guest unless the operator allows it. The documentation
ranges are not among them: networks without public addresses of their own use
them for mirrors."""

UPLINKS_TABLE: Final = "mags_uplinks"
"""Shared by all instances of a host."""

# One guest must not fill the host's connection table (65536 entries on a small host): so
# many at once, and, because closed ones stay in it for two minutes, so many new ones.
_CONNECTIONS_PER_SLOT: Final = 2048
_NEW_CONNECTIONS: Final = "100/second burst 2048 packets"
_DNS_PER_SLOT: Final = "100/second burst 200 packets"


@dataclass(frozen=True)
class Allowance:
    """A destination that the operator opens although it is in a denied range."""

    network: IPv4Network
    port: int | None = None
    """TCP and UDP; None: everything."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `10.1.0.0/16` or `10.1.2.3:443`. Raises `ValueError`."""
        network, colon, port = text.strip().partition(":")
        if colon and not (port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"{text!r} is not a network, or a network:port")
        return cls(IPv4Network(network), int(port) if colon else None)


def denied_networks(layout: Layout, connected: Iterable[IPv4Network]) -> tuple[IPv4Network, ...]:
    """Return all that a guest may not reach, without overlaps, in order."""
    return tuple(collapse_addresses([*PRIVATE, layout.slot_net, *connected]))


def _set(networks: Iterable[IPv4Network]) -> str:
    return "{ " + ", ".join(str(network) for network in networks) + " }"


def _allowed(allowances: Iterable[Allowance]) -> str:
    lines = [
        f"ip daddr {allowance.network} accept"
        if allowance.port is None
        else f"ip daddr {allowance.network} meta l4proto {{ tcp, udp }} "
        f"th dport {allowance.port} accept"
        for allowance in allowances
    ]
    return "\n    ".join(lines)


def host_table(
    layout: Layout,
    *,
    denied: Iterable[IPv4Network],
    allowances: Iterable[Allowance] = (),
) -> str:
    """Return the host's table as one transaction that replaces what was there."""
    slots = f'"{layout.interface_prefix}*"'
    return f"""
table inet {layout.table}
delete table inet {layout.table}
table inet {layout.table} {{
  set denied {{
    type ipv4_addr
    flags interval
    elements = {_set(denied)}
  }}
  set dns_rate {{
    type ipv4_addr
    size 65536
    flags dynamic,timeout
    timeout 1m
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {slots} jump from_slot
    oifname {slots} jump to_slot
  }}
  chain from_slot {{
    meta nfproto != ipv4 drop
    ip saddr != {layout.slot_net} drop
    oifname "mags*" jump refuse
    {_allowed(allowances)}
    ip daddr @denied jump refuse
    accept
  }}
  chain to_slot {{
    ct state established,related accept
    drop
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {slots} jump to_host
  }}
  chain to_host {{
    meta nfproto != ipv4 drop
    ip saddr != {layout.slot_net} drop
    ip daddr {layout.dns_address} meta l4proto {{ tcp, udp }} th dport 53 jump to_dns
    jump refuse
  }}
  chain to_dns {{
    meta l4proto tcp ct state established accept
    update @dns_rate {{ ip saddr limit rate over {_DNS_PER_SLOT} }} drop
    accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {layout.slot_net} oifname != "mags*" masquerade
  }}
}}
"""


def uplinks_table(opened: Iterable[str], *, is_router: bool) -> str:
    """Return the table that notes which uplinks forward only because of slots.

    Unless the host `is_router` itself, nothing else may begin to pass through
    them. Replaces what was there in one transaction.
    """
    names = ", ".join(f'"{name}"' for name in opened)
    guard = "" if is_router else "iifname @opened ct state new drop"
    return f"""
table inet {UPLINKS_TABLE}
delete table inet {UPLINKS_TABLE}
table inet {UPLINKS_TABLE} {{
  set opened {{
    type ifname
    elements = {{ {names} }}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    {guard}
  }}
}}
"""


def no_table(name: str) -> str:
    """Return the transaction after which there is no such table."""
    return f"table inet {name}\ndelete table inet {name}\n"


def router_table() -> str:
    """Return the rules inside a slot: the guest can use its own address only.

    Nothing is accepted for the namespace itself, and nothing comes in
    that does not belong to a connection of the guest. For when `gw0` is there.
    """
    # All namespaces of a host share one table of neighbours (1024 by default): a few guests
    # that ask by ARP in many names would fill it. So that is dropped where frames come in,
    # and with it all that is neither ARP nor IPv4.
    return f"""
table netdev slot {{
  chain ingress {{
    type filter hook ingress device "gw0" priority filter; policy drop;
    ip saddr {GUEST_ADDRESS} accept
    arp saddr ip {GUEST_ADDRESS} accept
  }}
}}
table inet slot {{
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "up0" oifname "gw0" ct state established,related accept
    iifname "gw0" ip saddr != {GUEST_ADDRESS} drop
    ct state new ct count over {_CONNECTIONS_PER_SLOT} drop
    ct state new limit rate over {_NEW_CONNECTIONS} drop
    iifname "gw0" oifname "up0" meta nfproto ipv4 accept
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    meta l4proto tcp reject with tcp reset
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "up0" masquerade
  }}
}}
"""
