"""What all pretended VMs of a host share: the loop, its tasks, its clock. And limits."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from magsd.aio import Clock, Tasks


class Timer(Protocol):
    """Something that will be called, unless it is cancelled before."""

    def cancel(self) -> None:
        """Let it not be called. Idempotent."""


class World:
    """The host process as a VM sees it."""

    def __init__(self, clock: Clock, tasks: Tasks) -> None:
        self.clock = clock
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment, as `call_later` counts them."""
        return self._loop.time()

    def wall_ns(self) -> int:
        """Return the wall time."""
        return int(self.clock.now().timestamp() * 1e9)

    def call_later(self, seconds: float, act: Callable[[], None]) -> Timer:
        """Call `act` in so many seconds."""
        return self._loop.call_later(seconds, act)

    def call_soon(self, act: Callable[[], None]) -> None:
        """Call `act` when what runs now has come to a wait."""
        self._loop.call_soon(act)

    def future(self) -> "asyncio.Future[int]":
        """Return something to wait for."""
        return self._loop.create_future()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task that ends no later than the host."""
        return self._tasks.spawn(name, work)
