"""That nothing is left of jobs that are over, and nothing is counted for them."""

import asyncio
import os
from pathlib import Path

from magsd.model.amount import Amount
from tests.integration.core.service import DEADLINE_S, Service


async def nothing_counted(service: Service) -> None:
    """Fail unless all room and all quotas are there again, once no job is left."""
    node = service.node
    async with asyncio.timeout(DEADLINE_S):
        while service.app._supervisor._actors or any(
            stock.making for stock in node.pool._stocks.values()
        ):
            await asyncio.sleep(0.005)
    assert node.room.free == node.room.capacity, (node.room.free, node.room.capacity)
    assert node.launches.free == Amount(vms=service.settings.launches_at_once)
    assert not node.quotas._used
    assert not node.room.waiting


def processes(directory: Path) -> list[str]:
    """Return the living processes that work in a data directory: its shims, each with its VM."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                place = os.readlink(path / "cwd")
                state = (path / "stat").read_text().rpartition(") ")[2][0]
            except OSError:
                continue
            if place.startswith(f"{directory}/") and state not in "ZX":
                found.append(f"{path.name} in {place.removesuffix(' (deleted)')}")
    return found
