"""A client's connection: bytes both ways with back-pressure, its end, and how long it may stall."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from typing_extensions import override

from magsd.guest.link import Change

_UNREAD_MAX: Final = 64 * 1024
"""Bytes that wait in the process before the client is not read further."""
_UNSENT_MAX: Final = 128 * 1024
_LINGER_S: Final = 2.0
"""How long a client that still sends may do so before it is cut off: at once, it would lose the
answer it was sent."""
_LINGER_MAX_BYTES: Final = 1 << 20
_NOT_LINGERING: Final = struct.pack("ii", 1, 0)
_PROBE_AFTER_S: Final = 60


class StalledError(Exception):
    """The client has neither sent nor taken anything for too long."""


class GoneError(Exception):
    """The client's connection has ended."""


class ClientSocket(asyncio.Protocol):
    """One connection. `on_open` is called when it stands, TLS included."""

    def __init__(self, on_open: Callable[["ClientSocket"], None], stall_s: float) -> None:
        self._on_open = on_open
        self._stall_s = stall_s
        self._transport: asyncio.Transport | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._is_ended = False
        self._is_lost = asyncio.Event()
        self._is_reading = True
        self._may_write = asyncio.Event()
        self._changed = Change()
        self.on_gone: Callable[[], None] | None = None
        """Called when the client has ended its side, or the connection broke; once."""

    # --- what the event loop calls ---------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_UNSENT_MAX)
        self._may_write.set()
        self._probe()
        self._on_open(self)

    @override
    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._pieces.append(bytes(data))
        self._held += len(data)
        if self._held > _UNREAD_MAX and self._is_reading:
            self._is_reading = False
            self._open.pause_reading()
        self._changed.tell()

    @override
    def eof_received(self) -> bool:
        """See `asyncio.Protocol`. Who ends its side may read still, where that can be: not in TLS."""
        self._end()
        return self._open.get_extra_info("sslcontext") is None

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
        self._is_lost.set()
        self._may_write.set()
        self._end()

    # --- for whoever serves it -------------------------------------------------

    @property
    def peer(self) -> str:
        """The address of the other end."""
        name = self._open.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def is_ended(self) -> bool:
        """Nothing more comes but what is held."""
        return self._is_ended

    @property
    def is_readable(self) -> bool:
        """Whether `read` would not wait."""
        return bool(self._pieces) or self._is_ended

    async def read(self) -> bytes:
        """Return what has come, at least a byte; nothing at the end."""
        while not self._pieces:
            if self._is_ended:
                return b""
            await self._changed.wait()
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if not self._is_reading and not self._is_lost.is_set():
            self._is_reading = True
            self._open.resume_reading()
        return data

    def push_back(self, data: bytes) -> None:
        """Have `data` read again, before what comes."""
        if data:
            self._pieces.appendleft(data)
            self._held += len(data)

    async def read_soon(self) -> bytes:
        """Return what `read` does. Raises `StalledError` when it takes too long."""
        if self.is_readable:
            return await self.read()
        try:
            async with asyncio.timeout(self._stall_s):
                return await self.read()
        except TimeoutError:
            raise StalledError from None

    def write(self, data: bytes) -> None:
        """Send. Raises `GoneError`. Never waits: who sends more than a little calls `drained`."""
        if self._is_lost.is_set():
            raise GoneError
        self._open.write(data)

    async def drained(self) -> None:
        """Wait until not too much is unsent. Raises `StalledError`, `GoneError`."""
        if not self._may_write.is_set():
            await self._write_on()
        if self._is_lost.is_set():
            raise GoneError

    def write_eof(self) -> None:
        """End this side; where the other cannot go on without it, as in TLS, both."""
        if self._is_lost.is_set():
            return
        if self._open.can_write_eof():
            self._open.write_eof()
        else:
            self._open.close()

    async def aclose(self, *, is_sending: bool) -> None:
        """End the connection when what was sent has left, within bounds; idempotent.

        `is_sending`: the client may be sending still.
        """
        if self._transport is None or self._transport.is_closing():
            return
        try:
            if is_sending or self._pieces:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_S):
                        await self._linger()
            self._open.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._stall_s):
                    await self._is_lost.wait()
        finally:
            self._open.abort()

    def close(self) -> None:
        """End the connection now, if nothing is unsent."""
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._transport.close()

    def reset(self) -> None:
        """Cut the connection so that the client sees it: no end of an answer looks like this."""
        if self._transport is None or self._transport.is_closing():
            return
        sock = self._open.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOT_LINGERING)
        self._open.abort()

    # --- inside ----------------------------------------------------------------

    @property
    def _open(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _end(self) -> None:
        self._is_ended = True
        self._changed.tell()
        if self.on_gone is not None:
            gone, self.on_gone = self.on_gone, None
            gone()

    def _probe(self) -> None:
        """Have the kernel find out when a client that is silent is there no more."""
        sock = self._open.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)

    async def _write_on(self) -> None:
        """Wait until writing may go on, as long as the client takes something now and then."""
        while not self._may_write.is_set():
            unsent = self._open.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._may_write.wait()
            except TimeoutError:
                if self._open.get_write_buffer_size() >= unsent:
                    raise StalledError from None

    async def _linger(self) -> None:
        """Take what the client still sends, so that it reads its answer."""
        if self._open.can_write_eof():
            self._open.write_eof()
        taken = 0
        while taken <= _LINGER_MAX_BYTES and (data := await self.read()):
            taken += len(data)
