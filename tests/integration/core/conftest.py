"""A service that runs, and leaves nothing behind."""

from collections.abc import AsyncIterator

import pytest

from magsd.storage.images import ImageStore
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
