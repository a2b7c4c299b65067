"""One connection to a pretended VM as a socket: frames in both directions, and back-pressure."""

import asyncio
from typing import Final, cast

from typing_extensions import override

from magsd.engine.fake.client import Client
from magsd.engine.fake.shim import Shim
from magsd.guest.wire import Frame, FrameReader, WireError, encode

_UNSENT_MAX: Final = 256 << 10
_QUEUE_MAX: Final = 64 << 20
"""A connection with more than this unsent is closed."""
_FINISH_S: Final = 1.0
"""How long what is unsent at the end may take to leave."""


class ClientLink(asyncio.Protocol):
    """A connected Unix stream socket, for as long as it is."""

    def __init__(self, shim: Shim) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._client = Client(shim, self)
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._is_over = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # Not asserted: uvloop's transports are no instances of it.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_UNSENT_MAX)
        if not self._client.shim.connected(self._client):
            self._stop()

    @override
    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for frame in self._reader.feed(data):
                if self._is_over or self._client.shim.is_over:
                    return
                self._client.take(frame)
        except WireError:
            self._stop()

    @override
    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self._stop()

    @override
    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._may_write.clear()
        if self._transport is not None:
            # Whoever does not take the answers is not asked for more questions.
            self._transport.pause_reading()

    @override
    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._may_write.set()
        if self._transport is not None and not self._is_over:
            self._transport.resume_reading()
            self._client.tell_journal()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._is_over = True
        self._may_write.set()
        self._client.lost()

    # --- what the shim uses ------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """See `Carrier`."""
        return not self._may_write.is_set()

    def send(self, frame: Frame) -> None:
        """See `Carrier`."""
        if self._is_over or self._transport is None:
            return
        self._transport.write(encode(frame))
        if self._transport.get_write_buffer_size() > _QUEUE_MAX:
            self._stop()

    async def writable(self) -> None:
        """See `Carrier`."""
        await self._may_write.wait()

    def finish(self) -> None:
        """See `Carrier`."""
        self._is_over = True
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._client.shim.world.call_later(_FINISH_S, self._transport.abort)

    def _stop(self) -> None:
        self._is_over = True
        if self._transport is not None:
            self._transport.abort()
