"""Processes that play scenes of `kill_points`, each play a fork of one that is ready."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magsd.storage.images import ImageStore
from magsd.storage.objects import ObjectStoreSettings
from tests.integration.core.service import DEADLINE_S, Service

PLAYERS = 2


class Players:
    """Processes that play scenes, each a fork of one that is ready."""

    def __init__(self, folder: Path, module: str) -> None:
        self._folder = folder
        self._module = module
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._all: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        for _ in range(PLAYERS):
            with (self._folder / "players.log").open("ab") as log:
                player = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    self._module,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    cwd=Path(__file__).parents[3],
                )
            self._all.append(player)
            self._idle.put_nowait(player)

    async def aclose(self) -> None:
        for player in self._all:
            player.stdin.close()
            await player.communicate()

    async def play(
        self,
        directory: Path,
        scene: str,
        point: str,
        store: ObjectStoreSettings | None = None,
    ) -> list[str]:
        """Play a scene until its point; return its trail."""
        player = await self._idle.get()
        try:
            where = None if store is None else {"url": store.url, "aws": dict(store.aws)}
            order = {"directory": str(directory), "scene": scene, "point": point, "store": where}
            player.stdin.write(json.dumps(order).encode() + b"\n")
            async with asyncio.timeout(2 * DEADLINE_S):
                status = int(await player.stdout.readline())
        finally:
            self._idle.put_nowait(player)
        log = (self._folder / "players.log").read_text(errors="replace")
        assert os.WIFSIGNALED(status), log[-4000:]
        assert os.WTERMSIG(status) == signal.SIGKILL, log[-4000:]
        return directory.with_name("trail").read_text().splitlines()


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Make a folder in memory, where there is one: what is killed are processes, not the host."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mags-", dir=memory if memory.is_dir() else None) as it:
        yield Path(it)


async def empty_service(folder: Path) -> Path:
    """Make a data directory with an image and a database that has no jobs."""
    layer = folder / "layer.sqfs"
    layer.write_bytes(b"hsqs, and nothing of it is read")
    template = folder / "template"
    ImageStore(template).add("standard", layer, {})
    service = Service(template)
    await service.start()
    await service.stop()
    return template
