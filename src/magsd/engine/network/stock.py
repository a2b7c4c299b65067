"""Slots made in advance, because making one is on the path of a launch.

Owns the loop that makes them, one at a time; which number the next one gets
and what makes it are given. Cancelled callers lose no slot.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from magsd.aio import Clock, backoff_s
from magsd.engine.network.slots import Slot
from magsd.model.errors import LaunchError

_log: Final = structlog.get_logger()


class SlotStock:
    """`spare` slots that are ready, and the callers that wait for one when none is."""

    def __init__(self, make: Callable[[], Awaitable[Slot]], spare: int, clock: Clock) -> None:
        self._make = make
        self._spare = spare
        self._clock = clock
        self._ready: deque[Slot] = deque()
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._changed = asyncio.Event()

    async def take(self) -> Slot:
        """Return a slot, which is the caller's from then on. Raises `LaunchError`."""
        self._changed.set()
        if self._ready:
            return self._ready.popleft()
        waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._ready.appendleft(waiter.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)

    async def keep_full(self) -> None:
        """Make slots as they are needed. Runs until it is cancelled."""
        failures = 0
        while True:
            self._changed.clear()
            if not self._waiting and len(self._ready) >= self._spare:
                await self._changed.wait()
                continue
            try:
                slot = await self._make()
            except LaunchError as error:
                self._fail(error)
                if not self._waiting:
                    _log.warning("no spare network slot", error=str(error), detail=error.detail)
                    await self._wait_s(backoff_s(failures, 1.0))
                failures += 1
                continue
            failures = 0
            self._hand_over(slot)

    async def _wait_s(self, seconds: float) -> None:
        """Wait, but not while somebody waits for a slot."""
        async with asyncio.TaskGroup() as group:
            pause = group.create_task(self._clock.sleep(seconds))
            need = group.create_task(self._changed.wait())
            await asyncio.wait([pause, need], return_when=asyncio.FIRST_COMPLETED)
            pause.cancel()
            need.cancel()

    def _hand_over(self, slot: Slot) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(slot)
                return
        self._ready.append(slot)

    def _fail(self, error: LaunchError) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiting.clear()

    def drain(self) -> list[Slot]:
        """Give up what is ready; those who wait are refused. For the end."""
        self._fail(LaunchError("the network is closing"))
        drained = list(self._ready)
        self._ready.clear()
        return drained

    @property
    def ready(self) -> frozenset[int]:
        """The numbers of the slots that are ready."""
        return frozenset(slot.index for slot in self._ready)
