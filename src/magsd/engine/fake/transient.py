"""A transient stream, from the side of the pretended agent: exec, read, write, control."""

import asyncio
import os
from collections.abc import Coroutine
from errno import ECONNREFUSED, EINVAL, ENOSPC
from typing import Any, Final, Protocol

from magsd.engine.fake import control
from magsd.engine.fake.commands import interpret
from magsd.engine.fake.machine import FILES_MAX, Machine, place
from magsd.engine.fake.program import Program
from magsd.engine.fake.request import ExecRequest
from magsd.guest.channels import Inbound, Outbound
from magsd.guest.wire import (
    PAYLOAD_MAX,
    Channel,
    Fields,
    Frame,
    Kind,
    WireError,
    pack_fields,
    parse_fields,
)

_OUTPUT: Final = (Channel.OUT, Channel.ERR)
_NOT_UNDERSTOOD: Final = "the agent cannot make sense of it"


class Way(Protocol):
    """The connection, as its streams know it."""

    @property
    def is_full(self) -> bool:
        """So much is unsent that who sends more has to wait."""

    async def writable(self) -> None:
        """Return when it is not full."""

    def send(self, frame: Frame) -> None:
        """Send a frame."""

    def forget(self, stream: "Transient") -> None:
        """Note that a stream is over."""


class Transient:
    """One transient stream of one connection."""

    def __init__(self, client: Way, stream: int, machine: Machine) -> None:
        self.id = stream
        self._client = client
        self._machine = machine
        self._inbound = Inbound()
        self._outbound = {channel: Outbound() for channel in _OUTPUT}
        self._changed = asyncio.Event()
        self._program: Program | None = None
        self._task: asyncio.Task[Any] | None = None
        self._written: bytearray | None = None
        self._path = ""
        self._is_over = False
        self._has_begun = False

    # --- what comes from the connection ---------------------------------------------

    def take(self, frame: Frame) -> None:
        """Receive a frame. Raises `WireError` when a connection may not send it."""
        match frame.kind:
            case Kind.DATA if frame.channel == Channel.IN:
                self._inbound.take(frame.value, frame.payload)
                self._machine.do((self, "input"), self._take_input)
            case Kind.EOF if frame.channel == Channel.IN:
                self._inbound.take_end(frame.value)
                self._machine.do((self, "input"), self._take_input)
            case Kind.CREDIT if frame.channel != Channel.IN:
                outbound = self._outbound[Channel(frame.channel)]
                if frame.value > outbound.sent + outbound.room:
                    outbound.take_credit(frame.value)
                    self._tell()
            case Kind.SIGNAL:
                number = frame.value
                self._machine.do((self, number), lambda: self._signal(number))
            case Kind.RESET:
                self.reset()
            case _:
                raise WireError(f"{frame.kind.name} of channel {frame.channel} on a stream")

    def begin(self, payload: bytes) -> None:
        """Begin what a payload asks for, inside."""
        self._has_begun = True
        try:
            fields = parse_fields(payload)
        except WireError:
            self.refuse(_NOT_UNDERSTOOD)
            return
        path = place("/", fields.get("path")) if fields.get("path") else ""
        match fields.word:
            case "exec" if fields.get("stdin") == "terminal":
                self.refuse("a simulated VM has no terminals")
            case "sftp" | "listen" | "accept":
                self.refuse(f"a simulated VM cannot do this: {fields.word}")
            case "dial":
                self._exit_by(ConnectionRefusedError(ECONNREFUSED, "no program listens here"))
            case "exec" if (request := ExecRequest.parse(payload)) is not None:
                self._exec(request)
            case "read" if path:
                self._run(self._read(path))
            case "write" if path:
                self._path, self._written = path, bytearray()
            case "control" if len(fields.words) > 1:
                self._control(fields)
            case _:
                self.refuse(_NOT_UNDERSTOOD)
        self._take_input()

    def refuse(self, reason: str) -> None:
        """End the stream with the agent's or the shim's refusal."""
        self._client.send(Frame(Kind.RESET, self.id, payload=pack_fields("", [("error", reason)])))
        self._end()

    def reset(self) -> None:
        """End the stream, and what runs in it: nobody is there to be told."""
        for key in (self, (self, "input")):
            self._machine.forget(key)
        if self._program is not None:
            self._program.abandon()
        if self._task is not None:
            self._task.cancel()
        self._end()

    # --- a program's input and output -------------------------------------------------

    async def write(self, channel: Channel, data: bytes) -> None:
        """Send output, as fast as the connection takes it."""
        outbound = self._outbound[channel]
        while data:
            if outbound.room == 0:
                await self._changed.wait()
            elif self._client.is_full:
                await self._client.writable()
            else:
                await self._machine.moving()
                piece = data[: min(outbound.room, PAYLOAD_MAX)]
                self._client.send(Frame(Kind.DATA, self.id, channel, outbound.sent, piece))
                outbound.sent += len(piece)
                data = data[len(piece) :]

    async def read(self) -> bytes:
        """Return input, at least a byte; nothing at its end."""
        while not self._inbound and not self._inbound.is_ended:
            await self._changed.wait()
        return self._read_held()

    def _read_held(self) -> bytes:
        data = self._inbound.read()
        if (limit := self._inbound.grant()) is not None:
            self._client.send(Frame(Kind.CREDIT, self.id, Channel.IN, limit))
        return data

    def _take_input(self) -> None:
        if self._is_over or not self._has_begun:
            return
        if self._program is not None and self._program.input is not None:
            self._tell()
            return
        data = self._read_held()
        if self._written is None:
            return  # it has no input
        if len(self._written) + len(data) > FILES_MAX:
            self._written.clear()
            self._exit_by(OSError(ENOSPC, "No space left on device"))
            return
        self._written += data
        if self._inbound.is_ended:
            try:
                self._machine.write(self._path, bytes(self._written))
            except OSError as error:
                self._exit_by(error)
            else:
                self._exit(0)

    def _signal(self, number: int) -> None:
        if self._program is not None:
            self._program.signal(number)

    # --- what it may be asked for -------------------------------------------------------

    def _exec(self, request: ExecRequest) -> None:
        self._program = Program(
            self._machine,
            request.arguments,
            request.environment,
            request.cwd,
            self,
            self if request.has_input else None,
            self._exec_ended,
        )
        self._program.begin(interpret)

    def _exec_ended(self, wait_status: int) -> None:
        self._end_channels()
        self._exit(wait_status)

    async def _read(self, path: str) -> None:
        try:
            content = self._machine.read(path)
        except OSError as error:
            self._end_channels()
            self._exit_by(error)
            return
        await self.write(Channel.OUT, content)
        self._end_channels()
        self._exit(0)

    def _control(self, fields: Fields) -> None:
        try:
            answer = control.answer(self._machine, fields)
        except OSError as error:
            self._exit_by(error)
        else:
            if not self._is_over:
                self._exit(0, answer)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._machine.world.spawn(f"stream {self.id}", work)

    # --- its end ---------------------------------------------------------------------------

    def _end_channels(self) -> None:
        for channel in _OUTPUT:
            self._client.send(Frame(Kind.EOF, self.id, channel, self._outbound[channel].sent))

    def _exit(self, value: int, fields: list[tuple[str, str]] | None = None) -> None:
        payload = pack_fields("", fields or [])
        self._client.send(Frame(Kind.EXIT, self.id, value=value, payload=payload))
        self._end()

    def _exit_by(self, error: OSError) -> None:
        number = error.errno or EINVAL
        self._exit(number, [("error", error.strerror or os.strerror(number))])

    def _end(self) -> None:
        self._is_over = True
        self._client.forget(self)

    def _tell(self) -> None:
        self._changed.set()
        self._changed.clear()
