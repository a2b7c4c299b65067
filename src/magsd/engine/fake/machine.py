"""The inside of one pretended VM: its files, its programs, and time, which a freeze stops.

Knows no connection and no stream; `shim` and `transient` bring in what is
asked for, `program` is what runs here.
"""

import asyncio
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from errno import EISDIR, ENOENT, ENOSPC
from typing import Final, Protocol

from magsd.engine.fake.world import Timer, World
from magsd.guest.state import EndCode

FILES_MAX: Final = 64 << 20
"""Bytes that the files of a VM may hold together; they lie in the host's memory."""

_FILE_BYTES: Final = 256
"""What a file counts even when it is empty, so that there is an end to their number."""
_FOLDERS: Final = frozenset(
    ["/", "/bin", "/dev", "/etc", "/home", "/proc", "/root", "/run", "/tmp", "/usr", "/var"]  # noqa: S108 - inside
)
_STEPS_AT_ONCE: Final = 64
_STEP_NS: Final = 20_000
_BARE_BYTES: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Nature:
    """What a VM is, as far as a script can tell."""

    hostname: str
    vcpus: float
    memory_mb: int


class Process(Protocol):
    """What runs in a machine, as it and the scripts beside it know it."""

    def signal(self, number: int) -> None:
        """Send it a signal."""

    def abandon(self) -> None:
        """End it without a word."""


class Pause:
    """A wait inside a VM. It stands still while the VM is frozen."""

    __slots__ = ("_began", "_left_s", "_timer", "future")

    def __init__(self, seconds: float, future: "asyncio.Future[int]") -> None:
        self._left_s = seconds
        self._began = 0.0
        self._timer: Timer | None = None
        self.future = future

    def go_on(self, world: World) -> None:
        """Let the time run."""
        self._began = world.monotonic()
        self._timer = world.call_later(self._left_s, self.end)

    def hold(self, world: World) -> None:
        """Stop the time."""
        if self._timer is not None:
            self._timer.cancel()
            self._left_s = max(0.0, self._left_s - (world.monotonic() - self._began))

    def end(self, result: int = 0) -> None:
        """End the wait with `result`; 0: the time is up. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.future.done():
            self.future.set_result(result)


class Machine:
    """One pretended VM, seen from inside. Small while nothing runs in it."""

    __slots__ = (
        "_files",
        "_late",
        "_on_end",
        "_pauses",
        "_size_bytes",
        "_steps",
        "_thawed",
        "hostname",
        "is_hung",
        "last_pid",
        "nature",
        "programs",
        "world",
    )

    def __init__(
        self, world: World, nature: Nature, on_end: Callable[[EndCode, str], None]
    ) -> None:
        """`on_end`: the VM ends for a reason from inside; NONE when even its shim is lost."""
        self.world = world
        self.nature = nature
        self.hostname = nature.hostname
        self.is_hung = False
        self.last_pid = 1
        self.programs: dict[int, Process] = {}
        self._on_end = on_end
        self._files: dict[str, bytearray] | None = None
        self._size_bytes = 0
        self._pauses: set[Pause] | None = None
        self._late: dict[object, Callable[[], None]] | None = None
        self._thawed: asyncio.Event | None = None
        self._steps = 0

    # --- time ----------------------------------------------------------------------

    @property
    def is_still(self) -> bool:
        """Nothing happens inside: it is frozen, or hangs."""
        return self._thawed is not None

    def freeze(self) -> None:
        """Stop everything inside. Idempotent."""
        if self._thawed is None:
            self._thawed = asyncio.Event()
            for pause in self._pauses or ():
                pause.hold(self.world)

    def thaw(self) -> None:
        """Go on. Idempotent."""
        if self._thawed is None or self.is_hung:
            return
        thawed, self._thawed = self._thawed, None
        thawed.set()
        for pause in self._pauses or ():
            pause.go_on(self.world)
        late, self._late = self._late, None
        for act in (late or {}).values():
            act()

    def hang(self) -> None:
        """Do nothing any more, ever."""
        self.freeze()
        self.is_hung = True

    def do(self, key: object, act: Callable[[], None]) -> None:
        """Call `act` inside: now, or when the VM is thawed, once for each `key`."""
        if not self.is_still:
            act()
            return
        self._late = self._late or {}
        self._late[key] = act

    def forget(self, key: object) -> None:
        """Let what `do` was asked for not be done, if it was not yet."""
        if self._late is not None:
            self._late.pop(key, None)

    async def step(self) -> None:
        """Pass one unit of work: wait while the VM is frozen, and let others have their turn."""
        self._steps += 1
        if self._steps % _STEPS_AT_ONCE == 0:
            await self.world.clock.sleep(0)
        await self.moving()

    async def moving(self) -> None:
        """Return when the VM is not frozen."""
        while self._thawed is not None:
            await self._thawed.wait()

    def pause(self, seconds: float) -> Pause:
        """Begin a wait; whoever asks gives it to `waited`."""
        pause = Pause(seconds, self.world.future())
        if not self.is_still:
            pause.go_on(self.world)
        return pause

    async def waited(self, pause: Pause) -> int:
        """Return the result of a wait, 0 when its time was up."""
        self._pauses = self._pauses or set()
        self._pauses.add(pause)
        try:
            result = await pause.future
        finally:
            pause.end()
            self._pauses.discard(pause)
        await self.moving()
        return result

    # --- ends ----------------------------------------------------------------------

    def end(self, code: EndCode, detail: str) -> None:
        """End the VM, from inside."""
        self._on_end(code, detail)

    def stop(self) -> None:
        """Stop what runs, because the VM has ended."""
        self._late = None
        for program in list(self.programs.values()):
            program.abandon()

    def new_pid(self) -> int:
        """Return the number of a new process."""
        self.last_pid += 1
        return self.last_pid

    @property
    def cpu_ns(self) -> int:
        """A made-up time: so much for each step of a script."""
        return self._steps * _STEP_NS

    @property
    def memory_bytes(self) -> int:
        """A made-up size: so much for a bare VM, and what its files hold."""
        return min(_BARE_BYTES + self._size_bytes, self.nature.memory_mb << 20)

    # --- files ---------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """Return what a file holds. Raises `OSError`."""
        if self.is_folder(path):
            raise OSError(EISDIR, "Is a directory")
        content = (self._files or {}).get(path)
        if content is None:
            raise OSError(ENOENT, "No such file or directory")
        return bytes(content)

    def write(self, path: str, content: bytes, *, is_appended: bool = False) -> None:
        """Write a file, with the folders it lies in. Raises `OSError`."""
        if self.is_folder(path):
            raise OSError(EISDIR, "Is a directory")
        self._files = self._files if self._files is not None else {}
        before = self._files.get(path)
        grown = len(content) + (0 if before is not None else _FILE_BYTES + len(path))
        if before is not None and not is_appended:
            grown -= len(before)
        if self._size_bytes + grown > FILES_MAX:
            raise OSError(ENOSPC, "No space left on device")
        self._size_bytes += grown
        if before is not None and is_appended:
            before += content
        else:
            self._files[path] = bytearray(content)

    def files(self) -> dict[str, bytes]:
        """Return all files by their paths, as they are now."""
        return {path: bytes(content) for path, content in (self._files or {}).items()}

    def has_file(self, path: str) -> bool:
        """Say whether there is such a file."""
        return path in (self._files or ())

    def is_folder(self, path: str) -> bool:
        """Say whether there is such a folder: one of the usual, or one in which a file lies."""
        if path in _FOLDERS:
            return True
        inside = f"{path}/"
        return any(name.startswith(inside) for name in self._files or ())


def place(cwd: str, path: str) -> str:
    """Return the one name of a path."""
    whole = posixpath.normpath(posixpath.join("/", cwd, path))
    return f"/{whole.lstrip('/')}"
