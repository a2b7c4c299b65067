"""The edges of a node: started beside it, watched, started again, and ended with it.

An edge has the listening sockets of the gateways and a socket to the node, and
no rights. Nothing of it outlives the node: it ends when its socket does, and
the kernel kills it when the node dies.
"""

import asyncio
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock, Tasks, backoff_s, finish, unless_done
from magsd.core.doors import Doors
from magsd.engine.process import Detached, ProcessError, start_detached
from magsd.gateway import plan as plans
from magsd.gateway.ingress_settings import IngressSettings
from magsd.gateway.node_server import NodeServer
from magsd.gateway.plan import EdgePlan, Rights
from magsd.gateway.ssh_settings import SshSettings

_PACKAGE: Final = "magsd.gateway.edge"
_START_S: Final = 30.0
_DRAIN_S: Final = 6.0
"""An edge ends itself a second before."""
_LAST_WORDS_S: Final = 1.0
"""Its connection ends a moment before its process."""
_STABLE_S: Final = 60.0
"""One that lived for so long is started again at once."""
_STDERR: Final = 2
_OPEN_FILES: Final = 65_536
_MEMORY_BYTES: Final = 2 << 30

_log = structlog.get_logger()


def unprivileged(name: str, other: int) -> Rights:
    """Return the rights of user `name`, or of the user id `other` where there is none.

    A node that is not root's cannot make its edges anybody else than itself.
    """
    if os.geteuid() != 0:
        return Rights(None, None, _OPEN_FILES, _MEMORY_BYTES)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return Rights(other, other, _OPEN_FILES, _MEMORY_BYTES)
    return Rights(entry.pw_uid, entry.pw_gid, _OPEN_FILES, _MEMORY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """What all edges of a node have in common."""

    count: int
    rights: Rights
    log_level: str
    ingress: IngressSettings
    ssh: SshSettings


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets at which strangers arrive. They are whose who opened them."""

    apps: socket.socket
    ssh: socket.socket


class Edges:
    """The owner of a node's edges."""

    def __init__(
        self, settings: EdgeSettings, listeners: Listeners, doors: Doors, clock: Clock
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._doors = doors
        self._clock = clock
        self._tasks = Tasks(_report)
        self._serving: dict[int, NodeServer] = {}
        self.on_end: Callable[[], object] = lambda: None
        """Told of each edge that has ended although it should not have."""

    def start(self) -> None:
        """Start all of them; `trouble` tells when they serve."""
        for number in range(self._settings.count):
            self._tasks.spawn(f"edge {number}", self._keep(number))

    async def aclose(self) -> None:
        """End them: what is under way has a few seconds."""
        await self._tasks.aclose()

    def trouble(self) -> str | None:
        """Return None when all serve, else one sentence."""
        missing = self._settings.count - len(self._serving)
        if not missing:
            return None
        which = "no process" if not self._serving else f"{missing} process(es) fewer than asked"
        return f"{which} for URLs and SSH at this moment: it is started again, see the log"

    @property
    def count(self) -> int:
        """How many serve."""
        return len(self._serving)

    @property
    def leases(self) -> int:
        """How many leases they hold or wait for."""
        return sum(server.leases for server in self._serving.values())

    async def _keep(self, number: int) -> None:
        """Have one edge for as long as the node serves."""
        attempt = 0
        while True:
            began = self._clock.monotonic()
            try:
                why = await self._live(number)
            except (ProcessError, OSError) as error:
                why = str(error)
            self.on_end()
            attempt = 0 if self._clock.monotonic() - began > _STABLE_S else attempt + 1
            pause_s = backoff_s(attempt)
            _log.error("edge_ended", edge=number, why=why, again_in_s=round(pause_s, 1))
            await self._clock.sleep(pause_s)

    async def _live(self, number: int) -> str:
        """Start an edge and serve it until it ends; return why it did."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = self._start(theirs)
            except BaseException:
                ours.close()
                raise
        server = NodeServer(ours, self._doors)
        try:
            server.start()
            return await self._served(number, process, server)
        finally:
            self._serving.pop(number, None)
            await finish(_end(process, server))

    async def _served(self, number: int, process: Detached, server: NodeServer) -> str:
        try:
            async with asyncio.timeout(_START_S):
                await unless_done(server.ended(), server.is_greeted.wait())
        except TimeoutError:
            return f"it did not begin to serve within {_START_S:g} s"
        if server.is_greeted.is_set():
            self._serving[number] = server
            _log.info("edge_serves", edge=number, pid=process.pid)
        why = await unless_done(process.wait(), server.ended())
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                return f"its process ended with {await process.wait()}"
        except TimeoutError:
            return why or "it let go of the node"

    def _start(self, node: socket.socket) -> Detached:
        settings, listeners = self._settings, self._listeners
        descriptors = node.fileno(), listeners.apps.fileno(), listeners.ssh.fileno()
        plan = plans.write(
            EdgePlan(
                node_fd=descriptors[0],
                apps_fd=descriptors[1],
                ssh_fd=descriptors[2],
                node_pid=os.getpid(),
                rights=settings.rights,
                log_level=settings.log_level,
                ingress=settings.ingress,
                ssh=settings.ssh,
            )
        )
        try:
            return start_detached(
                [sys.executable, "-I", "-m", _PACKAGE, str(plan)],
                pass_fds=(*descriptors, plan),
                cwd=Path("/"),
                env={"LANG": "C.UTF-8"},
                output=_STDERR,
            )
        finally:
            os.close(plan)


async def _end(process: Detached, server: NodeServer) -> None:
    """End an edge, and then its leases: while it can it finishes what is under way."""
    process.send_signal(signal.SIGTERM if server.is_serving else signal.SIGKILL)
    try:
        async with asyncio.timeout(_DRAIN_S):
            await process.wait()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    process.close()
    await server.aclose()


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
