"""Requests that are held open, and how they end when the server stops.

A long poll answers with what it knows, an event stream ends and is resumed by
its client elsewhere or later: so a stop need not wait for either.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StoppingError(Exception):
    """The server stops: answer now."""


class Waits:
    """All waits of one server."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._is_stopping = False

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for something inside the block. Raises `StoppingError` at the server's stop."""
        if self._is_stopping:
            raise StoppingError
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._open.add(scope)
                try:
                    yield
                finally:
                    self._open.discard(scope)
        except TimeoutError:
            if scope.expired():
                raise StoppingError from None
            raise

    def stop(self) -> None:
        """End every wait, and let none begin."""
        self._is_stopping = True
        now = asyncio.get_running_loop().time()
        for scope in self._open:
            scope.reschedule(now)
