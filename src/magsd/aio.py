"""Tasks with a name and an owner, a clock that tests can hold, and back-off.

The only module that calls `asyncio.create_task`.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

_Result = TypeVar("_Result")


class Clock(Protocol):
    """The time, as code outside this module may know it."""

    def now(self) -> datetime:
        """Return the wall time, UTC."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The host's clock."""

    def now(self) -> datetime:
        """Return the wall time, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        await asyncio.sleep(seconds)


class Tasks:
    """An owner of background tasks: each has a name, and an end no later than `aclose`.

    A task that raises reports once through `on_error` and ends; its siblings go on.
    """

    def __init__(self, on_error: Callable[[str, BaseException], None]) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_error = on_error
        self._is_closed = False

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start `work` under `name`. Raises `RuntimeError` after `aclose`."""
        if self._is_closed:
            work.close()
            raise RuntimeError(f"cannot start {name}: the owner is closing")
        # In a context of its own: what is bound to a request's is not true of what it sets off.
        task = asyncio.create_task(work, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(task.get_name(), error)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be started any more."""
        return self._is_closed

    async def aclose(self) -> None:
        """Cancel what runs and wait until all of it has ended."""
        self._is_closed = True
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def finish(work: Awaitable[_Result]) -> _Result:
    """Run `work` to its end even when the caller is cancelled meanwhile.

    The cancellation is raised again afterwards. For undo and other steps that
    must not be left half done.
    """
    inner = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not inner.done():
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError as error:
            if inner.cancelled():
                raise
            cancelled = error
        except BaseException:  # noqa: BLE001 - read again from `inner` below
            break
    if cancelled is not None:
        inner.exception()
        raise cancelled
    return inner.result()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Return what `work` returns, or None when `event` came first.

    `work` is cancelled then, and has ended on return; a result it came to all
    the same is returned.
    """
    return await unless_done(event.wait(), work)


async def unless_done(
    other: Coroutine[Any, Any, Any], work: Coroutine[Any, Any, _Result]
) -> _Result | None:
    """Return what `work` returns, or None when `other` came to its end first.

    Both have ended on return, cancelled where they had not; a result that
    `work` came to all the same is returned.
    """
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(other)
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.wait((working, waiting))
        if not working.cancelled():
            working.exception()  # Seen, also when this ends by a cancellation.
    return None if working.cancelled() else working.result()


class SingleFlight:
    """One running call per key: whoever asks meanwhile gets the same result."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def do(self, key: Hashable, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return `await call()`, or the result of the call that runs for `key` already."""
        if (running := self._running.get(key)) is None:
            running = asyncio.ensure_future(call())
            self._running[key] = running
            running.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(running)

    async def idle(self) -> None:
        """Return when no call runs, whoever began it and asks for it no more."""
        while self._running:
            await asyncio.wait(list(self._running.values()))


def backoff_s(attempt: int, first_s: float = 0.1, most_s: float = 30.0) -> float:
    """Return how long to wait before try `attempt` (0, 1, …): doubled each time, with jitter."""
    return float(min(most_s, first_s * 2 ** min(attempt, 32)) * random.uniform(0.5, 1.0))  # noqa: S311
