"""What an agent can be asked, as calls: control, files, and a command with its output.

Each call opens a transient stream and ends it, also when it is cancelled; the
far end then kills or discards what it had begun. All raise `ShimError` when
agent or shim refuse and when the connection ends.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from magsd.guest.shim import ShimConnection
from magsd.guest.state import wait_status
from magsd.guest.transient import Stream
from magsd.guest.wire import Channel, Fields, pack_fields

_OUTPUT_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command printed and how it ended."""

    wait_status: int
    """As `os.waitstatus_to_exitcode` and its kin take it."""
    stdout: bytes
    stderr: bytes
    is_truncated: bool
    """It printed more, which was dropped."""


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
    output_max: int = _OUTPUT_MAX,
) -> ExecResult:
    """Run a command to its end, with exactly `environment`; cancelled, kill it.

    Of stdout and of stderr `output_max` bytes each are kept. A program that
    cannot be started ends with exit code 126 or 127.
    """
    pairs = [("arg", argument) for argument in argv]
    pairs += [("env", f"{name}={value}") for name, value in environment.items()]
    pairs.append(("cwd", cwd))
    if stdin is not None:
        pairs.append(("stdin", "open"))
    async with await connection.open_stream(pack_fields("exec", pairs)) as stream:
        if stdin is None:
            return await _collect(stream, output_max)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_feed(stream, stdin), name="exec-stdin")
                return await _collect(stream, output_max)
        except ExceptionGroup as errors:
            # Both may fail, and for the same reason: the stream or the connection ended.
            raise errors.exceptions[0] from None


async def _feed(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.write_eof()


async def _collect(stream: Stream, output_max: int) -> ExecResult:
    kept = {Channel.OUT: bytearray(), Channel.ERR: bytearray()}
    is_truncated = False
    while (piece := await stream.read_any()) is not None:
        channel, data = piece
        room = output_max - len(kept[channel])
        kept[channel] += data[:room]
        is_truncated = is_truncated or len(data) > room
    ended = await stream.exit()
    return ExecResult(
        wait_status=wait_status(ended.value),
        stdout=bytes(kept[Channel.OUT]),
        stderr=bytes(kept[Channel.ERR]),
        is_truncated=is_truncated,
    )
