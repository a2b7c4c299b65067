"""Layers in a bucket of a real S3 server: there, away, and back."""

import os

import pytest

from magsd.aio import SystemClock
from magsd.model.errors import CapacityError
from magsd.storage.layers import DamagedLayerError, LayerStore
from magsd.storage.objects import ObjectStoreSettings, open_store
from tests.integration.s3_server import BUCKET, s3_server
from tests.integration.storage.held_parts import ACCOUNT, packed
from tests.integration.storage.weak_network import AWAY, BUSY, FULL, OPEN, SLOW, way_to


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
async def objects(server):
    store = open_store(ObjectStoreSettings(f"s3://{BUCKET}/{os.urandom(4).hex()}", server.aws))
    yield store
    await store.aclose()


@pytest.fixture
def here(tmp_path, objects):
    return LayerStore(tmp_path / "here", objects, SystemClock(), cache_bytes=0)


@pytest.fixture
def there(tmp_path, objects):
    return LayerStore(tmp_path / "there", objects, SystemClock(), cache_bytes=0)


async def test_layers_come_and_go(here, there, objects, tmp_path):
    first = await packed(here, tmp_path / "upper", a=os.urandom(8 << 20), b=b"small")
    assert await here.upload(ACCOUNT, first) > first.size_bytes
    second = await packed(here, tmp_path / "upper", b=os.urandom(100_000))
    assert await here.upload(ACCOUNT, second) < 2 << 20
    for layer in (first, second):
        path = await there.ensure(ACCOUNT, layer)
        assert path.read_bytes() == here.path(layer.sha256).read_bytes()
    await here.delete_objects(ACCOUNT, [first.sha256])
    await there.discard([first.sha256, second.sha256])
    await there.ensure(ACCOUNT, second)
    with pytest.raises(DamagedLayerError, match=first.sha256):
        await there.ensure(ACCOUNT, first)
    await here.delete_objects(ACCOUNT, [second.sha256])
    assert [head async for head in objects.list("layers")] == []


@pytest.mark.parametrize("state", [AWAY, BUSY, FULL])
async def test_a_server_that_fails_in_the_middle_and_is_well_again(server, tmp_path, state):
    async with way_to(server.ports["s3"]) as (way, url):
        aws = {**server.aws, "AWS_ENDPOINT_URL": url}
        objects = open_store(ObjectStoreSettings(f"s3://{BUCKET}/{state}", aws))
        here = LayerStore(tmp_path / "here", objects, SystemClock(), cache_bytes=0)
        there = LayerStore(tmp_path / "there", objects, SystemClock(), cache_bytes=0)
        layer = await packed(here, tmp_path / "upper", a=os.urandom(8 << 20))

        def fail(done_bytes):
            if done_bytes > layer.size_bytes // 4:
                way.state = state

        with pytest.raises(CapacityError):
            await here.upload(ACCOUNT, layer, progress=fail)
        # Where there is no room one can read, and finds that the layer is not there.
        with pytest.raises(DamagedLayerError if state == FULL else CapacityError):
            await there.ensure(ACCOUNT, layer)
        assert way.refused
        assert list((tmp_path / "there/layers/.staging").iterdir()) == []
        way.state = OPEN
        assert 0 < await here.upload(ACCOUNT, layer) < layer.size_bytes
        path = await there.ensure(ACCOUNT, layer)
        assert path.read_bytes() == here.path(layer.sha256).read_bytes()
        await objects.aclose()


async def test_a_server_that_is_slow(server, tmp_path):
    async with way_to(server.ports["s3"]) as (way, url):
        aws = {**server.aws, "AWS_ENDPOINT_URL": url}
        objects = open_store(ObjectStoreSettings(f"s3://{BUCKET}/slow", aws))
        here = LayerStore(tmp_path / "here", objects, SystemClock(), cache_bytes=0)
        there = LayerStore(tmp_path / "there", objects, SystemClock(), cache_bytes=0)
        layer = await packed(here, tmp_path / "upper", a=os.urandom(1 << 20))
        way.state = SLOW
        await here.upload(ACCOUNT, layer)
        path = await there.ensure(ACCOUNT, layer)
        assert path.read_bytes() == here.path(layer.sha256).read_bytes()
        await objects.aclose()


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
@pytest.mark.parametrize("kind", ["chunks", "lists"])
async def test_a_damaged_object_is_found_and_the_layer_named(
    here, there, objects, tmp_path, damage, kind
):
    layer = await packed(here, tmp_path / "upper", a=os.urandom(1 << 20))
    await here.upload(ACCOUNT, layer)
    found = [head async for head in objects.list(f"layers/{ACCOUNT}/{kind}")]
    key = found[-1].key
    copy = tmp_path / "copy"
    await objects.get(key, copy, limit_bytes=8 << 20)
    content = copy.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        await objects.delete(key)
    elif damage == "truncated":
        await objects.put(key, content[:middle])
    else:
        altered = bytes([content[middle] ^ 1])
        await objects.put(key, content[:middle] + altered + content[middle + 1 :])
    with pytest.raises(DamagedLayerError, match=layer.sha256) as caught:
        await there.ensure(ACCOUNT, layer)
    if kind == "chunks":
        assert key.rpartition("/")[2] in caught.value.message
    assert not there.path(layer.sha256).exists()
