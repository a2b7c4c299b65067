"""A stream between a caller here and the agent, back-pressured both ways.

Owns the stream's state and its waits. Ids and the way of frames belong to
`shim`; what to open a stream for is told by `streams`.
"""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

from magsd.guest.channels import Inbound, Outbound
from magsd.guest.link import Change, Link, ShimError
from magsd.guest.wire import (
    PAYLOAD_MAX,
    RESIZE,
    Channel,
    Fields,
    Frame,
    Kind,
    WireError,
    parse_fields,
)

_REASON_MAX: Final = 500
_ERRNO_MAX: Final = 4096


class Exit(NamedTuple):
    """How the far end ended a stream."""

    value: int
    """A wait status, or an errno, by what was asked for."""
    fields: Fields

    def check(self, what: str) -> None:
        """Raise `ShimError` when the value is an errno; `what` names what was asked for."""
        if self.value == 0:
            return
        known = os.strerror(self.value) if self.value < _ERRNO_MAX else "an unknown error"
        raise ShimError(f"{what}: {self.fields.get('error', known)[:_REASON_MAX]}")


class Stream:
    """One transient stream. It ends with `aclose`, best by `async with`.

    Every method but `aclose` raises `ShimError` once the stream was reset or
    the connection has ended. Any of them may be cancelled; the stream is then
    of use still, only how much of a cancelled `write` was sent is not known.
    """

    def __init__(self, link: Link, stream_id: int, on_over: Callable[[int], None]) -> None:
        self._link = link
        self._id = stream_id
        self._on_over = on_over
        self._inbound = {Channel.OUT: Inbound(), Channel.ERR: Inbound()}
        self._outbound = Outbound()
        self._exit: Exit | None = None
        self._lost: str | None = None
        self._changed = Change()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- for callers -----------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Nothing more comes from the far end; what came before can be read."""
        return self._exit is not None or self._lost is not None

    @property
    def is_quiet(self) -> bool:
        """Both ends may still send, and nothing has come that was not read."""
        inbound = self._inbound[Channel.OUT]
        is_open = not self.is_over and self._link.end_reason is None
        return is_open and not inbound and not inbound.is_ended and not self._outbound.is_ended

    async def read(self, channel: Channel = Channel.OUT) -> bytes:
        """Return what has come on `channel`, at least a byte; nothing at its end."""
        inbound = self._inbound[channel]
        while not inbound:
            if inbound.is_ended or self._exit is not None:
                return b""
            await self._change()
        return self._take_held(channel)

    async def read_any(self) -> tuple[Channel, bytes] | None:
        """Return what has come on any channel, and which; None when all have ended."""
        while True:
            for channel, inbound in self._inbound.items():
                if inbound:
                    return channel, self._take_held(channel)
            if self._exit is not None or all(c.is_ended for c in self._inbound.values()):
                return None
            await self._change()

    async def write(self, data: bytes) -> None:
        """Send `data` on channel in, as fast as it is taken.

        Returns early when the far end ended the stream: as with a pipe whose
        reader has left, the rest has nowhere to go; `exit` tells how it ended.
        """
        view = memoryview(data)
        while view and self._exit is None:
            self._check_may_write()
            if self._outbound.room == 0:
                await self._change()
            elif self._link.is_full:
                await self._link.writable()
            else:
                count = min(self._outbound.room, PAYLOAD_MAX)
                self._send_data(bytes(view[:count]))
                view = view[count:]

    async def write_eof(self) -> None:
        """End channel in. Asked again it does nothing."""
        if self._outbound.is_ended or self._exit is not None:
            return
        self._check_may_write()
        self._outbound.is_ended = True
        self._link.send(Frame(Kind.EOF, self._id, Channel.IN, self._outbound.sent))

    async def signal(self, number: int) -> None:
        """Send a signal to the process group of an exec."""
        self._check()
        if self._exit is None:
            self._link.send(Frame(Kind.SIGNAL, self._id, value=number))

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal of an exec its size, each below 65536."""
        await self.signal(RESIZE << 32 | columns << 16 | rows)

    async def exit(self) -> Exit:
        """Wait until the far end has ended the stream. It does not while output is not read."""
        while self._exit is None:
            await self._change()
        return self._exit

    async def aclose(self) -> None:
        """Reset the stream unless it is over; the far end kills what runs in it. Idempotent."""
        if self.is_over:
            return
        if self._link.end_reason is None:
            self._link.send(Frame(Kind.RESET, self._id))
        self._end("it was closed here")

    # --- for the connection ----------------------------------------------------

    def take(self, frame: Frame) -> None:
        """Receive a frame. Raises `WireError` when the far end may not send it."""
        match frame.kind:
            case Kind.DATA:
                self._inbound_of(frame).take(frame.value, frame.payload)
            case Kind.EOF:
                self._inbound_of(frame).take_end(frame.value)
            case Kind.CREDIT:
                if frame.channel != Channel.IN:
                    raise WireError(f"CREDIT for channel {frame.channel}, which is sent to here")
                self._outbound.take_credit(frame.value)
            case Kind.EXIT:
                self._exit = Exit(frame.value, parse_fields(frame.payload))
                self._on_over(self._id)
            case Kind.RESET:
                text = parse_fields(frame.payload).get("error", "the far end reset it")
                self._end(text[:_REASON_MAX])
            case _:
                raise WireError(f"{frame.kind.name} cannot come on a stream")
        self._changed.tell()

    def lose(self) -> None:
        """Note that the connection has ended."""
        self._changed.tell()

    # --- inside ----------------------------------------------------------------

    def _end(self, reason: str) -> None:
        self._lost = reason
        self._on_over(self._id)
        self._changed.tell()

    def _check(self) -> None:
        if self._lost is not None:
            raise ShimError(f"the stream has ended: {self._lost}")
        if self._exit is None:
            self._link.check()

    def _check_may_write(self) -> None:
        self._check()
        if self._outbound.is_ended:
            raise ShimError("the stream's input was ended here")

    async def _change(self) -> None:
        """Wait until something has happened to the stream; raise when nothing can any more."""
        self._check()
        await self._changed.wait()

    def _inbound_of(self, frame: Frame) -> Inbound:
        if frame.channel == Channel.IN:
            raise WireError(f"{frame.kind.name} for channel in, which is sent from here")
        return self._inbound[Channel(frame.channel)]

    def _take_held(self, channel: Channel) -> bytes:
        inbound = self._inbound[channel]
        data = inbound.read()
        if not self.is_over and self._link.end_reason is None and (limit := inbound.grant()):
            self._link.send(Frame(Kind.CREDIT, self._id, channel, limit))
        return data

    def _send_data(self, data: bytes) -> None:
        self._link.send(Frame(Kind.DATA, self._id, Channel.IN, self._outbound.sent, data))
        self._outbound.sent += len(data)
