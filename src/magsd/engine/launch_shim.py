"""Starting a VM's shim: its plan, the process, `ready`, `start`.

Owns the order of these steps and the plan's form (`docs/reference/wire.md`,
"Starting a shim"). What stands in a plan is the engine's.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Final, Self

from magsd.aio import finish
from magsd.engine import process
from magsd.engine.disks import failure
from magsd.engine.process import Detached, ProcessError, read_start_time
from magsd.guest.shim import ShimConnection, ShimError, StartRefusedError
from magsd.guest.wire import WireError
from magsd.model.errors import LaunchError

_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_READY_S: Final = 5.0


class ShimPlan:
    """The fields of a plan in their order, and the descriptors they name."""

    def __init__(self) -> None:
        self._fields: list[str] = []
        self._descriptors: set[int] = set()

    def add(self, name: str, value: object) -> None:
        """Append a field."""
        text = f"{name}={value}"
        if "\0" in text:
            raise ValueError(f"the field {name} of a plan holds NUL")
        self._fields.append(text)

    def add_each(self, name: str, values: Iterable[object]) -> None:
        """Append a field for each value."""
        for value in values:
            self.add(name, value)

    def add_descriptor(self, name: str, descriptor: int, rest: str = "") -> None:
        """Append a field that begins with a descriptor; it stays the caller's to close."""
        self._descriptors.add(descriptor)
        self.add(name, f"{descriptor}:{rest}" if rest else descriptor)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that the shim is to inherit."""
        return tuple(self._descriptors)

    def encode(self) -> bytes:
        """Return the plan as the shim reads it."""
        return "".join(f"{field}\0" for field in self._fields).encode()


def memory_file(name: str, content: bytes, undo: AsyncExitStack | ExitStack) -> int:
    """Return a descriptor of an anonymous file; `undo` closes it."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    undo.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


class StartingShim:
    """A shim that made its namespaces and mounts, and waits for `start`.

    It exits by itself when the connection ends before it has started.
    """

    def __init__(self, process: Detached, connection: ShimConnection) -> None:
        self.process = process
        self.connection = connection

    @classmethod
    async def open(
        cls, program: Path, run_directory: Path, plan: ShimPlan, undo: AsyncExitStack
    ) -> Self:
        """Start a shim and return when it is ready.

        `undo` gets what ends it again and waits until it is gone. Raises
        `LaunchError`; nothing of it is left then.
        """
        # Only its answer tells which process it is: a cancellation waits for that.
        opened: Self = await finish(cls._open(program, run_directory, plan, undo))
        return opened

    @classmethod
    async def _open(
        cls, program: Path, run_directory: Path, plan: ShimPlan, undo: AsyncExitStack
    ) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                plan.add_descriptor("control", theirs.fileno())
                first = _start(program, run_directory, plan)
            except BaseException:
                ours.close()
                raise
        connection = await ShimConnection.from_socket(ours, hello=False)
        undo.push_async_callback(connection.aclose)
        shim = await _ready(first, connection)
        undo.push_async_callback(end, shim)
        return cls(shim, connection)

    async def start(self, *, is_held: bool = False) -> None:
        """Start the engine; return when its agent has joined. Raises `LaunchError`.

        `is_held`: the VM ends with this connection until another one holds it,
        so that one that was made ahead of need never outlives its maker.
        """
        # When memory runs out the daemon may be spared, but not its VMs with it.
        with suppress(OSError):
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("0")
        try:
            if is_held:
                await self.connection.request("hold")
            await self.connection.request("start")
        except ShimError as error:
            detail = f"shim {self.process.pid}: {error}"
            raise failure("the sandbox did not start", detail) from error


async def end(shim: Detached) -> None:
    """Kill a shim, wait until it and all its VM had is gone, and let go of it. Idempotent."""
    if shim.fileno() >= 0:
        shim.send_signal(signal.SIGKILL)
        await finish(shim.wait())
        shim.close()


def _start(program: Path, run_directory: Path, plan: ShimPlan) -> Detached:
    with ExitStack() as undo:
        descriptor = memory_file("plan", plan.encode(), undo)
        try:
            return process.start_detached(
                [program, str(descriptor)],
                pass_fds=[*plan.descriptors, descriptor],
                cwd=run_directory,
                env=_ENVIRONMENT,
            )
        except ProcessError as error:
            raise LaunchError(f"{error.message}: run `make setup`", error.detail) from error


async def _ready(first: Detached, connection: ShimConnection) -> Detached:
    """Return the shim once it is ready.

    The process that was started leaves a child of ours in its place, process 1
    of a pid namespace: that one is the shim.
    """
    try:
        async with asyncio.timeout(_READY_S):
            pid = (await connection.ready()).number("pid")
        if (shim := _found(pid)) is None:
            raise ShimError("it ended at once")
    except (ShimError, WireError, TimeoutError) as error:
        await connection.aclose()
        await end(first)
        if isinstance(error, StartRefusedError) and (refused := _found(error.pid)) is not None:
            await end(refused)
        raise LaunchError("the sandbox could not be prepared", f"shim: {error!r}") from error
    await end(first)
    return shim


def _found(pid: int) -> Detached | None:
    start_time = read_start_time(pid) if pid else None
    return None if start_time is None else Detached.find(pid, start_time)
