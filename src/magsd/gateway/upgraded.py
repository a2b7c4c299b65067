"""A connection after `101 Switching Protocols`: raw bytes both ways.

It keeps its VM awake while it moves something. When it has not for a while
the lease is let go, and taken again before what comes then is passed on.
"""

import asyncio

from magsd.aio import Clock
from magsd.gateway.client_socket import ClientSocket, GoneError, StalledError
from magsd.gateway.hold import Hold
from magsd.gateway.ingress_settings import IngressSettings
from magsd.gateway.upstreams import Upstream
from magsd.guest.shim import ShimError
from magsd.model.errors import MagsError


async def carry(
    client: ClientSocket, upstream: Upstream, hold: Hold, settings: IngressSettings, clock: Clock
) -> None:
    """Pass bytes until both sides have ended; cut the client off when one side breaks."""
    carrier = _Carrier(client, upstream, hold, settings, clock)
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(carrier.watch(), name="upgraded-watch")
            inward = group.create_task(carrier.inward(), name="upgraded-inward")
            await carrier.outward()
            await inward
            watch.cancel()
    except* (GoneError, StalledError, ShimError, MagsError):
        client.reset()


class _Carrier:
    """One connection."""

    def __init__(
        self,
        client: ClientSocket,
        upstream: Upstream,
        hold: Hold,
        settings: IngressSettings,
        clock: Clock,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._hold = hold
        self._settings = settings
        self._clock = clock
        self._moved_at = clock.monotonic()
        self._is_half = False
        """One side has ended: what the other still has to say is waited for, but not for ever."""

    async def inward(self) -> None:
        """Pass what the client sends."""
        while data := await self._client.read():
            await self._moved()
            await self._upstream.stream.write(data)
        self._is_half = True
        await self._upstream.stream.write_eof()

    async def outward(self) -> None:
        """Pass what the server inside sends."""
        while data := self._upstream.take_rest() or await self._upstream.stream.read():
            await self._moved()
            self._client.write(data)
            await self._client.drained()
        self._is_half = True
        self._client.write_eof()

    async def watch(self) -> None:
        """Let the lease go each time that nothing was moved for a while. Raises `StalledError`
        when that happens after one side has ended."""
        while True:
            still_s = self._clock.monotonic() - self._moved_at
            if still_s >= self._settings.upgrade_idle_s:
                if self._is_half:
                    raise StalledError
                await self._hold.let_go()
                still_s = 0.0
            await self._clock.sleep(self._settings.upgrade_idle_s - still_s)

    async def _moved(self) -> None:
        self._moved_at = self._clock.monotonic()
        if not self._hold.is_held:
            await self._hold.take()
