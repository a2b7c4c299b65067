"""What the network of a sandbox is made of, tried with real interfaces and the real rules.

In a network namespace of its own each time, which ends with the thread that
made it: nothing is seen on the host, and nothing stays.
"""

import os
import threading
from collections.abc import Callable
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from magsd.doctor.check import Check, Verdict
from magsd.engine.network import nft
from magsd.engine.network.namespaces import enter_new_namespace
from magsd.engine.network.rules import router_table
from magsd.engine.network.tap import open_tap
from magsd.model.errors import MagsError

_INTERFACE: Final = "gw0"
"""The rules of a slot name it."""


def rules() -> Check:
    """Set the rules that every sandbox has, for an interface of its own. Blocks."""
    if refusal := _refusal(_set_rules):
        seen = f"the rules of a sandbox cannot be set: {refusal}"
        step = "the host's kernel needs veth, nf_tables and its family netdev (NF_TABLES_NETDEV)"
        return Check("netdev", Verdict.FAIL, seen, step)
    return Check("netdev", Verdict.OK, "the rules of a sandbox were set, netdev family included")


def taps(*, is_needed: bool) -> Check:
    """Make an interface as microVMs have it. Blocks. `is_needed`: scripts run in them unasked."""
    if refusal := _refusal(lambda: os.close(open_tap(_INTERFACE))):
        seen = f"no microVM can have a network: {refusal}"
        step = "run `modprobe tun`; a container needs the device /dev/net/tun"
        return Check("tun", Verdict.FAIL if is_needed else Verdict.WARN, seen, step)
    return Check("tun", Verdict.OK, "an interface for a microVM was made with /dev/net/tun")


def _set_rules() -> None:
    with IPRoute() as here:
        here.link("add", ifname=_INTERFACE, kind="veth", peer="up0")
        nft.run(router_table())


def _refusal(act: Callable[[], None]) -> str:
    """Do something in a namespace of its own; return why it could not be done, or nothing."""
    refusals: list[str] = []

    def attempt() -> None:
        try:
            os.close(enter_new_namespace())
            act()
        except MagsError as error:
            refusals.append(f"{error.message} ({error.detail})")
        except (OSError, NetlinkError) as error:
            refusals.append(str(error))

    thread = threading.Thread(target=attempt, name="mags-doctor-slot")
    thread.start()
    thread.join()
    return "".join(refusals)
