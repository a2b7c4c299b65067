"""The agent as a plain process, first in namespaces of its own, driven over its link.

The driver is an honest far end: it grants credit for what it has read, and checks on
each frame that the agent keeps to offsets, credit and the order of ends.
"""

import os
import secrets
import select
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from magsd.guest.wire import (
    MAGIC,
    PAYLOAD_MAX,
    TRANSIENT_ID_MIN,
    WINDOW_BYTES,
    Channel,
    Fields,
    Frame,
    FrameReader,
    Kind,
    encode,
    parse_fields,
)

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT = REPOSITORY / "src/magsd/guest/programs" / os.uname().machine / "mags-agent"
PATIENCE_S = 20
"""After so long what is waited for will not come."""

# /run and what is written to /etc are private; the capability to set the clock is
# dropped, since clocks are not.
PREPARE = """
mount -t tmpfs none /run
mkdir /run/upper /run/work
mount -t overlay none -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work /etc
rm -f /etc/hostname /etc/hosts /etc/machine-id
touch /etc/hostname /etc/hosts /etc/machine-id
exec setpriv --bounding-set=-sys_time "$0"
"""
CONFINED = ("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")


def pack(*fields: str | bytes) -> bytes:
    """Fields as they are, bytes included that are no text."""
    return b"".join((item.encode() if isinstance(item, str) else item) + b"\0" for item in fields)


def exec_fields(argv: Sequence[str | bytes], *more: str | bytes) -> bytes:
    """An exec with a usual PATH."""
    arguments = [b"arg=" + (a.encode() if isinstance(a, str) else a) for a in argv]
    return pack("exec", *arguments, f"env=PATH={os.defpath}:/usr/sbin", *more)


@dataclass
class Ended:
    """How a stream ended."""

    kind: Kind
    value: int
    fields: Fields


@dataclass
class FarStream:
    """What the far end knows of a stream."""

    id: int
    is_read: bool = True
    output: dict[int, bytearray] = field(
        default_factory=lambda: {Channel.OUT: bytearray(), Channel.ERR: bytearray()}
    )
    granted: dict[int, int] = field(
        default_factory=lambda: {Channel.OUT: WINDOW_BYTES, Channel.ERR: WINDOW_BYTES}
    )
    closed: set[int] = field(default_factory=set)
    sent: int = 0
    limit: int = WINDOW_BYTES
    end: Ended | None = None

    @property
    def out(self) -> bytes:
        return bytes(self.output[Channel.OUT])

    @property
    def err(self) -> bytes:
        return bytes(self.output[Channel.ERR])


class AgentProcess:
    """Owns the process and its link; use it in a `with` block."""

    def __init__(self, command: Sequence[str] | None = None, pass_fds: Sequence[int] = ()):
        self.streams: dict[int, FarStream] = {}
        self.joins: deque[Fields] = deque()
        self._reader = FrameReader()
        self._next_id = TRANSIENT_ID_MIN
        self._log = os.memfd_create("log")
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        with theirs:
            self.process = subprocess.Popen(
                command or [*CONFINED, "sh", "-ec", PREPARE, str(AGENT)],
                stdin=theirs,
                stdout=theirs,
                stderr=self._log,
                pass_fds=pass_fds,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.kill()
        self.process.wait()
        os.close(self._log)

    @property
    def log(self) -> str:
        """What the agent has said on stderr."""
        return os.pread(self._log, 1 << 20, 0).decode(errors="replace")

    def send(self, kind: Kind, stream: int = 0, channel=0, value=0, payload=b"") -> None:
        self.socket.sendall(encode(Frame(kind, stream, channel, value, payload)))

    def join(self, nonce: str | None = None) -> Fields:
        """Join or rejoin; return the answer."""
        nonce = nonce or secrets.token_hex(16)
        self.socket.sendall(MAGIC)
        self.send(Kind.JOIN, payload=pack("version=1", f"nonce={nonce}"))
        self.wait(lambda: self.joins)
        answer = self.joins.popleft()
        assert answer.get("nonce") == nonce
        assert answer.get("version") == "1"
        return answer

    def open(self, payload: bytes, *, stream: int = 0, is_read: bool = True) -> FarStream:
        """Open a stream; without an id it gets a new one."""
        if not stream:
            stream = self._next_id
            self._next_id += 1
        opened = self.streams[stream] = FarStream(stream, is_read)
        self.send(Kind.OPEN, stream, payload=payload)
        return opened

    def exec(self, argv: Sequence[str | bytes], *more: str | bytes, **options) -> FarStream:
        return self.open(exec_fields(argv, *more), **options)

    def run(self, argv: Sequence[str | bytes], *more: str | bytes) -> FarStream:
        """Run a program to its end."""
        return self.ended(self.exec(argv, *more))

    def control(self, what: str, *fields: str) -> Ended:
        end = self.ended(self.open(pack("control", what, *fields))).end
        assert end
        return end

    def processes(self) -> int:
        """How many processes the guest runs."""
        return int(self.control("stats").fields.get("processes"))

    def wait_for_processes(self, count: int) -> None:
        """Wait until the guest runs so many processes."""
        give_up_at = time.monotonic() + PATIENCE_S
        while (running := self.processes()) != count:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"there are {running} processes, not {count}")

    def ended(self, stream: FarStream) -> FarStream:
        """Wait for the stream's end."""
        self.wait(lambda: stream.end)
        return stream

    def write(self, stream: FarStream, data: bytes) -> None:
        """Send all of `data`, as credit allows."""
        rest = memoryview(data)
        while rest:
            self.wait(lambda: stream.limit > stream.sent or stream.end)
            if stream.end:
                return
            piece = bytes(rest[: min(stream.limit - stream.sent, PAYLOAD_MAX)])
            self.send(Kind.DATA, stream.id, Channel.IN, stream.sent, piece)
            stream.sent += len(piece)
            rest = rest[len(piece) :]

    def write_eof(self, stream: FarStream) -> None:
        self.send(Kind.EOF, stream.id, Channel.IN, stream.sent)

    def grant(self, stream: FarStream, channel: Channel, limit: int) -> None:
        stream.granted[channel] = limit
        self.send(Kind.CREDIT, stream.id, channel, limit)

    def wait(self, condition: Callable[[], object]) -> None:
        """Take in what comes until `condition` holds."""
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition():
            patience_s = max(give_up_at - time.monotonic(), 0)
            if not select.select([self.socket], [], [], patience_s)[0]:
                raise TimeoutError(f"it did not happen; log: {self.log}")
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError(f"the agent has ended: {self.log}")
            self._take(self._reader.feed(data))

    def wait_for_end(self) -> str:
        """Wait until the process has ended by itself; return its log."""
        while self.socket.recv(1 << 20):
            pass
        self.process.wait(PATIENCE_S)
        return self.log

    def _take(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if frame.kind == Kind.JOIN:
                self.joins.append(parse_fields(frame.payload))
                continue
            stream = self.streams[frame.stream]
            if frame.kind == Kind.CREDIT:
                # It may have crossed what ended the stream here, and nowhere else.
                assert frame.channel == Channel.IN
                assert frame.value >= stream.limit
                stream.limit = frame.value
                continue
            assert stream.end is None, f"{frame} after the end"
            self._take_output(stream, frame)

    def _take_output(self, stream: FarStream, frame: Frame) -> None:
        match frame.kind:
            case Kind.DATA:
                output = stream.output[frame.channel]
                assert frame.channel not in stream.closed
                assert frame.value == len(output)
                output += frame.payload
                assert len(output) <= stream.granted[frame.channel]
                if stream.is_read and stream.granted[frame.channel] - len(output) < 131072:
                    self.grant(stream, Channel(frame.channel), len(output) + WINDOW_BYTES)
            case Kind.EOF:
                assert frame.channel not in stream.closed
                assert frame.value == len(stream.output[frame.channel])
                stream.closed.add(frame.channel)
            case Kind.EXIT | Kind.RESET:
                stream.end = Ended(frame.kind, frame.value, parse_fields(frame.payload))
            case _:
                raise AssertionError(f"not from an agent: {frame}")
