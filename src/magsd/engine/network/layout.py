"""Names and addresses of everything that an instance shows on its host.

Pure arithmetic. Every name bears the *instance*, so that several daemons on
one host never touch each other's interfaces and tables.
"""

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

GUEST_ADDRESS: Final = "10.0.2.15"
GATEWAY_ADDRESS: Final = "10.0.2.2"
GUEST_PREFIX: Final = 24
# Behind a tap the hardware's addresses are the same in all VMs: a copy of a VM's memory
# may remember the gateway's.
GUEST_MAC: Final = "52:54:00:00:00:01"
GATEWAY_MAC: Final = "52:54:00:00:00:02"
SLOT_PREFIX: Final = 30
_SLOT_SIZE: Final = 4

# Interfaces of any instance: `mags`, four hex digits, then a slot's number, `dns` or `dnp`.
_ANY_INTERFACE: Final = re.compile(r"mags([0-9a-f]{4})-(\d+|dns|dnp)")
_ANY_TABLE: Final = re.compile(r"mags_([0-9a-f]{4})")


def instance_of(data_directory: Path) -> str:
    """Return the instance of a data directory: four hex digits, the same at every start."""
    return hashlib.sha256(str(data_directory.resolve()).encode()).hexdigest()[:4]


def interface_instance(name: str) -> str | None:
    """Return the instance whose interface bears this name; None: nobody's of ours."""
    match = _ANY_INTERFACE.fullmatch(name)
    return match.group(1) if match else None


def table_instance(name: str) -> str | None:
    """Return the instance whose table bears this name; None: nobody's of ours."""
    match = _ANY_TABLE.fullmatch(name)
    return match.group(1) if match else None


@dataclass(frozen=True)
class Layout:
    """Names and addresses of one instance. Slot numbers go from 1 to `capacity`."""

    instance: str
    slot_net: IPv4Network

    @property
    def interface_prefix(self) -> str:
        """What the names of all the instance's interfaces begin with."""
        return f"mags{self.instance}-"

    @property
    def table(self) -> str:
        """The nftables table, family `inet`."""
        return f"mags_{self.instance}"

    @property
    def dns_interface(self) -> str:
        """The interface that bears `dns_address`; the last of an instance to go."""
        return f"{self.interface_prefix}dns"

    @property
    def dns_peer(self) -> str:
        """The other end of `dns_interface`, without use."""
        return f"{self.interface_prefix}dnp"

    @property
    def dns_address(self) -> IPv4Address:
        """The nameserver of all guests, in the block that slot 0 would have."""
        return self.slot_net[1]

    @property
    def capacity(self) -> int:
        """How many slots fit."""
        return self.slot_net.num_addresses // _SLOT_SIZE - 1

    def interface(self, index: int) -> str:
        """The host's end of a slot."""
        return f"{self.interface_prefix}{index}"

    def index_of(self, interface: str) -> int | None:
        """The slot whose host end this is; None when it is no slot's of this instance."""
        number = interface.removeprefix(self.interface_prefix)
        return int(number) if number != interface and number.isdecimal() else None

    def host_address(self, index: int) -> IPv4Address:
        """The address of a slot's host end."""
        return self.slot_net[index * _SLOT_SIZE + 1]

    def router_address(self, index: int) -> IPv4Address:
        """The address that all a slot's guest sends comes from, as the host sees it."""
        return self.slot_net[index * _SLOT_SIZE + 2]
