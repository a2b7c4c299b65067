"""Being told that a VM's memory runs out, before the kernel helps itself.

Left alone, the kernel first takes the cached programs away, over and over,
which can make a VM crawl for a minute; then it kills one process, in version 1
mostly one that carries a guest's process for the sentry, and the guest goes on
with something missing. So the daemon looks when it is told that memory is
short, and whoever uses more than was planned ends. Where there is no daemon the
kernel's way remains.
"""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from magsd.aio import finish
from magsd.engine.cgroup import Cgroup

_IN_MODIFY: Final = 0x2
_EVENT_BYTES: Final = 4096
_LOOK_S: Final = 0.05
"""Events come in thousands while a VM reads large files; the looks do not."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class MemoryWatch:
    """Calls back once when a VM has used up its memory."""

    def __init__(
        self, group: Cgroup, guest_bytes: int, event: int, call: Callable[[], None]
    ) -> None:
        self._group = group
        self._guest_bytes = guest_bytes
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._event = event
        self._loop.call_soon(self._look)

    @classmethod
    async def open(cls, group: Cgroup, guest_bytes: int, call: Callable[[], None]) -> Self:
        """Begin. `guest_bytes`: what the guest may use; `call` comes from the running loop.

        In a thread: the kernel takes 10 to 25 ms to register an event. Raises
        `OSError` when it has no such events.
        """
        opened: list[int] = []
        try:
            await finish(asyncio.to_thread(lambda: opened.append(_open(group, guest_bytes))))
        except asyncio.CancelledError:
            for event in opened:
                os.close(event)
            raise
        return cls(group, guest_bytes, opened[0], call)

    def close(self) -> None:
        """End. Idempotent."""
        if self._event >= 0:
            self._loop.remove_reader(self._event)
            if self._pause is not None:
                self._pause.cancel()
            os.close(self._event)
            self._event = -1

    def _look(self) -> None:
        if self._event < 0:
            return
        with contextlib.suppress(BlockingIOError):
            os.read(self._event, _EVENT_BYTES)
        if self._is_over():
            self.close()
            self._call()
            return
        self._loop.remove_reader(self._event)
        self._pause = self._loop.call_later(_LOOK_S, self._listen)

    def _listen(self) -> None:
        self._loop.add_reader(self._event, self._look)

    def _is_over(self) -> bool:
        try:
            # The sentry keeps the guest's memory, and nothing else, in shared memory.
            is_used_up = self._group.shared_memory_bytes() >= self._guest_bytes
            return is_used_up or self._group.memory_kills() > 0
        except OSError:
            # The group was removed, which is an event too: the VM has ended.
            return False


def _open(group: Cgroup, guest_bytes: int) -> int:
    """Return a descriptor that is readable whenever it is worth looking."""
    place = group.memory
    if place.version == 2:
        return _watch_file(place.root / "memory.events")
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        _register(event, place.root, "memory.oom_control")
        _register(event, place.root, "memory.pressure_level", "low")
        _register(event, place.root, "memory.usage_in_bytes", str(guest_bytes))
    except BaseException:
        os.close(event)
        raise
    return event


def _register(event: int, directory: Path, name: str, *words: str) -> None:
    with (directory / name).open("rb", buffering=0) as watched:
        line = " ".join([str(event), str(watched.fileno()), *words])
        (directory / "cgroup.event_control").write_text(line)


def _watch_file(file: Path) -> int:
    event: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if event < 0 or _libc.inotify_add_watch(event, os.fsencode(file), _IN_MODIFY) < 0:
        number = ctypes.get_errno()
        if event >= 0:
            os.close(event)
        raise OSError(number, f"watching {file}: {os.strerror(number)}")
    return event
