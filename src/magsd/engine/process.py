"""Starting programs: the one place that does.

Owns two ways: `run` for a tool that is waited for, and `start_detached` for a
process that outlives the daemon (a VM's shim, the DNS forwarder), which is
later found again by pid and start time. What is run, and what its failure
means, is the caller's.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from magsd.aio import finish
from magsd.model.errors import MagsError

_TAIL_BYTES: Final = 2000
_END_S: Final = 5.0

Argv = Sequence[str | os.PathLike[str]]


class ProcessError(MagsError):
    """A program could not be started, failed, or did not end in time.

    `detail` is the command and the last lines it printed.
    """


@dataclass(frozen=True)
class Completed:
    """A program that has ended."""

    argv: tuple[str, ...]
    exit_code: int
    """Negative: the signal that ended it."""
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without the last line end."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def tail(self) -> str:
        """The last of what it printed, standard error before standard output."""
        printed = self.stderr.strip() or self.stdout.strip()
        return printed[-_TAIL_BYTES:].decode(errors="replace")


async def run(
    argv: Argv,
    *,
    input: bytes | None = None,
    timeout_s: float,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end, in a session of its own; return what it printed.

    Without `input` its standard input is empty; `env` None is the daemon's own.
    At the timeout or on cancellation its whole process group is killed.

    Raises `ProcessError` when it is not installed, takes longer than
    `timeout_s`, or (with `check`) ends with anything but 0.
    """
    words = tuple(os.fspath(word) for word in argv)
    # Shielded: asyncio waits for ever for a process whose start was cancelled half way
    # (its pipes were never connected, so they never end).
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *words,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=cwd,
            env=env,
            pass_fds=tuple(pass_fds),
        )
    )
    try:
        async with asyncio.timeout(timeout_s):
            process = await asyncio.shield(starting)
            stdout, stderr = await process.communicate(input)
    except TimeoutError:
        await finish(_end(starting))
        raise ProcessError(
            f"{Path(words[0]).name} did not end within {timeout_s:g} s", shlex.join(words)
        ) from None
    except OSError as error:
        raise _cannot_start(words, error) from error
    except BaseException:
        await finish(_end(starting))
        raise
    completed = Completed(words, await process.wait(), stdout, stderr)
    if check and completed.exit_code != 0:
        raise ProcessError(
            f"{Path(words[0]).name} failed with exit status {completed.exit_code}",
            f"{shlex.join(words)}: {completed.tail}",
        )
    return completed


async def _end(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    try:
        process = await starting
    except OSError:
        return  # it never started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # What left its session may hold the pipes open: no reason to wait for it.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            await process.communicate()


def _cannot_start(words: tuple[str, ...], error: OSError) -> ProcessError:
    name = Path(words[0]).name
    reason = "is not installed" if isinstance(error, FileNotFoundError) else "cannot be started"
    return ProcessError(f"{name} {reason}", f"{shlex.join(words)}: {error}")


class Detached:
    """A process that outlives the daemon, held by a pidfd. Ours to `close`, not to end.

    While the daemon that started it lives it is that daemon's child, and
    somebody must `wait` for it, or it stays a zombie.
    """

    def __init__(self, pid: int, pidfd: int, start_time: int) -> None:
        self.pid = pid
        self.start_time = start_time
        """In clock ticks since boot: with the boot id and the pid it names one process."""
        self._pidfd = pidfd
        self._status: int | None = None

    @classmethod
    def find(cls, pid: int, start_time: int) -> Self | None:
        """Return the process that an earlier daemon started; None when it has ended."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if read_start_time(pid) != start_time:
            os.close(pidfd)
            return None
        return cls(pid, pidfd, start_time)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return read_start_time(self.pid) == self.start_time

    def fileno(self) -> int:
        """Return the pidfd, which is readable once the process has ended."""
        return self._pidfd

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int | None:
        """Return when it has ended: its exit code (negative: a signal), None if not our child.

        May be called by several at once, and again after the end.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        # A descriptor of its own for every caller: a loop knows one reader for each.
        reader = os.dup(self._pidfd)
        try:
            loop.add_reader(reader, _set, ended)
            try:
                await ended
            finally:
                loop.remove_reader(reader)
        finally:
            os.close(reader)
        return self._reap()

    def _reap(self) -> int | None:
        if self._status is None:
            with contextlib.suppress(ChildProcessError):
                result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
                if result is not None:
                    is_exit = result.si_code == os.CLD_EXITED
                    self._status = result.si_status if is_exit else -result.si_status
        return self._status

    def close(self) -> None:
        """Let go of the pidfd. Idempotent; the process goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def read_start_time(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None when there is none.

    A zombie counts as none: it has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def start_detached(
    argv: Argv,
    *,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: int | None = None,
) -> Detached:
    """Start a process that outlives the daemon, in a session of its own.

    Descriptors of `pass_fds` keep their numbers; all others but 0 to 2 are
    closed in it. Standard input is empty, standard output and error go to the
    descriptor `output`, or nowhere. Not a coroutine: no cancellation can come
    between the start and the caller's hold of it (about 1 ms).

    Raises `ProcessError` when it cannot be started.
    """
    words = tuple(os.fspath(word) for word in argv)
    sink = subprocess.DEVNULL if output is None else output
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd=cwd,
            env=env,
            pass_fds=tuple(pass_fds),
        )
    except OSError as error:
        raise _cannot_start(words, error) from error
    # `Detached` is what waits for it: `Popen` must neither reap it nor complain.
    process.returncode = 0
    start_time = read_start_time(process.pid)
    return Detached(process.pid, os.pidfd_open(process.pid), start_time or 0)
