"""What an agent can be asked, as calls: control, files, and a command with its output.

Each call opens a transient stream and ends it, also when it is cancelled; the
far end then kills or discards what it had begun. All raise `ShimError` when
agent or shim refuse and when the connection ends.
"""

import asyncio
import signal
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from magsd.guest.shim import ShimConnection
from magsd.guest.state import wait_status
from magsd.guest.transient import Stream
from magsd.guest.wire import Channel, Fields, pack_fields

OUTPUT_MAX_BYTES: Final = 4 << 20
_LAST_WORDS_S: Final = 2.0
"""How long a command that was killed may take to be over: what it printed is on its way."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command printed and how it ended."""

    wait_status: int
    """As `os.waitstatus_to_exitcode` and its kin take it."""
    stdout: bytes
    stderr: bytes
    is_truncated: bool
    """It printed more, which was dropped."""
    has_timed_out: bool = False
    """Its time was over: it was killed. If its end was not seen, the status is that of SIGKILL."""


async def control(connection: ShimConnection, what: str, **fields: str | Sequence[str]) -> Fields:
    """Have the agent do something to its VM; return what it answers.

    A sequence repeats its field. `docs/reference/wire.md` lists what there is.
    """
    pairs = [
        (key, text)
        for key, value in fields.items()
        for text in ((value,) if isinstance(value, str) else value)
    ]
    async with await connection.open_stream(pack_fields(("control", what), pairs)) as stream:
        ended = await stream.exit()
    ended.check(what)
    return ended.fields


async def write_file(
    connection: ShimConnection,
    path: str,
    content: bytes | AsyncIterable[bytes],
    *,
    mode: int = 0o644,
) -> None:
    """Write a file whole, or leave what was there: also when `content` raises.

    Parents are made. Raises `ShimError` with the system's reason when it cannot be written.
    """
    payload = pack_fields("write", [("path", path), ("mode", f"{mode:o}")])
    async with await connection.open_stream(payload) as stream:
        if isinstance(content, bytes):
            await stream.write(content)
        else:
            async for data in content:
                await stream.write(data)
                if stream.is_over:
                    break
        await stream.write_eof()
        ended = await stream.exit()
    ended.check(path)


async def read_file(connection: ShimConnection, path: str) -> AsyncIterator[bytes]:
    """Yield a file's content, at most 256 KiB at a time; what is not read is not sent.

    Close the iterator when it is not read to its end. Raises `ShimError` with
    the system's reason when the file cannot be read to its end.
    """
    async with await connection.open_stream(pack_fields("read", [("path", path)])) as stream:
        while data := await stream.read():
            yield data
        ended = await stream.exit()
    ended.check(path)


async def run(
    connection: ShimConnection,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: str = "/root",
    stdin: bytes | None = None,
    output_max: int = OUTPUT_MAX_BYTES,
    may_keep: Callable[[int], int] | None = None,
    timeout_s: float | None = None,
) -> ExecResult:
    """Run a command to its end, with exactly `environment`; cancelled, kill it.

    Of stdout and of stderr `output_max` bytes each are kept, and of each piece
    no more than `may_keep` says. After `timeout_s` its process group is killed.
    A program that cannot be started ends with exit code 126 or 127.
    """
    output = _Output(output_max, may_keep or (lambda count: count))
    pairs = [("arg", argument) for argument in argv]
    pairs += [("env", f"{name}={value}") for name, value in environment.items()]
    pairs.append(("cwd", cwd))
    if stdin is not None:
        pairs.append(("stdin", "open"))
    async with await connection.open_stream(pack_fields("exec", pairs)) as stream:
        if stdin is None:
            return await _collect(stream, output, timeout_s)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_feed(stream, stdin), name="exec-stdin")
                return await _collect(stream, output, timeout_s)
        except ExceptionGroup as errors:
            # Both may fail, and for the same reason: the stream or the connection ended.
            raise errors.exceptions[0] from None


async def _feed(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.write_eof()


class _Output:
    """What is kept of a command's output."""

    def __init__(self, most: int, may_keep: Callable[[int], int]) -> None:
        self._most = most
        self._may_keep = may_keep
        self.kept = {Channel.OUT: bytearray(), Channel.ERR: bytearray()}
        self._is_cut: set[Channel] = set()

    def add(self, channel: Channel, data: bytes) -> None:
        """Keep as much of `data` as may be; nothing more of a channel of which some was dropped."""
        kept = self.kept[channel]
        room = min(len(data), self._most - len(kept))
        allowed = 0 if channel in self._is_cut or not room else self._may_keep(room)
        kept += data[:allowed]
        if allowed < len(data):
            self._is_cut.add(channel)

    async def read(self, stream: Stream) -> int:
        """Read a stream to its end; return its wait status."""
        while (piece := await stream.read_any()) is not None:
            self.add(*piece)
        return wait_status((await stream.exit()).value)

    def result(self, status: int, *, has_timed_out: bool = False) -> ExecResult:
        """Return what became of the command."""
        return ExecResult(
            wait_status=status,
            stdout=bytes(self.kept[Channel.OUT]),
            stderr=bytes(self.kept[Channel.ERR]),
            is_truncated=bool(self._is_cut),
            has_timed_out=has_timed_out,
        )


async def _collect(stream: Stream, output: _Output, timeout_s: float | None) -> ExecResult:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return output.result(await output.read(stream))
    await stream.signal(signal.SIGKILL)
    status: int = signal.SIGKILL
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            status = await output.read(stream)
    return output.result(status, has_timed_out=True)
