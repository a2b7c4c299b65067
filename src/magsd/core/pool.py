"""VMs that wait for a script: launched, warmed and frozen before anybody asks.

Owns which VMs wait, how many of each shape, and when others are made. A claim
is decided at once (`take`); beginning the script in what was taken is
`launch`'s part. VMs here belong to nobody: each ends with the connection that
holds it, and so with this process. One that was taken never comes back.

A VM may be taken as soon as it is fit for a script, and is warmed once no other
is to be made: in a burst many are wanted sooner than each is wanted quick.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from magsd.aio import Clock, SingleFlight, Tasks, backoff_s, finish
from magsd.core import launch
from magsd.core.launch import Shape
from magsd.core.log_places import LogPlaces
from magsd.core.room import Room
from magsd.core.settings import CoreSettings
from magsd.engine.base import Engine, Handle
from magsd.guest.shim import ShimConnection, ShimError
from magsd.metrics import Metrics
from magsd.model.amount import Amount
from magsd.model.errors import MagsError
from magsd.model.names import new_vm_id
from magsd.model.quota import completed
from magsd.model.records import JobSpec
from magsd.storage.images import ImageStore

_DEMAND_S: Final = 2.0
"""So far back claims count for how many VMs are to wait: what is asked for in the time that
it takes to make one."""
_LOOK_S: Final = 5.0
_BREATH_S: Final = 0.05
"""So long after a claim others are begun to be made: the script goes first."""
_LAUNCH: Final = Amount(vms=1)
_FAILED_MOST_S: Final = 60.0

_log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class WaitingVm:
    """A VM that is held for whoever takes it."""

    shape: Shape
    handle: Handle
    connection: ShimConnection
    is_warm: bool = False
    is_lost: bool = False
    """Its connection has ended."""


@dataclass(slots=True)
class _Stock:
    """All of one shape."""

    ready: deque[WaitingVm] = field(default_factory=deque)
    """Those that are warm come first."""
    making: int = 0
    warming: int = 0
    asked_at: deque[float] = field(default_factory=deque)
    wanted: int = 0
    """The most that were asked for together, until nobody has asked for a while."""
    failures: int = 0
    not_before: float = 0.0
    """When it may be tried again after failures."""

    @property
    def count(self) -> int:
        return len(self.ready) + self.making + self.warming

    def add(self, vm: WaitingVm) -> None:
        if vm.is_warm:
            self.ready.appendleft(vm)
        else:
            self.ready.append(vm)


class Pool:
    """The waiting VMs of a node."""

    def __init__(
        self,
        *,
        engines: Mapping[str, Engine],
        images: ImageStore,
        places: LogPlaces,
        settings: CoreSettings,
        launches: Room,
        given_back: SingleFlight,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._engines = engines
        self._images = images
        self._places = places
        self._settings = settings
        self._launches = launches
        self._given_back = given_back
        self._clock = clock
        self._metrics = metrics
        self._stocks: dict[Shape, _Stock] = {}
        self._tasks = Tasks(_report)
        self._changed = asyncio.Event()
        self._is_closed = False

    def start(self) -> None:
        """Begin to make VMs. What an earlier process had waiting is gone by now."""
        if self._settings.pool_max:
            self._tasks.spawn("pool", self._keep_full())

    def take(self, shape: Shape) -> WaitingVm | None:
        """Return a VM of `shape`, the caller's from then on; None when none waits."""
        stock = self._stocks.setdefault(shape, _Stock())
        self._note_demand(stock)
        vm = self._take(stock)
        self._metrics.pool_asked(shape.engine, is_hit=vm is not None)
        return vm

    def take_late(self, shape: Shape) -> WaitingVm | None:
        """Return a VM as `take` does, for one who has asked already."""
        return self._take(self._stocks.setdefault(shape, _Stock()))

    def put_back(self, vm: WaitingVm) -> None:
        """Take a VM back that was taken for nothing, before anybody was told of it."""
        stock = self._stocks.setdefault(vm.shape, _Stock())
        stock.add(vm)
        if not vm.is_warm and not self._is_closed:
            self._tasks.spawn(f"warm {vm.handle.vm}", self._warm(stock, vm))

    def throw_away(self, vm: WaitingVm) -> None:
        """End a VM that was taken and cannot be used, in the background."""
        if not self._is_closed:
            self._tasks.spawn(f"end {vm.handle.vm}", finish(self._end(vm)))

    def count(self) -> Mapping[str, int]:
        """Return how many VMs wait, warm, by engine."""
        counts = dict.fromkeys(self._engines, 0)
        for shape, stock in self._stocks.items():
            counts[shape.engine] += sum(vm.is_warm for vm in stock.ready)
        return counts

    async def aclose(self) -> None:
        """End every VM that waits. Idempotent."""
        self._is_closed = True
        await self._tasks.aclose()
        waiting = [vm for stock in self._stocks.values() for vm in stock.ready]
        self._stocks.clear()
        async with asyncio.TaskGroup() as group:
            for vm in waiting:
                group.create_task(finish(self._end(vm)), name=f"end {vm.handle.vm}")

    # --- how many there are to be ---------------------------------------------

    def _take(self, stock: _Stock) -> WaitingVm | None:
        self._changed.set()
        return stock.ready.popleft() if stock.ready else None

    def _note_demand(self, stock: _Stock) -> None:
        now = self._clock.monotonic()
        stock.asked_at.append(now)
        while stock.asked_at[0] < now - _DEMAND_S or len(stock.asked_at) > self._settings.pool_max:
            stock.asked_at.popleft()
            if not stock.asked_at:
                return
        stock.wanted = max(stock.wanted, len(stock.asked_at))

    def _target(self, shape: Shape, stock: _Stock, standard: Iterable[Shape]) -> int:
        now = self._clock.monotonic()
        last = stock.asked_at[-1] if stock.asked_at else 0.0
        if now - last > self._settings.pool_keepalive_s:
            stock.wanted = 0
        least = self._settings.pool_min if shape in standard else 0
        return min(max(stock.wanted, least), self._settings.pool_max)

    def _standard(self) -> list[Shape]:
        """Return what a job that asks for nothing gets; nothing where there is no image yet."""
        engine, settings = self._settings.default_engine, self._settings
        spec = completed(JobSpec("true"), settings.limits)
        try:
            return [launch.shape_of(engine, spec, self._images, settings)]
        except MagsError:
            return []

    # --- making and ending them -----------------------------------------------

    async def _keep_full(self) -> None:
        while True:
            self._changed.clear()
            try:
                self._look()
            except Exception:  # noqa: BLE001 - looked at again, and each failure told
                _log.exception("pool_failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
                    await self._clock.sleep(_BREATH_S)

    def _look(self) -> None:
        """Begin to make what is lacking, end what is too much."""
        standard = self._standard()
        for shape in standard:
            self._stocks.setdefault(shape, _Stock())
        total = sum(stock.count for stock in self._stocks.values())
        for shape, stock in list(self._stocks.items()):
            target = self._target(shape, stock, standard)
            while len(stock.ready) > target:
                self.throw_away(stock.ready.pop())
                total -= 1
            if self._clock.monotonic() < stock.not_before:
                continue
            for _ in range(min(target - stock.count, self._settings.pool_total_max - total)):
                stock.making += 1
                total += 1
                self._tasks.spawn("pool VM", self._make(shape, stock))
            if not target and not stock.count:
                del self._stocks[shape]

    async def _make(self, shape: Shape, stock: _Stock) -> None:
        try:
            # Whoever waits for a VM of its own goes first.
            await self._launches.acquire_at_rest(_LAUNCH)
            try:
                began = self._clock.monotonic()
                vm = await self._made(shape)
                self._metrics.pooled(shape.engine, self._clock.monotonic() - began)
            finally:
                self._launches.release(_LAUNCH)
            stock.failures = 0
            stock.add(vm)
            self._tasks.spawn(f"waiting {vm.handle.vm}", self._watch(vm))
            self._tasks.spawn(f"warm {vm.handle.vm}", self._warm(stock, vm))
        except Exception as error:  # noqa: BLE001 - tried again later, and each failure told
            detail = error.detail if isinstance(error, MagsError) else ""
            _log.warning("pool_vm_failed", image=shape.image, error=repr(error), detail=detail)
            pause_s = backoff_s(stock.failures, 1.0, _FAILED_MOST_S)
            stock.failures += 1
            stock.not_before = self._clock.monotonic() + pause_s
        finally:
            stock.making -= 1
            self._changed.set()

    async def _made(self, shape: Shape) -> WaitingVm:
        engine = self._engines[shape.engine]
        name = new_vm_id()
        plan = await launch.plan_of(name, 1, shape, self._images, self._settings)
        plan = replace(plan, waits=True)
        self._places.make_run_directory(name)
        try:
            handle = await launch.launched(engine, plan)
        except BaseException:
            self._places.remove(name)
            raise
        connection = None
        try:
            connection = await ShimConnection.open(handle.run_directory)
            await launch.hold(connection, plan.hostname, self._clock)
            return WaitingVm(shape, handle, connection)
        except BaseException:
            await finish(self._give_back(engine, handle, connection))
            raise

    async def _warm(self, stock: _Stock, vm: WaitingVm) -> None:
        """Warm a VM, unless it is taken before its turn; nobody can take it meanwhile."""
        await self._launches.acquire_at_rest(_LAUNCH)
        try:
            if vm in stock.ready and not vm.is_warm:
                await self._warm_now(stock, vm)
        finally:
            self._launches.release(_LAUNCH)

    async def _warm_now(self, stock: _Stock, vm: WaitingVm) -> None:
        stock.ready.remove(vm)
        stock.warming += 1
        try:
            await launch.warm(vm.connection, self._engines[vm.shape.engine].capabilities)
            if vm.is_lost:
                raise ShimError("its shim has ended")
            vm.is_warm = True
            stock.add(vm)
        except (ShimError, TimeoutError) as error:
            _log.warning("warming_failed", vm=vm.handle.vm, error=repr(error))
            await finish(self._end(vm))
        except BaseException:
            await finish(self._end(vm))
            raise
        finally:
            stock.warming -= 1
            self._changed.set()

    async def _watch(self, vm: WaitingVm) -> None:
        """See that a VM that ends while it waits is not given to anybody."""
        await vm.connection.closed()
        vm.is_lost = True
        stock = self._stocks.get(vm.shape)
        if stock is not None and vm in stock.ready:
            stock.ready.remove(vm)
            _log.warning("waiting_vm_lost", vm=vm.handle.vm, image=vm.shape.image)
            await finish(self._end(vm))
            self._changed.set()

    async def _end(self, vm: WaitingVm) -> None:
        engine = self._engines[vm.shape.engine]
        await self._give_back(engine, vm.handle, vm.connection)

    async def _give_back(
        self, engine: Engine, handle: Handle, connection: ShimConnection | None
    ) -> None:
        async def give_back() -> None:
            if connection is not None:
                await connection.aclose()
            await engine.stop(handle)
            await asyncio.to_thread(self._places.remove, handle.vm)

        attempt = 0
        while True:
            try:
                # Its name may stand in a row, and whoever finds it there give it back too.
                await self._given_back.do(handle.vm, give_back)
                return
            except Exception:  # noqa: BLE001 - tried again until it is done, and each failure told
                _log.exception("give_back_failed", vm=handle.vm)
                self._metrics.give_back_failed()
                if self._is_closed:
                    return  # The next start sweeps it.
            await self._clock.sleep(backoff_s(attempt, most_s=_FAILED_MOST_S))
            attempt += 1


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
