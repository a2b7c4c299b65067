"""A VM that lives, as the daemon holds it: shim, control group, connection, watches."""

import asyncio
import contextlib
from typing import Final

import structlog

from magsd.aio import Tasks
from magsd.engine.cgroup import Cgroup
from magsd.engine.memory_watch import MemoryWatch
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord
from magsd.guest.shim import ShimConnection, ShimError

_log: Final = structlog.get_logger()


class LiveVm:
    """One VM. Its owner calls `watch` once, and `let_go` before it ends it or leaves it."""

    def __init__(
        self, record: VmRecord, shim: Detached, cgroup: Cgroup, connection: ShimConnection
    ) -> None:
        self.record = record
        self.shim = shim
        self.cgroup = cgroup
        self._connection = connection
        self._watches = contextlib.ExitStack()
        self._is_let_go = False

    @property
    def has_ended(self) -> bool:
        """Whether the shim is gone."""
        return not self.shim.is_alive

    async def ended(self) -> None:
        """Return when the shim is gone, and with it all processes of the VM."""
        # Frozen processes of a version 1 freezer do not die, whoever kills them,
        # and a shim that was killed waits for them: its last sign is the connection's end.
        async with asyncio.TaskGroup() as group:
            lost = group.create_task(self._connection.closed())
            gone = group.create_task(self.shim.wait())
            await asyncio.wait([lost, gone], return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                self.cgroup.thaw()
                await gone
            lost.cancel()

    def watch(self, tasks: Tasks) -> None:
        """End the VM when the guest has used up its memory."""

        tasks.spawn(f"watch {self.record.vm}", self._watch(tasks))

    async def _watch(self, tasks: Tasks) -> None:
        def used_up() -> None:
            tasks.spawn(f"out of memory {self.record.vm}", self._out_of_memory())

        try:
            watch = await MemoryWatch.open(self.cgroup, self.record.memory_mb << 20, used_up)
        except OSError as error:
            # Where the VM has ended meanwhile its group is gone, and nothing is to be watched.
            if not self._is_let_go:
                _log.warning("memory cannot be watched", vm=self.record.vm, error=str(error))
            return
        self._watches.callback(watch.close)
        if self._is_let_go:
            self._watches.close()

    async def _out_of_memory(self) -> None:
        # `kill` is answered by the end of the connection.
        with contextlib.suppress(ShimError):
            await self._connection.request("kill", reason="out_of_memory")

    def let_go(self) -> ShimConnection:
        """End the watches; the connection is the caller's to close. Idempotent."""
        self._is_let_go = True
        self._watches.close()
        return self._connection
