"""A run's hold on its VM: the engine, where the VM is, and a connection to its shim.

Owns finding out how script and VM ended, from whatever can still tell: the
connection, the shim's state file, the engine. What follows from an end is
`outcome`'s part, and what to do then the actor's.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from magsd.aio import Clock, backoff_s
from magsd.core.launch import SCRIPT_STREAM
from magsd.engine.base import Engine, Handle, VmEnd
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.state import StreamState, read_stream
from magsd.model.errors import MagsError

GRACE_S: Final = 5.0
"""How long a script may take to end after SIGTERM."""
_KILL_S: Final = 2.0
_CONNECT_S: Final = 10.0
_END_S: Final = 5.0
"""How long a VM whose shim takes no connection may take to be gone."""
_SIGTERM: Final = 15
_SIGKILL: Final = 9

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ScriptEnd:
    """How a script ended: by itself, by its deadline, or with its VM."""

    wait_status: int | None
    """None when its VM ended before it did."""
    at: datetime | None = None
    has_timed_out: bool = False
    vm_end: VmEnd | None = None
    """Only, and always, when there is no wait status."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a VM that an earlier daemon claimed."""

    link: "VmLink | None"
    """None when the VM is no more."""
    began_at: datetime | None
    """When its script began; None when it never did."""
    end: ScriptEnd | None
    """None while the script runs, and when it never began."""
    vm_end: VmEnd | None = None
    """How the VM ended; None while it lives, and when nothing of it is left."""


class UnreachableError(MagsError):
    """A VM lives and nobody can speak with it."""


class VmLink:
    """A live VM. Belongs to one actor."""

    def __init__(
        self, engine: Engine, handle: Handle, connection: ShimConnection, clock: Clock
    ) -> None:
        self._engine = engine
        self._handle = handle
        self._connection = connection
        self._clock = clock
        self._on_journal: Callable[[int], None] | None = None

    @classmethod
    async def find(cls, engine: Engine, handle: Handle, clock: Clock) -> Found:
        """Return what became of the VM that `handle` names. Never harms it.

        Raises `UnreachableError` when it lives but takes no connection.
        """
        if not handle.run_directory.is_dir():
            return Found(None, None, None)
        link, vm_end = None, None
        if await engine.adopt(handle.run_directory) is None:
            vm_end = await engine.wait(handle)
        else:
            opened = await _reached(engine, handle)
            if isinstance(opened, VmEnd):
                vm_end = opened
            else:
                link = cls(engine, handle, opened, clock)
        state = read_stream(handle.run_directory, SCRIPT_STREAM)
        if state is None:
            return Found(link, None, None, vm_end)
        began_at = _moment(state.opened_ns) or clock.now()
        if state.is_over:
            return Found(link, began_at, _script_end(state), vm_end)
        return Found(link, began_at, None if vm_end is None else _lost(vm_end), vm_end)

    async def script_ended(self, stream: int = SCRIPT_STREAM) -> ScriptEnd:
        """Return how the script, or another durable stream, ended once it has, or its VM has.

        A connection that breaks while the VM lives is opened again.
        """
        attempt = 0
        while True:
            try:
                return _script_end(await self._connection.exited(stream))
            except ShimError as error:
                _log.debug("connection_ended", vm=self._handle.vm, error=str(error))
            if (known := known_end(self._handle, stream)) is not None:
                return known
            if (vm_end := await self._reopened(attempt)) is not None:
                # It may have been the last thing that the shim wrote down.
                return known_end(self._handle, stream) or _lost(vm_end)
            attempt += 1

    async def vm_ended(self) -> VmEnd:
        """Return how the VM ended once it has. A connection that breaks before is opened again."""
        attempt = 0
        while True:
            await self._connection.closed()
            if (vm_end := await self._reopened(attempt)) is not None:
                return vm_end
            attempt += 1

    async def _reopened(self, attempt: int) -> VmEnd | None:
        """Open a connection in place of a broken one; return the VM's end if it has ended."""
        await self._connection.aclose()
        connection = await _reached(self._engine, self._handle)
        if isinstance(connection, VmEnd):
            return connection
        self._connection = connection
        self.on_journal(self._on_journal)
        await self._clock.sleep(backoff_s(attempt))
        return None

    def known_end(self) -> ScriptEnd | None:
        """Return how the script ended, if it has."""
        return known_end(self._handle)

    async def terminate(self, stream: int = SCRIPT_STREAM) -> None:
        """End the script, or another durable stream: SIGTERM to its process group, SIGKILL
        after `GRACE_S`.

        Returns when it has ended, also with its VM, or will not.
        """
        try:
            for number, wait_s in ((_SIGTERM, GRACE_S), (_SIGKILL, _KILL_S)):
                await self._connection.signal(stream, number)
                try:
                    async with asyncio.timeout(wait_s):
                        await self._connection.exited(stream)
                    return
                except TimeoutError:
                    continue
        except ShimError as error:
            # The VM is on its way out, or is about to be stopped without being asked.
            _log.debug("connection_ended", vm=self._handle.vm, error=str(error))

    async def note(self, text: str) -> None:
        """Append a system line to the VM's journal. Raises `ShimError`."""
        await self._connection.request("note", text=text)

    def on_journal(self, callback: Callable[[int], None] | None) -> None:
        """Have `callback` called with the journal's end whenever it has grown."""
        self._on_journal = callback
        self._connection.on_journal(callback)

    async def aclose(self) -> None:
        """Let go of the VM without harming it."""
        await self._connection.aclose()


async def _reached(engine: Engine, handle: Handle) -> ShimConnection | VmEnd:
    """Return a connection to the shim of a VM, or its end if it has ended or is just ending."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            return await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
    except (ShimError, OSError, TimeoutError) as error:
        try:
            async with asyncio.timeout(_END_S):
                return await engine.wait(handle)
        except TimeoutError:
            pass
        raise UnreachableError("the VM lives but takes no connection", repr(error)) from error


def began_at(handle: Handle) -> datetime | None:
    """Return when the script of a VM began, as its shim has written it down."""
    state = read_stream(handle.run_directory, SCRIPT_STREAM)
    return None if state is None else _moment(state.opened_ns)


def known_end(handle: Handle, stream: int = SCRIPT_STREAM) -> ScriptEnd | None:
    """Return how the script of a VM, or another durable stream, ended, if it has, dead or alive as
    the VM may be."""
    state = read_stream(handle.run_directory, stream)
    return _script_end(state) if state is not None and state.is_over else None


def has_stream(handle: Handle, stream: int) -> bool:
    """Say whether a durable stream was begun in a VM."""
    return read_stream(handle.run_directory, stream) is not None


def _script_end(state: StreamState) -> ScriptEnd:
    return ScriptEnd(state.wait_status, _moment(state.ended_ns), state.has_timed_out)


def _lost(vm_end: VmEnd) -> ScriptEnd:
    return ScriptEnd(None, vm_end=vm_end)


def _moment(wall_ns: int) -> datetime | None:
    return datetime.fromtimestamp(wall_ns / 1e9, UTC) if wall_ns else None
