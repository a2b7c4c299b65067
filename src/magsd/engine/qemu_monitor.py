"""Talking to a VM's emulator by QMP: saving a machine that runs, and becoming one that was saved.

The emulator is trusted no more than its guest: what it answers is looked at,
and a deadline is the caller's.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient, QMPError

from magsd.aio import Clock, finish
from magsd.engine.qemu_sockets import in_directory
from magsd.model.errors import LaunchError

_LOOK_S: Final = 0.002
_STATE_SET: Final = 1000
"""A set of descriptors that no drive has."""
_IGNORE_SHARED: Final = [{"capability": "x-ignore-shared", "state": True}]
"""Memory that is a file's is not part of the state: it is the file's."""


class Monitor:
    """A connection to one emulator."""

    def __init__(self, client: QMPClient, connection: socket.socket, clock: Clock) -> None:
        self._client = client
        self._connection = connection
        self._clock = clock

    @classmethod
    @asynccontextmanager
    async def of(cls, run_directory: Path, clock: Clock) -> AsyncIterator["Monitor"]:
        """Have the monitor of a VM that begins or lives. Raises `LaunchError`."""
        client = QMPClient(run_directory.name)
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            in_directory(run_directory, connection.connect)
            await client.connect(connection)
        except (OSError, QMPError) as error:
            connection.close()
            raise LaunchError("the emulator does not answer", repr(error)) from error
        except BaseException:
            connection.close()
            raise
        try:
            yield cls(client, connection, clock)
        finally:
            # Ended already where the emulator has; that is for others to tell.
            with contextlib.suppress(QMPError, OSError, EOFError):
                await finish(client.disconnect())

    async def save(self, state: int) -> None:
        """Stop the guest and write its devices' state to a file. Its memory is a shared file."""
        await self._ask("stop")
        await self._ask("migrate-set-capabilities", {"capabilities": _IGNORE_SHARED})
        self._send(state)
        await self._ask("getfd", {"fdname": "state"})
        await self._ask("migrate", {"uri": "fd:state"})
        await self._migrated()

    async def save_devices(self, state: int) -> None:
        """Stop the guest, with all it has written in its disk, and write its devices' state.

        Its memory is not part of that. It stays as it is, until it is told to go on.
        """
        await self._ask("stop")
        # A file that can only be written to: the emulator takes no other for that.
        writable = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._send(writable)
        finally:
            os.close(writable)
        await self._ask("add-fd", {"fdset-id": _STATE_SET})
        try:
            # Named after who needed it first: all that a machine is beside its memory.
            place = {"filename": f"/dev/fdset/{_STATE_SET}", "live": False}
            await self._ask("xen-save-devices-state", place)
        finally:
            await self._ask("remove-fd", {"fdset-id": _STATE_SET})

    async def load(self, state: int) -> None:
        """Have an emulator that waits for a state load it and go on. `state` is its descriptor."""
        await self._ask("migrate-set-capabilities", {"capabilities": _IGNORE_SHARED})
        await self._ask("migrate-incoming", {"uri": f"fd:{state}"})
        await self._migrated()
        await self._ask("cont")

    def _send(self, descriptor: int) -> None:
        """Send a descriptor with the next command."""
        try:
            # By our own end: the loop's has no way to, and nothing is on its way now.
            socket.send_fds(self._connection, [b" "], [descriptor])
        except OSError as error:
            raise LaunchError("the emulator does not answer", repr(error)) from error

    async def _migrated(self) -> None:
        while True:
            told = await self._ask("query-migrate")
            status = told.get("status") if isinstance(told, dict) else None
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise LaunchError("the state of a VM could not be moved", str(told)[:500])
            await self._clock.sleep(_LOOK_S)

    async def _ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        try:
            return await self._client.execute(command, arguments)
        except (QMPError, OSError, asyncio.IncompleteReadError) as error:
            raise LaunchError(f"the emulator refused `{command}`", str(error)[:500]) from error
