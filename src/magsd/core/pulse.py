"""A count per key that rises when something happened, and waiters for the next rise.

Costs nothing for keys that nobody listens to. What happened is for the
listener to find out: it remembers the count, looks, and waits for another.
"""

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Pulse:
    """One key's count, for as long as somebody listens."""

    def __init__(self) -> None:
        self.count = 0
        self.listeners = 0
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Raise the count and wake all who wait."""
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def changed(self, seen: int) -> None:
        """Return when the count is another than `seen`."""
        while self.count == seen:
            await self._next.wait()


class Pulses:
    """Pulses by key."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Pulse] = {}

    def beat(self, key: Hashable) -> None:
        """Tell the listeners of `key`, if there are any."""
        if (pulse := self._by_key.get(key)) is not None:
            pulse.beat()

    @contextmanager
    def listen(self, key: Hashable) -> Iterator[Pulse]:
        """Be told of every beat of `key` inside the block."""
        pulse = self._by_key.setdefault(key, Pulse())
        pulse.listeners += 1
        try:
            yield pulse
        finally:
            pulse.listeners -= 1
            if not pulse.listeners:
                del self._by_key[key]
