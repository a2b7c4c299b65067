"""Two machines' layers and the objects they share."""

import pytest

from magsd.storage.layers import LayerStore
from tests.integration.storage.held_parts import CountingStore, HeldClock


@pytest.fixture
async def objects(tmp_path):
    store = CountingStore(tmp_path / "objects")
    yield store
    await store.aclose()


@pytest.fixture
def clock():
    return HeldClock()


@pytest.fixture
async def layers(tmp_path, objects, clock):
    store = LayerStore(tmp_path / "data", objects, clock, cache_bytes=0)
    yield store
    assert list((tmp_path / "data/layers/.staging").iterdir()) == []


@pytest.fixture
async def elsewhere(tmp_path, objects, clock):
    """The same objects, and a machine that has no layer yet."""
    store = LayerStore(tmp_path / "elsewhere", objects, clock, cache_bytes=0)
    yield store
    assert list((tmp_path / "elsewhere/layers/.staging").iterdir()) == []


@pytest.fixture
def upper(tmp_path):
    folder = tmp_path / "upper"
    folder.mkdir()
    return folder
