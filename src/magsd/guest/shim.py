"""A client of a VM's shim: verbs, durable streams, the journal's growth, streams to the agent.

One `ShimConnection` is one connection to the socket `sock` of a run directory.
The shim serves several at once; what a connection opened as transient ends
with it, durable streams do not. The frames' way is `link`'s, a stream's inside
`transient`'s; what an agent can be asked is in `streams`.
"""

import asyncio
import json
import math
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

from magsd.guest.link import Change, Link, ShimError, StartRefusedError
from magsd.guest.state import StreamState, wait_status
from magsd.guest.transient import Exit, Stream
from magsd.guest.wire import (
    DURABLE_ID_MAX,
    TRANSIENT_ID_MIN,
    VERSION,
    Fields,
    Frame,
    Kind,
    WireError,
    pack_fields,
    parse_fields,
    parse_number,
)

__all__ = ["Exit", "ShimConnection", "ShimError", "StartRefusedError", "Stream"]

_DURABLE: Final = 1
"""In the field `channel` of an OPEN."""
_RUNNING: Final = 1
_OVER: Final = 2
_READY_ID: Final = 0
_LISTENING_SOCKET: Final = "sock"
_RECORD: Final = "record.json"


class ShimConnection:
    """A connection to a shim.

    Any of its methods may be cancelled at any moment and the connection is of
    use as before; all that wait raise `ShimError` when the connection ends.
    """

    def __init__(self) -> None:
        self._link = Link(self._take, self._lose)
        self._greeting = Fields()
        self._ready: Fields | None = None
        self._requests: dict[int, asyncio.Future[Fields | None]] = {}
        self._next_request = _READY_ID + 1
        self._asks: dict[int, list[asyncio.Future[Fields | None]]] = {}
        self._durables: dict[int, StreamState] = {}
        self._streams: dict[int, Stream] = {}
        self._next_stream = TRANSIENT_ID_MIN
        self._journal_end = 0
        self._on_journal: Callable[[int], None] | None = None
        self._changed = Change()

    @classmethod
    async def open(
        cls, run_directory: Path, vm: str | None = None, epoch: int | None = None
    ) -> "ShimConnection":
        """Connect to the shim of a run directory and greet it.

        Its VM is told from `record.json` there where the caller does not tell
        it. Raises `ShimError` when no shim answers, or one of another VM.
        """
        if vm is None or epoch is None:
            vm, epoch = _recorded(run_directory)
        async with AsyncExitStack() as undo:
            connection = await cls.from_socket(connected(run_directory), hello=False)
            undo.push_async_callback(connection.aclose)
            await connection.hello(vm, epoch)
            undo.pop_all()
        return connection

    @classmethod
    async def from_socket(cls, sock: socket.socket, *, hello: bool = True) -> "ShimConnection":
        """Take over a connected socket, also when this fails. With `hello`, greet whatever VM
        is there. Raises `ShimError`."""
        connection = cls()
        await connection._link.attach(sock)
        if hello:
            async with AsyncExitStack() as undo:
                undo.push_async_callback(connection.aclose)
                await connection.hello(None, None)
                undo.pop_all()
        return connection

    # --- verbs -----------------------------------------------------------------

    async def ready(self) -> Fields:
        """Wait for what a shim that is being started says of itself (`pid`).

        Raises `StartRefusedError` with its text when it could not.
        """
        while self._ready is None:
            await self._change()
        if error := self._ready.get("error"):
            raise StartRefusedError(error, self._ready.number("pid"))
        return self._ready

    async def hello(self, vm: str | None, epoch: int | None) -> None:
        """Greet the shim; from then on it tells of durable streams and the journal.

        When this returns, all that is over is known to `durable`. None takes
        any VM. Raises `ShimError` if it is another VM.
        """
        fields = {"version": str(VERSION)}
        if vm is not None:
            fields["vm"] = vm
        if epoch is not None:
            fields["epoch"] = str(epoch)
        greeting = await self.request("hello", **fields)
        try:
            self._grow(greeting.number("journal"))
            over = self._take_durables(greeting.all("durable"))
        except WireError as error:
            self._link.end(f"the protocol was broken: {error}")
            raise ShimError(f"the shim's greeting breaks the protocol: {error}") from error
        self._greeting = greeting
        for stream in over:
            await self.exited(stream)

    @property
    def agent(self) -> str:
        """The version of the VM's agent; empty before it joined or without a greeting."""
        return self._greeting.get("agent")

    async def request(self, verb: str, /, **fields: str) -> Fields:
        """Ask the shim and return its answer. Raises `ShimError` when it refuses.

        `kill` is answered by the end of the connection, which is `ShimError` too.
        """
        await self._link.writable()
        number = self._next_request
        self._next_request += 1
        payload = pack_fields(verb, fields.items())
        self._link.send(Frame(Kind.REQUEST, 0, value=number, payload=payload))
        # One that is given up stays here, so that its reply is known as such.
        reply = self._requests[number] = asyncio.get_running_loop().create_future()
        return await self._answered(reply)

    # --- durable streams and the journal ---------------------------------------

    async def open_durable(self, stream: int, payload: bytes, deadline_s: float = 0) -> None:
        """Open durable stream `stream`, unless it is open or over already; return when it is.

        `payload` asks for an exec; `deadline_s` from now it is ended (0: never).
        Raises `ShimError` when the shim refuses, `ValueError` for an id out of range.
        """
        if not 1 <= stream <= DURABLE_ID_MAX:
            raise ValueError(f"not the id of a durable stream: {stream}")
        await self._link.writable()
        deadline_ms = math.ceil(deadline_s * 1000)
        self._link.send(Frame(Kind.OPEN, stream, _DURABLE, deadline_ms, payload))
        answer = asyncio.get_running_loop().create_future()
        self._asks.setdefault(stream, []).append(answer)
        await self._answered(answer)

    def durable(self, stream: int) -> StreamState | None:
        """Return what this connection has been told of a durable stream."""
        return self._durables.get(stream)

    async def exited(self, stream: int) -> StreamState:
        """Wait until a durable stream is over."""
        while (state := self._durables.get(stream)) is None or not state.is_over:
            await self._change()
        return state

    async def signal(self, stream: int, number: int) -> None:
        """Send a signal to the process group of a durable stream."""
        await self._link.writable()
        self._link.send(Frame(Kind.SIGNAL, stream, value=number))

    @property
    def journal_end(self) -> int:
        """How far the journal reached when the shim last told."""
        return self._journal_end

    async def journal_grown(self, beyond: int) -> int:
        """Wait until the journal reaches further than `beyond`; return how far."""
        while self._journal_end <= beyond:
            await self._change()
        return self._journal_end

    def on_journal(self, callback: Callable[[int], None] | None) -> None:
        """Call `callback` with the journal's end each time it has grown. None: no more."""
        self._on_journal = callback

    # --- transient streams, and the end ----------------------------------------

    async def open_stream(self, payload: bytes) -> Stream:
        """Ask the agent for a stream, as `payload` says; its answer is on the stream itself."""
        await self._link.writable()
        number = self._next_stream
        self._link.send(Frame(Kind.OPEN, number, payload=payload))
        self._next_stream += 1
        stream = self._streams[number] = Stream(self._link, number, self._over)
        return stream

    @property
    def is_open(self) -> bool:
        """Whether it has not ended, as far as is known here."""
        return self._link.end_reason is None

    async def closed(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        await self._link.lost()

    async def aclose(self) -> None:
        """End the connection: its transient streams are reset, durable ones go on. Idempotent."""
        await self._link.aclose()

    # --- what is received ------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        """Receive a frame. Raises `WireError` when the shim may not send it."""
        if (stream := self._streams.get(frame.stream)) is not None:
            stream.take(frame)
        elif frame.stream >= TRANSIENT_ID_MIN:
            # One that is over: the frame crossed its end.
            if frame.stream >= self._next_stream:
                raise WireError(f"{frame.kind.name} for a stream that was never opened")
        elif frame.stream == 0:
            self._take_own(frame)
        else:
            self._take_durable(frame)

    def _take_own(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA and not frame.payload:
            self._grow(frame.value)
        elif frame.kind is not Kind.REPLY:
            raise WireError(f"{frame.kind.name} cannot come on stream 0")
        elif frame.value == _READY_ID:
            self._ready = parse_fields(frame.payload)
            self._changed.tell()
        elif (request := self._requests.pop(frame.value, None)) is None:
            raise WireError("a reply that nobody waits for")
        else:
            reply = parse_fields(frame.payload)
            if not request.done():
                request.set_result(reply)

    def _take_durable(self, frame: Frame) -> None:
        stream = frame.stream
        if stream > DURABLE_ID_MAX:
            raise WireError(f"no stream has the id {stream}")
        match frame.kind:
            case Kind.OPEN if frame.channel == _DURABLE and frame.value in (_RUNNING, _OVER):
                self._durables.setdefault(stream, StreamState(stream, is_over=False))
                self._answer(stream, Fields())
            case Kind.RESET:
                text = parse_fields(frame.payload).get("error", "the shim opened no stream")
                self._answer(stream, Fields(pairs=(("error", text),)))
            case Kind.EXIT:
                self._durables[stream] = _ended(frame, parse_fields(frame.payload))
            case _:
                raise WireError(f"{frame.kind.name} cannot come on a durable stream")
        self._changed.tell()

    def _take_durables(self, told: list[str]) -> list[int]:
        """Note the durable streams of a greeting; return those that are over."""
        over = []
        for text in told:
            number, _, state = text.partition(":")
            stream = parse_number(number)
            if not 1 <= stream <= DURABLE_ID_MAX:
                raise WireError(f"no durable stream has the id {stream}")
            self._durables.setdefault(stream, StreamState(stream, is_over=False))
            if parse_number(state) == _OVER:
                over.append(stream)
        return over

    def _answer(self, stream: int, answer: Fields) -> None:
        for ask in self._asks.pop(stream, []):
            if not ask.done():
                ask.set_result(answer)

    def _grow(self, end: int) -> None:
        if end > self._journal_end:
            self._journal_end = end
            self._changed.tell()
            if self._on_journal is not None:
                self._on_journal(end)

    def _over(self, number: int) -> None:
        self._streams.pop(number, None)

    def _lose(self) -> None:
        """Wake all who wait: the connection has ended."""
        waiting = [*self._requests.values(), *(ask for asks in self._asks.values() for ask in asks)]
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for stream in self._streams.values():
            stream.lose()
        self._changed.tell()

    async def _answered(self, answer: asyncio.Future[Fields | None]) -> Fields:
        """Wait for an answer that is not an error; None stands for the connection's end."""
        fields = await answer
        if fields is None:
            self._link.check()
        return _checked(fields or Fields())

    async def _change(self) -> None:
        self._link.check()
        await self._changed.wait()


def _checked(reply: Fields) -> Fields:
    if error := reply.get("error"):
        raise ShimError(error)
    return reply


def _ended(frame: Frame, fields: Fields) -> StreamState:
    return StreamState(
        stream=frame.stream,
        is_over=True,
        wait_status=wait_status(frame.value),
        has_timed_out=fields.number("timed_out") != 0,
        ended_ns=fields.number("ended_ns"),
        out_bytes=fields.number("out"),
        err_bytes=fields.number("err"),
    )


def _recorded(run_directory: Path) -> tuple[str | None, int | None]:
    """Return which VM, and which life of its run, `record.json` says lives there."""
    try:
        record = json.loads((run_directory / _RECORD).read_bytes())
        return str(record["vm"]), int(record["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def connected(run_directory: Path) -> socket.socket:
    """Connect to the socket of a run directory; nothing is said yet. Raises `ShimError`.

    By way of a descriptor of the folder: the path of a socket ends at 107 bytes.
    """
    with ExitStack() as undo:
        try:
            folder = os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, folder)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(sock.close)
            # Never waits: it connects at once, or fails because too many wait before it.
            sock.setblocking(False)
            sock.connect(f"/proc/self/fd/{folder}/{_LISTENING_SOCKET}")
        except OSError as error:
            raise ShimError(f"no shim answers in {run_directory}: {error}") from error
        undo.pop_all()
        os.close(folder)
    return sock
