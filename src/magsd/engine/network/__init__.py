"""Egress of VMs: network slots, the deny table, DNS. The host-visible side of it all.

`Network` is the way in. It knows slots by number and nothing of VMs: an
engine takes a slot, hands its descriptors to the VM's shim, and gives the
number back when the VM is gone.
"""

from magsd.engine.network.host import Network, NetworkSettings
from magsd.engine.network.layout import GUEST_MAC, instance_of
from magsd.engine.network.slots import Slot

__all__ = ["GUEST_MAC", "Network", "NetworkSettings", "Slot", "instance_of"]
