"""Programs that read what the one before wrote, as processes of their own.

Owns their start, the bytes that go in, and their end: when the caller is
cancelled or the input fails, none is left. They are nice to others. What is
run, and what its failure means, is the caller's.
"""

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from magsd.aio import finish, unless
from magsd.model.errors import CapacityError, MagsError

_NICE: Final = ("nice", "-n", "5")
_TAIL_BYTES: Final = 2000
_PIECE_BYTES: Final = 1 << 18
_PIPE_BYTES: Final = 1 << 20
"""What a pipe may hold: with 64 KiB, as the kernel has it, programs wait for each other all the
time."""
_IN_NEED: Final = {
    errno.EAGAIN,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
}
"""What passes when a machine has less to do, or more room."""


@dataclass(frozen=True, slots=True)
class Command:
    """One program of a pipeline."""

    argv: Sequence[str]
    pass_fds: Sequence[int] = ()
    """Descriptors that it has under the same numbers."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    name: str
    exit_code: int
    """Negative: the signal that ended it."""
    tail: str
    """The last of what it wrote to standard error."""


async def run_pipeline(
    commands: Sequence[Command], content: AsyncIterator[bytes] | None = None
) -> list[Ended]:
    """Run programs, each reading what the one before writes; return how each ended.

    The first reads `content`, or nothing; what the last writes is lost. What
    `content` raises is raised when all have been ended. Raises `MagsError`
    when a program cannot be started, which is a `CapacityError` when this
    machine lacks processes, memory, descriptors or room on its disk for it.
    """
    running: list[_Running] = []
    try:
        pipe = _start_all(commands, running, is_fed=content is not None)
        if pipe is not None and content is not None:
            await running[0].feed(pipe, content)
        return [await each.wait() for each in running]
    finally:
        await finish(_end_all(running))


async def stream_pipeline(
    commands: Sequence[Command], check: Callable[[Sequence[Ended]], None]
) -> AsyncGenerator[bytes]:
    """Run programs as `run_pipeline` does; yield what the last writes, then `check` their ends.

    No more is read than is asked for. To be closed: all have been ended then.
    """
    running: list[_Running] = []
    try:
        _start_all(commands, running, is_fed=False, is_read=True)
        pipe = running[-1].output
        try:
            os.set_blocking(pipe, False)
            while piece := await _read(pipe):
                yield piece
        finally:
            os.close(pipe)
        check([await each.wait() for each in running])
    finally:
        await finish(_end_all(running))


class _Running:
    def __init__(self, command: Command, reading: int, *, is_last: bool) -> None:
        self._name = command.argv[0].rpartition("/")[2]
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        except OSError as error:
            raise _no_start(self._name, error) from error
        self.output = writing = subprocess.DEVNULL
        try:
            if not is_last:
                self.output, writing = _wide_pipe()
            self._process = subprocess.Popen(
                [*_NICE, *command.argv],
                stdin=reading,
                stdout=writing,
                stderr=self._errors,
                start_new_session=True,
                pass_fds=tuple(command.pass_fds),
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            )
        except OSError as error:
            self._errors.close()
            _close(self.output)
            raise _no_start(self._name, error) from error
        finally:
            _close(writing)
        self._has_ended = asyncio.Event()
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_ended.set)

    async def feed(self, pipe: int, content: AsyncIterator[bytes]) -> None:
        """Write `content` to `pipe` and close it; end early when the program does."""
        try:
            await unless(self._has_ended, _write(pipe, content))
        finally:
            os.close(pipe)

    async def wait(self) -> Ended:
        """Return how it ended, when it has."""
        await self._has_ended.wait()
        exit_code = self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        tail = self._errors.read().decode(errors="replace").strip()
        return Ended(self._name, exit_code, tail)

    async def end(self) -> None:
        """End it if it has not, and let go of it."""
        if not self._has_ended.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._has_ended.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._errors.close()


def _wide_pipe() -> tuple[int, int]:
    """Return a pipe's ends, to read from and to write to."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    # One that stays narrow is slower, and no more.
    with suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def _no_start(name: str, error: OSError) -> MagsError:
    kind = CapacityError if error.errno in _IN_NEED else MagsError
    return kind(f"{name} cannot be started", str(error))


def _start_all(
    commands: Sequence[Command],
    running: list[_Running],
    *,
    is_fed: bool,
    is_read: bool = False,
) -> int | None:
    """Start all, append them to `running`, return what to write the first one's input to."""
    reading, writing = _wide_pipe() if is_fed else (subprocess.DEVNULL, None)
    try:
        for command in commands:
            is_last = command is commands[-1] and not is_read
            started = _Running(command, reading, is_last=is_last)
            running.append(started)
            _close(reading)
            reading = started.output
    except BaseException:
        _close(reading)
        _close(writing)
        raise
    return writing


async def _end_all(running: Sequence[_Running]) -> None:
    for each in running:
        await each.end()


async def _read(pipe: int) -> bytes:
    """Return what is there, when something is; nothing at the end."""
    while True:
        try:
            return os.read(pipe, _PIECE_BYTES)
        except BlockingIOError:
            await _readable(pipe)


async def _readable(pipe: int) -> None:
    is_readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(pipe)


async def _write(pipe: int, content: AsyncIterator[bytes]) -> None:
    os.set_blocking(pipe, False)
    with suppress(BrokenPipeError):  # Who has read enough says by its exit status whether it has.
        async for piece in content:
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[os.write(pipe, rest) :]
                except BlockingIOError:
                    await _writable(pipe)


async def _writable(pipe: int) -> None:
    is_writable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_writer(pipe, is_writable.set)
    try:
        await is_writable.wait()
    finally:
        loop.remove_writer(pipe)


def _close(descriptor: int | None) -> None:
    if descriptor is not None and descriptor >= 0:
        os.close(descriptor)
