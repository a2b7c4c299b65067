"""A durable stream: an exec whose output goes to the journal, and which ends at its deadline."""

import signal
from typing import Final, Protocol

from magsd.engine.fake.commands import interpret
from magsd.engine.fake.files import DATA, EXIT
from magsd.engine.fake.machine import Machine
from magsd.engine.fake.program import Program
from magsd.engine.fake.request import Bucket, ExecRequest
from magsd.engine.fake.world import Timer, World
from magsd.guest.state import EndCode, StreamState
from magsd.guest.wire import PAYLOAD_MAX, Channel, Frame, Kind, pack_fields

PATIENCE_S: Final = 5.0
"""From SIGTERM to SIGKILL, and on to the end of the VM."""
_DEADLINE_MAX_S: Final = 1e9
_REFUSED: Final = 127 << 8


class Owner(Protocol):
    """The shim, as its durable streams know it."""

    world: World
    machine: Machine
    bucket: Bucket

    def journal_data(
        self, channel: int, kind: int, stream: int, offset: int, payload: bytes
    ) -> bool:
        """Append a record; a disk that is full ends the VM, and is False."""

    def note(self, text: str) -> bool:
        """Append a line of the shim's own."""

    def durable_ended(self, durable: "Durable") -> None:
        """Write down that a durable stream is over, then tell it."""

    def end(self, code: EndCode, detail: str) -> None:
        """End the VM."""


class Durable:
    """One durable stream, running or over."""

    __slots__ = (
        "_bytes",
        "_ended_ns",
        "_has_timed_out",
        "_opened_ns",
        "_program",
        "_shim",
        "_timer",
        "_wait_status",
        "id",
        "is_over",
    )

    def __init__(self, shim: Owner, stream: int, deadline_ms: int) -> None:
        self.id = stream
        self.is_over = False
        self._shim = shim
        self._opened_ns = shim.world.wall_ns()
        self._ended_ns = 0
        self._wait_status = 0
        self._has_timed_out = False
        self._bytes = {Channel.OUT: 0, Channel.ERR: 0}
        self._program: Program | None = None
        self._timer: Timer | None = None
        if deadline_ms:
            seconds = min(deadline_ms / 1000, _DEADLINE_MAX_S)
            self._timer = shim.world.call_later(seconds, self._terminate)

    @property
    def state(self) -> StreamState:
        """What is known of it."""
        return StreamState(
            stream=self.id,
            is_over=self.is_over,
            wait_status=self._wait_status,
            has_timed_out=self._has_timed_out,
            opened_ns=self._opened_ns,
            ended_ns=self._ended_ns,
            out_bytes=self._bytes[Channel.OUT],
            err_bytes=self._bytes[Channel.ERR],
        )

    def begin(self, payload: bytes) -> None:
        """Let it run, inside."""
        request = ExecRequest.parse(payload)
        if request is None:
            self._shim.note(f"stream {self.id} was refused inside: it cannot be understood")
            self.finish(_REFUSED)
            return
        self._program = Program(
            self._shim.machine,
            request.arguments,
            request.environment,
            request.cwd,
            self,
            None,
            self.finish,
        )
        self._program.begin(interpret)

    def signal(self, number: int) -> None:
        """Send its process group a signal."""
        if self._program is not None:
            self._program.signal(number)
        else:
            self._shim.machine.do((self, number), lambda: self._signal_late(number))

    async def write(self, channel: Channel, data: bytes) -> None:
        """Take output, as fast as the VM may print."""
        for at in range(0, len(data), PAYLOAD_MAX):
            piece = data[at : at + PAYLOAD_MAX]
            while (wait_s := self._shim.bucket.wait_s(self._shim.world.monotonic())) > 0:
                assert self._program is not None
                if await self._program.sleep(wait_s):
                    break  # a signal: what is in its way may be printed all the same
            self._shim.bucket.take(len(piece))
            self._shim.journal_data(channel, DATA, self.id, self._bytes[channel], piece)
            self._bytes[channel] += len(piece)

    def finish(self, wait_status: int) -> None:
        """Note its end: in the journal, in the state file, then on every connection."""
        if self.is_over:
            return
        self.is_over = True
        self._wait_status = wait_status
        self._ended_ns = self._shim.world.wall_ns()
        self.cancel()
        fields = [("status", str(wait_status)), *self._end_fields()]
        offset = self._bytes[Channel.OUT]
        self._shim.journal_data(Channel.OUT, EXIT, self.id, offset, pack_fields("", fields))
        self._shim.durable_ended(self)

    def cancel(self) -> None:
        """Let its deadline not come. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def exit_frame(self) -> Frame:
        """Return what tells that it is over."""
        payload = pack_fields("", self._end_fields())
        return Frame(Kind.EXIT, self.id, value=self._wait_status, payload=payload)

    def _end_fields(self) -> list[tuple[str, str]]:
        return [
            ("timed_out", str(int(self._has_timed_out))),
            ("out", str(self._bytes[Channel.OUT])),
            ("err", str(self._bytes[Channel.ERR])),
            ("ended_ns", str(self._ended_ns)),
        ]

    def _signal_late(self, number: int) -> None:
        if self._program is not None:
            self._program.signal(number)

    def _terminate(self) -> None:
        self._has_timed_out = True
        self.signal(signal.SIGTERM)
        self._timer = self._shim.world.call_later(PATIENCE_S, self._kill)

    def _kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._timer = self._shim.world.call_later(PATIENCE_S, self._give_up)

    def _give_up(self) -> None:
        self.finish(signal.SIGKILL)
        text = f"stream {self.id} outlived its deadline and SIGKILL"
        self._shim.end(EndCode.KILLED, text)
