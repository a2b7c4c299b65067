"""A service that runs, and leaves nothing behind."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from magsd.storage.images import ImageStore
from tests.integration.core.players import Players, empty_service, memory_folder
from tests.integration.core.service import Service


@pytest.fixture
async def service(tmp_path) -> AsyncIterator[Service]:
    layer = tmp_path / "layer.sqfs"
    layer.write_bytes(b"hsqs, and nothing of it is read")
    data = tmp_path / "data"
    ImageStore(data).add("standard", layer, {})
    service = Service(data)
    await service.start()
    try:
        yield service
    finally:
        service.engine.unready = None
        await service.stop()
        await service.engine.sweep(frozenset())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of scenes that are played to be killed."""
    with memory_folder() as it:
        yield it


@pytest.fixture
async def players(request, folder) -> AsyncIterator[Players]:
    """Those who play what the test's module calls `PLAYED`."""
    players = Players(folder, request.module.PLAYED)
    await players.start()
    try:
        yield players
    finally:
        await players.aclose()


@pytest.fixture
async def template(folder) -> Path:
    """A service that nothing has happened in, to be copied."""
    return await empty_service(folder)
