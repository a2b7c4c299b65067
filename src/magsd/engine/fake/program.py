"""One exec in a pretended VM: what interprets it, signals, and how it ends."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from magsd.engine.fake.machine import Machine, Pause, place
from magsd.guest.state import EndCode
from magsd.guest.wire import Channel

HARMLESS: Final = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)
"""Those that nobody here does anything at."""
_SIGNALS: Final = frozenset(range(1, 65))


class Output(Protocol):
    """Where a program's output goes."""

    async def write(self, channel: Channel, data: bytes) -> None:
        """Return when it was taken."""


class Input(Protocol):
    """Where a program's input comes from."""

    async def read(self) -> bytes:
        """Return what has come, at least a byte; nothing at the end."""


Interpret = Callable[["Program"], Coroutine[Any, Any, int]]
"""Does what a program does; returns its exit code."""


class Program:
    """A process with a session of its own. `begin` once; `on_exit` gets its wait status."""

    def __init__(
        self,
        machine: Machine,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: str,
        output: Output,
        input_: Input | None,
        on_exit: Callable[[int], None],
    ) -> None:
        self.machine = machine
        self.arguments = tuple(arguments)
        self.environment = dict(environment)
        self.cwd = place("/", cwd) if machine.is_folder(place("/", cwd)) else "/"
        self.output = output
        self.input = input_
        self.pid = machine.new_pid()
        self.ignored: set[int] = set()
        self.handlers: dict[int, str] = {}
        """What a signal is answered with, by its number; 0: the end of the shell."""
        self.pending: list[int] = []
        """Signals that wait for their handler."""
        self._on_exit = on_exit
        self._pause: Pause | None = None
        self._killed_by = 0
        self._task: asyncio.Task[int] | None = None
        self._is_abandoned = False

    def begin(self, interpret: Interpret) -> None:
        """Let it run."""
        self.machine.programs[self.pid] = self
        self._task = self.machine.world.spawn(f"program {self.pid}", interpret(self))
        self._task.add_done_callback(self._ended)

    def signal(self, number: int) -> None:
        """Send it a signal; it comes when the VM is not frozen."""
        if number in _SIGNALS:
            self.machine.do((self, number), lambda: self._take(number))

    def abandon(self) -> None:
        """End it without a word."""
        self._is_abandoned = True
        self._kill(signal.SIGKILL)

    async def sleep(self, seconds: float) -> int:
        """Wait; return 0, or the number of the signal that ended the wait."""
        self._pause = self.machine.pause(seconds)
        try:
            return await self.machine.waited(self._pause)
        finally:
            self._pause = None

    def _take(self, number: int) -> None:
        if number == signal.SIGKILL:
            self._kill(number)
        elif number in self.ignored or number in HARMLESS:
            return
        elif number in self.handlers:
            if number not in self.pending:
                self.pending.append(number)
            if self._pause is not None:
                self._pause.end(number)
        else:
            self._kill(number)

    def _kill(self, number: int) -> None:
        self._killed_by = self._killed_by or number
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: "asyncio.Task[int]") -> None:
        self.machine.programs.pop(self.pid, None)
        if self._is_abandoned:
            return
        if task.cancelled():
            self._on_exit(self._killed_by or signal.SIGKILL)
        elif (error := task.exception()) is not None:
            self.machine.end(EndCode.ENGINE_DIED, f"the interpreter failed: {error!r}")
        else:
            self._on_exit((task.result() & 0xFF) << 8)
