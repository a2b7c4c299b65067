"""Connections to VMs that were used and are kept for a while: to open one takes a millisecond."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import structlog

from magsd.aio import Tasks, finish
from magsd.engine.base import Handle
from magsd.guest.shim import ShimConnection

_CONNECT_S: Final = 10.0
_KEEP_S: Final = 30.0

_Key = tuple[str, int]
"""A VM, and which life of its run it is."""

_log = structlog.get_logger()


class _Kept(NamedTuple):
    connection: ShimConnection
    end: asyncio.TimerHandle


class IdleConnections:
    """At most one for each VM, for half a minute after it was used last."""

    def __init__(self) -> None:
        self._kept: dict[_Key, _Kept] = {}
        self._tasks = Tasks(_report)

    @asynccontextmanager
    async def use(self, handle: Handle) -> AsyncIterator[ShimConnection]:
        """Have a connection to a VM for oneself inside the block.

        It ends with a block that fails, and with it all that was begun there.
        Raises `ShimError`, `OSError` and `TimeoutError` when there is none to be had.
        """
        key = (handle.vm, handle.epoch)
        connection = self._taken(key)
        if connection is None:
            async with asyncio.timeout(_CONNECT_S):
                connection = await ShimConnection.open(handle.run_directory, *key)
        try:
            yield connection
        except BaseException:
            await finish(connection.aclose())
            raise
        if key in self._kept or self._tasks.is_closed or not connection.is_open:
            await connection.aclose()
            return
        loop = asyncio.get_running_loop()
        self._kept[key] = _Kept(connection, loop.call_later(_KEEP_S, self._drop, key))

    async def aclose(self) -> None:
        """End all that are kept."""
        while self._kept:
            _, kept = self._kept.popitem()
            kept.end.cancel()
            await finish(kept.connection.aclose())
        await self._tasks.aclose()

    def _taken(self, key: _Key) -> ShimConnection | None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        kept.end.cancel()
        return kept.connection if kept.connection.is_open else None

    def _drop(self, key: _Key) -> None:
        kept = self._kept.pop(key)
        kept.end.cancel()
        self._tasks.spawn("idle connection", kept.connection.aclose())


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
