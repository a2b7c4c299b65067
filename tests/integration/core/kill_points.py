"""A service that kills itself at a chosen point: `python -m …`, orders on its standard input.

Each order is a line of JSON: data directory, scene, point, and where the object store is
when it is not in the data directory. It is
played by a fork of this process, which has everything imported; the answer is
a line with its wait status. What it did is in the file `trail` beside the data
directory: it begins with `begin`, then a line for each point it came to and
for each job that was acknowledged; `end` when nothing was left to come to.
"""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from magsd.db import log_index
from magsd.model.amount import Amount
from magsd.model.lifecycle import Status
from magsd.model.records import JobSpec
from magsd.storage.objects import ObjectStoreSettings
from tests.integration.core.outward_steps import Point, watched
from tests.integration.core.service import DEADLINE_S, Service

POOLED = {"pool_min": 1, "pool_max": 1, "pool_total_max": 4}
ONE_AT_A_TIME = Amount(vms=1, vcpus=64, memory_mb=1 << 20, disk_gb=1 << 10)


def script(directory: Path, name: str) -> str:
    """Return a script that leaves a mark each time it begins, and ends when its gate is open."""
    return (
        f"echo begun >> {directory}/{name}.marks; echo one; "
        f"until [ -e {directory}/{name}.gate ]; do sleep 0.01; done; echo two; exit 5"
    )


class Player:
    """A service and the trail of what it does."""

    def __init__(self, directory: Path, settings: dict[str, Any], point: str) -> None:
        self.service = Service(directory)
        self.service.settings = dataclasses.replace(self.service.settings, **settings)
        self._point = point
        self._trail = os.open(
            directory.with_name("trail"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        )
        self._is_counting = False

    def begin(self) -> None:
        """From now on points count."""
        self._is_counting = True
        self.say("begin")

    def say(self, text: str) -> None:
        """Leave a line in the trail."""
        os.write(self._trail, f"{text}\n".encode())

    def at(self, point: Point) -> None:
        """Come to a point."""
        if self._is_counting:
            self.say(f"point {point}")
            if str(point) == self._point:
                os.kill(os.getpid(), signal.SIGKILL)

    async def submit(self, name: str) -> str:
        """Submit a job; leave word of it once it is acknowledged."""
        spec = JobSpec(script(self.service.directory, name), name=name)
        status = await self.service.app.submit(self.service.principal, spec, name)
        self.say(f"acknowledged {status.request_id}")
        return status.request_id

    async def running(self, name: str) -> str:
        """Submit a job and return when its script has begun."""
        request_id = await self.submit(name)
        await self.is_running(request_id)
        await self.service.printed(request_id, "one")
        return request_id

    async def is_running(self, request_id: str) -> None:
        """Return when a job runs."""
        await self.service.until(request_id, lambda now: now.status is Status.RUNNING)

    def open_gate(self, name: str) -> None:
        """Let the script of a job go on."""
        open_gate(self.service.directory, name)

    async def stop(self, request_id: str) -> None:
        """Have a job stopped."""
        await self.service.app.stop(self.service.principal, request_id)

    async def archived(self, request_id: str) -> None:
        """Return when a job is over and nothing is left to be done for it."""
        await self.service.until(request_id)
        await quiet(self.service)


async def quiet(service: Service) -> None:
    """Return when nothing is left to be done for jobs that are over."""
    name = service.settings.node
    async with asyncio.timeout(DEADLINE_S):
        while (
            service.app._supervisor._actors
            or set(service.node.places.vms()) != waiting(service)
            or await service.database.read(
                lambda tx: log_index.unstored(tx, node=name, after=None, limit=1)
            )
        ):
            await asyncio.sleep(0.005)


def waiting(service: Service) -> set[str]:
    """Return the names of the VMs that wait."""
    return {vm.handle.vm for stock in service.node.pool._stocks.values() for vm in stock.ready}


def open_gate(directory: Path, name: str) -> None:
    """Let the script of a job go on."""
    (directory / f"{name}.gate").touch()


# --- scenes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Something a service does, all points of which are to be tried."""

    play: Callable[[Player], Awaitable[None]]
    settings: dict[str, Any] = field(default_factory=dict)


async def _miss(player: Player) -> None:
    await player.service.start()
    player.begin()
    await player.is_running(await player.submit("a"))


async def _hit(player: Player) -> None:
    await player.service.start()
    await player.service.waiting(1)
    player.begin()
    await player.is_running(await player.submit("a"))
    await player.service.waiting(1)


async def _late_claim(player: Player) -> None:
    """A job waits for room and then finds a VM that waits."""
    await player.service.start()
    await player.service.waiting(1)
    first = await player.running("a")
    await player.service.waiting(1)
    second = await player.submit("b")
    player.begin()
    player.open_gate("a")
    await player.is_running(second)
    await player.service.until(first)


async def _end(player: Player) -> None:
    await player.service.start()
    request_id = await player.running("a")
    player.begin()
    player.open_gate("a")
    await player.archived(request_id)


async def _stop(player: Player) -> None:
    await player.service.start()
    request_id = await player.running("a")
    player.begin()
    await player.stop(request_id)
    await player.archived(request_id)


async def _stop_at_once(player: Player) -> None:
    await player.service.start()
    await player.service.waiting(1)
    player.begin()
    request_id = await player.submit("a")
    await player.stop(request_id)
    await player.archived(request_id)
    await player.service.waiting(1)


async def _refill(player: Player) -> None:
    player.begin()
    await player.service.start()
    await player.service.waiting(1)


async def _restart(player: Player) -> None:
    await player.service.start()
    request_id = await player.running("a")
    await player.service.stop()
    player.begin()
    await player.service.start()
    player.open_gate("a")
    await player.archived(request_id)


async def _quit(player: Player) -> None:
    """An operator stops the service while a job runs and a VM waits."""
    await player.service.start()
    await player.running("a")
    await player.service.waiting(1)
    player.begin()
    await player.service.stop()


SCENES = {
    "miss": Scene(_miss),
    "hit": Scene(_hit, POOLED),
    "late claim": Scene(_late_claim, {**POOLED, "capacity": ONE_AT_A_TIME}),
    "end": Scene(_end),
    "end in a pooled VM": Scene(_end, POOLED),
    "stop": Scene(_stop),
    "stop in a pooled VM": Scene(_stop, POOLED),
    "stop at once": Scene(_stop_at_once, POOLED),
    "refill": Scene(_refill, POOLED),
    "restart": Scene(_restart),
    "quit": Scene(_quit, POOLED),
}


# --- the process ---------------------------------------------------------------------


async def _play(order: dict[str, Any], scene: Scene) -> None:
    player = Player(Path(order["directory"]), scene.settings, order["point"])
    if order["store"] is not None:
        player.service.object_store = ObjectStoreSettings(**order["store"])
    with watched(player.at):
        async with asyncio.timeout(DEADLINE_S):
            await scene.play(player)
        player.say("end")
        os.kill(os.getpid(), signal.SIGKILL)


def main(scenes: dict[str, Scene]) -> None:
    """Play what is ordered of `scenes` until there are no more orders."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            asyncio.run(_play(order, scenes[order["scene"]]))
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        print(status, flush=True)


if __name__ == "__main__":
    main(SCENES)
