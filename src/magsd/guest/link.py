"""One connection to a shim as frames: both directions, back-pressure, and its end.

What the frames mean is decided by who gives the callbacks (`shim`). Reading is
done by the event loop itself: there is no task that could be lost.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from typing_extensions import override

from magsd.guest.wire import Frame, FrameReader, WireError, encode

_UNSENT_MAX: Final = 256 * 1024
"""Bytes that wait in the process before senders have to."""
_CLOSE_S: Final = 1.0
"""How long what is unsent may take to leave when a connection is closed."""


class ShimError(Exception):
    """The shim or the agent refused, or the connection broke or has ended."""


class StartRefusedError(ShimError):
    """A shim could not do what its plan says.

    `pid` is the process that said so, a child of whoever started it; 0 when
    it was the one that was started.
    """

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class Change(asyncio.Event):
    """Wakes all who wait at that moment; they look again whether it concerns them."""

    def tell(self) -> None:
        """Wake them."""
        self.set()
        self.clear()


class Link(asyncio.Protocol):
    """A connected Unix stream socket that speaks the wire."""

    def __init__(self, on_frame: Callable[[Frame], None], on_end: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_end = on_end
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._may_write = asyncio.Event()
        self._is_lost = asyncio.Event()
        self.end_reason: str | None = None
        """Why the connection is of no use any more; None while it is."""

    async def attach(self, sock: socket.socket) -> None:
        """Take over a connected socket, also when this fails. Raises `ShimError`."""
        try:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: self, sock=sock)
        except BaseException as error:
            self.end("it was not opened")
            if self._transport is None:
                sock.close()
            if isinstance(error, OSError):
                raise ShimError(f"the shim cannot be reached: {error}") from error
            raise

    # --- what the event loop calls ---------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # Not asserted: uvloop's transports are no instances of it.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_UNSENT_MAX)
        self._may_write.set()

    @override
    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for frame in self._reader.feed(data):
                if self.end_reason is not None:
                    return
                self._on_frame(frame)
        except WireError as error:
            self.end(f"the protocol was broken: {error}")

    @override
    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self.end("the shim closed it")

    @override
    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._may_write.clear()

    @override
    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._may_write.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.end(f"it broke: {exc}" if exc else "the shim closed it")
        self._is_lost.set()

    # --- what this side does ---------------------------------------------------

    def check(self) -> None:
        """Raise `ShimError` when the connection has ended."""
        if self.end_reason is not None:
            raise ShimError(f"the connection to the shim has ended: {self.end_reason}")

    @property
    def is_full(self) -> bool:
        """So much is unsent that senders have to wait for `writable`."""
        return not self._may_write.is_set()

    async def writable(self) -> None:
        """Wait until not too much is unsent. Raises `ShimError` when the connection has ended."""
        await self._may_write.wait()
        self.check()

    def send(self, frame: Frame) -> None:
        """Send a frame after those sent before. Raises `ShimError` when the connection has ended,
        `ValueError` when it is none.

        Never waits: who sends more than a little calls `writable` before.
        """
        self.check()
        assert self._transport is not None
        self._transport.write(encode(frame))

    def end(self, reason: str) -> None:
        """End the connection now, if it has not ended, and drop what is unsent."""
        self._stop(reason)
        if self._transport is not None:
            self._transport.abort()

    async def lost(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        await self._is_lost.wait()

    async def aclose(self) -> None:
        """End the connection; what was sent still leaves when the shim takes it soon."""
        self._stop("it was closed here")
        if self._transport is None:
            return
        self._transport.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.lost()
        except TimeoutError:
            pass
        finally:
            self._transport.abort()
        await self.lost()

    def _stop(self, reason: str) -> None:
        if self.end_reason is None:
            self.end_reason = reason
            self._may_write.set()
            self._on_end()
