"""The host's network as engines use it: slots by number, rules, DNS.

`Network` puts the parts together and owns what runs: the thread that talks to
the kernel, the loop that keeps spare slots, the watch for changes of the
host's addresses, the watch over the DNS forwarder. What the rules say is in
`rules`, how a slot is made in `slots`.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import structlog

from magsd.aio import Clock, Tasks, backoff_s, finish
from magsd.engine.network import nft, rules
from magsd.engine.network.dns import DnsForwarder
from magsd.engine.network.forwarding import Forwarding
from magsd.engine.network.layout import Layout, interface_instance, table_instance
from magsd.engine.network.slots import Slot, SlotBuilder
from magsd.engine.network.stock import SlotStock
from magsd.engine.network.survey import Survey, survey
from magsd.model.errors import LaunchError, MagsError

_log: Final = structlog.get_logger()
_T = TypeVar("_T")

_SURVEY_PAUSE_S: Final = 1.0
_SMALLEST_SLOT_NET: Final = 28
# linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
_CHANGES: Final = 0x10 | 0x40


@dataclass(frozen=True)
class NetworkSettings:
    """What an operator decides about the network."""

    instance: str
    """Four hex digits, see `instance_of`: in the name of everything on the host."""
    run_directory: Path
    """Record, policy and log of the DNS forwarder; exists, for root only."""
    slot_net: str = "198.18.0.0/16"
    """For the links between host and slots; nothing else on the host may route it."""
    egress_allow: tuple[str, ...] = ()
    """Networks, or network:port, that guests may reach although they are denied."""
    dns_user: str = "mags"
    """The DNS forwarder runs as this user."""
    spare: int = 2
    """So many slots are made in advance."""
    spare_taps: int = 0
    """And so many with a tap. Both kinds take their numbers out of `slot_net`."""
    resolv_conf: Path = Path("/etc/resolv.conf")
    """Names the host's resolvers."""
    host_directory: Path = Path("/run/mags")
    """The same for all instances of the host, which keep each other out with it."""


class Network:
    """Slots, the deny table and DNS of one instance. Made by `open`."""

    def __init__(self, settings: NetworkSettings, tasks: Tasks, clock: Clock) -> None:
        self._layout = _read_layout(settings)
        self._allowances = _read_allowances(settings)
        self._tasks = tasks
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mags-network")
        self._builder: SlotBuilder
        self._forwarding: Forwarding
        self._host_directory = settings.host_directory
        self._dns = DnsForwarder(
            address=self._layout.dns_address,
            user=settings.dns_user,
            directory=settings.run_directory,
            resolv_conf=settings.resolv_conf,
        )
        self._seen: Survey | None = None
        self._used: set[int] = set()
        self._numbering = asyncio.Lock()
        self._stocks = {
            tap: SlotStock(partial(self._make_slot, tap=tap), spare, clock)
            for tap, spare in ((False, settings.spare), (True, settings.spare_taps))
        }
        self._changes: socket.socket | None = None
        self._running: list[asyncio.Task[Any]] = []

    @classmethod
    async def open(cls, settings: NetworkSettings, tasks: Tasks, clock: Clock) -> Self:
        """Check the host, install rules and DNS, begin to make spare slots.

        Finds the DNS forwarder of an earlier daemon, and replaces the rules
        without a gap. Slots of living VMs go on; `adopt` says which they are.

        Raises `LaunchError` whose message names what is missing and the next
        step; what it did before is undone unless slots of living VMs need it.
        """
        network = cls(settings, tasks, clock)
        try:
            await network._open()
        except BaseException:
            await finish(network._undo_open())
            raise
        return network

    @property
    def dns_address(self) -> str:
        """The nameserver for guests."""
        return str(self._layout.dns_address)

    @property
    def dns_pid(self) -> int | None:
        """The process of the DNS forwarder, while there is one."""
        return self._dns.pid

    async def acquire(self, taken: Collection[int] = (), *, tap: bool = False) -> Slot:
        """Return a slot of its own for one VM: to be closed once the VM's shim has it.

        With `tap` it has a `tap_fd` in place of an interface in the guest's
        namespace. Its number is none of `taken`, and nobody else's until `release`.
        Raises `LaunchError`.
        """
        unfit: list[Slot] = []
        try:
            while (slot := await self._stocks[tap].take()).index in taken:
                unfit.append(slot)
            return slot
        finally:
            for slot in unfit:
                slot.close()
                await finish(self.release(slot.index))

    def adopt(self, index: int) -> None:
        """A living VM that an earlier daemon started has slot `index`."""
        self._used.add(index)

    async def release(self, index: int) -> None:
        """Give a number back; its VM is gone. Idempotent.

        Done when the host's interface has vanished, which this does not leave
        to the kernel's leisure: whatever the VM left behind has no network.
        """
        await self._call(self._builder.remove, self._layout.interface(index))
        self._used.discard(index)

    async def leftovers(self) -> list[str]:
        """Name interfaces and tables that belong to nobody.

        Of this instance: slots that no VM has. Of others: what is there
        although their part that goes last, the interface for DNS, is not.
        """
        return await self._call(self._find_leftovers)

    async def remove_leftovers(self) -> list[str]:
        """Remove the slots of this instance that no VM has; return their interfaces.

        For after the adoption of living VMs.
        """
        found = await self._call(self._find_slots)
        for index in found:
            await self.release(index)
        return [self._layout.interface(index) for index in found]

    async def aclose(self, *, remove: bool) -> None:
        """Stop; spare slots go. Idempotent.

        `remove`, at a stop with no VM alive: rules, DNS and all go too, and
        the uplinks forward as they did before. Otherwise they stay for the
        VMs that live on.
        """
        running, self._running = self._running, []
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        if self._changes is not None:
            self._changes.close()
        if hasattr(self, "_builder"):
            for slot in [slot for stock in self._stocks.values() for slot in stock.drain()]:
                slot.close()
                await self.release(slot.index)
            if remove:
                await self._dns.remove()
                await self._call(self._remove_all)
            await self._call(self._builder.close)
            del self._builder
        self._dns.let_go()
        self._thread.shutdown()

    async def _open(self) -> None:
        await self._call(self._open_builder)
        seen = await self._look()
        if conflicts := seen.conflicts(self._layout):
            raise LaunchError(
                f"SLOT_NET {self._layout.slot_net} is in use on this host "
                f"({', '.join(conflicts[:3])}): set MAGSD_SLOT_NET to a network that is free"
            )
        await self._call(self._builder.add_dns_interface)
        await self._apply(seen)
        self._changes = changes = _watch_changes()
        self._running.append(self._tasks.spawn("network.watch", self._watch(changes)))
        was_there = await self._dns.open()
        self._running.append(self._tasks.spawn("network.dns", self._supervise_dns()))
        for tap, stock in self._stocks.items():
            name = "network.taps" if tap else "network.slots"
            self._running.append(self._tasks.spawn(name, stock.keep_full()))
        _log.info(
            "network open",
            uplinks=sorted(seen.uplinks),
            slot_net=str(self._layout.slot_net),
            dns=self.dns_address,
            dns_found=was_there,
        )

    async def _undo_open(self) -> None:
        is_needed = hasattr(self, "_builder") and bool(await self._call(self._find_slots))
        await self.aclose(remove=not is_needed)

    def _open_builder(self) -> None:
        self._builder = SlotBuilder(self._layout)
        self._forwarding = Forwarding(self._host_directory)

    def _call(self, function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
        """Run `function` in the thread that talks to the kernel, one call at a time."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, lambda: function(*arguments))

    async def _make_slot(self, *, tap: bool) -> Slot:
        async with self._numbering:  # the other kind's loop takes a number meanwhile
            index = await self._call(self._free_index)
            self._used.add(index)
        made = self._call(partial(self._builder.build, index, tap=tap))
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(_close_slot)
            raise
        except LaunchError:
            self._used.discard(index)
            raise

    def _free_index(self) -> int:
        there = set(map(self._layout.index_of, self._builder.interfaces()))
        for index in range(1, self._layout.capacity + 1):
            if index not in self._used and index not in there:
                return index
        raise LaunchError(
            f"all {self._layout.capacity} network slots are taken: "
            f"end sandboxes, or set MAGSD_SLOT_NET to a larger network"
        )

    async def _look(self) -> Survey:
        allowed = [allowance.network for allowance in self._allowances]
        return await self._call(survey, self._builder.host, allowed)

    async def _apply(self, seen: Survey) -> None:
        """Make rules, uplinks and the forwarder's policy fit what was seen of the host."""
        denied = rules.denied_networks(self._layout, seen.connected)
        table = rules.host_table(self._layout, denied=denied, allowances=self._allowances)
        await self._call(nft.run, table)
        await self._call(self._forwarding.switch_on, seen.uplinks)
        self._dns.set_policy(denied, [allowance.network for allowance in self._allowances])
        self._seen = seen

    async def _watch(self, changes: socket.socket) -> None:
        """Look again whenever an address or a route of the host has changed.

        Not more than once a second: slots that come and go wake this too.
        """
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(OSError):  # ENOBUFS: many changes are one to us
                await loop.sock_recv(changes, 1 << 16)
            failures = 0
            while not await self._look_again(changes, failures):
                failures += 1

    async def _look_again(self, changes: socket.socket, failures: int) -> bool:
        await self._clock.sleep(max(_SURVEY_PAUSE_S, backoff_s(failures)))
        _drain(changes)
        try:
            seen = await self._look()
            if seen != self._seen:
                _log.info("the host's network has changed", uplinks=sorted(seen.uplinks))
                await self._apply(seen)
        except (MagsError, OSError) as error:
            _log.error("the network rules could not be brought up to date", error=repr(error))
            return False
        return True

    async def _supervise_dns(self) -> None:
        """Start the DNS forwarder again when it ends."""
        failures = 0
        while True:
            await self._dns.wait_ended()
            _log.warning("the DNS forwarder has ended and is started again")
            await self._clock.sleep(backoff_s(failures))
            try:
                await self._dns.stop()
                await self._dns.open()
                failures = 0
            except (MagsError, OSError) as error:
                failures += 1
                _log.error("the DNS forwarder cannot be started", error=repr(error))

    def _find_slots(self) -> list[int]:
        there = map(self._layout.index_of, self._builder.interfaces())
        return sorted(index for index in there if index is not None and index not in self._used)

    def _find_leftovers(self) -> list[str]:
        names = self._builder.interfaces()
        instances = {interface_instance(name) for name in names if name.endswith("-dns")}
        strays = [
            name for name in names if (of := interface_instance(name)) and of not in instances
        ]
        for line in nft.run("list tables inet").splitlines():
            name = line.split()[-1]
            of = table_instance(name)
            if (of and of not in instances) or (name == rules.UPLINKS_TABLE and not instances):
                strays.append(f"table inet {name}")
        return [*map(self._layout.interface, self._find_slots()), *strays]

    def _remove_all(self) -> None:
        for name in self._builder.interfaces():
            if name.startswith(self._layout.interface_prefix):
                self._builder.remove(name)
        self._forwarding.put_back(self._is_last)
        nft.run(rules.no_table(self._layout.table))

    def _is_last(self) -> bool:
        return not any(map(interface_instance, self._builder.interfaces()))


def _read_layout(settings: NetworkSettings) -> Layout:
    try:
        network = IPv4Network(settings.slot_net)
    except ValueError as error:
        raise LaunchError(f"SLOT_NET is not a network such as 198.18.0.0/16: {error}") from error
    if network.prefixlen > _SMALLEST_SLOT_NET:
        raise LaunchError(f"SLOT_NET {network} is too small: at least a /{_SMALLEST_SLOT_NET}")
    return Layout(settings.instance, network)


def _read_allowances(settings: NetworkSettings) -> tuple[rules.Allowance, ...]:
    try:
        return tuple(map(rules.Allowance.parse, settings.egress_allow))
    except ValueError as error:
        raise LaunchError(f"EGRESS_ALLOW: {error}") from error


def _watch_changes() -> socket.socket:
    """Return a socket that becomes readable when the host's addresses or routes change."""
    changes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    changes.setblocking(False)
    changes.bind((0, _CHANGES))
    return changes


def _drain(changes: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while changes.recv(1 << 16):
            pass


def _close_slot(made: asyncio.Future[Slot]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()
