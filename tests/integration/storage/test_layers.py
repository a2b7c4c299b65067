"""Layers of workspaces: the files here, and the objects in a store."""

import asyncio
import os
from datetime import timedelta

import pytest

from magsd.model.errors import CapacityError
from magsd.model.layers import Layer
from magsd.storage.layers import DamagedLayerError, LayerStore
from tests.integration.storage.held_parts import ACCOUNT, OTHER, packed

LARGE = os.urandom(3 << 20)


async def test_what_was_uploaded_is_fetched_elsewhere(layers, elsewhere, upper, objects):
    layer = await packed(layers, upper, a=LARGE)
    told = []
    sent = await layers.upload(ACCOUNT, layer, progress=told.append)
    assert layer.size_bytes < sent < layer.size_bytes + 4096
    assert told == sorted(told)
    assert told[-1] == layer.size_bytes
    assert await layers.upload(ACCOUNT, layer) == 0
    path = await elsewhere.ensure(ACCOUNT, layer)
    assert path == elsewhere.path(layer.sha256)
    assert path.read_bytes() == layers.path(layer.sha256).read_bytes()
    objects.gets = 0
    assert await elsewhere.ensure(ACCOUNT, layer) == path
    assert objects.gets == 0


async def test_of_what_has_changed_little_little_is_sent(layers, elsewhere, upper):
    for number in range(40):
        (upper / f"{number:02}").write_bytes(os.urandom(500_000))
    first = await packed(layers, upper)
    await layers.upload(ACCOUNT, first)
    (upper / "20").write_bytes(os.urandom(600_000))
    second = await packed(layers, upper)
    assert await layers.upload(ACCOUNT, second) < 4_000_000
    path = await elsewhere.ensure(ACCOUNT, second)
    assert path.read_bytes() == layers.path(second.sha256).read_bytes()


async def test_accounts_share_no_object(layers, elsewhere, upper):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    with pytest.raises(DamagedLayerError, match=layer.sha256):
        await elsewhere.ensure(OTHER, layer)
    assert await layers.upload(OTHER, layer) > layer.size_bytes
    await layers.delete_objects(ACCOUNT, [layer.sha256])
    await elsewhere.ensure(OTHER, layer)


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "longer"])
@pytest.mark.parametrize("kind", ["chunks", "lists"])
async def test_a_damaged_object_is_found_and_the_layer_named(
    layers, elsewhere, upper, objects, damage, kind
):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    file = objects.files(kind)[-1]
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        altered = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(
            {"altered": altered, "truncated": content[:middle], "longer": content + b"x"}[damage]
        )
    with pytest.raises(DamagedLayerError, match=layer.sha256) as caught:
        await elsewhere.ensure(ACCOUNT, layer)
    assert caught.value.sha256 == layer.sha256
    assert not elsewhere.path(layer.sha256).exists()


async def test_a_list_of_another_layer_is_found(layers, elsewhere, upper, objects):
    """Of the same size, with whole chunks."""
    layer = await packed(layers, upper, a=LARGE)
    (upper / "a").write_bytes(LARGE[::-1])
    other = await packed(layers, upper)
    assert other.size_bytes == layer.size_bytes
    for each in (layer, other):
        await layers.upload(ACCOUNT, each)
    lists = objects.root / "layers" / ACCOUNT / "lists"
    (lists / layer.sha256).write_bytes((lists / other.sha256).read_bytes())
    with pytest.raises(DamagedLayerError, match=layer.sha256):
        await elsewhere.ensure(ACCOUNT, layer)


async def test_a_truncated_chunk_is_sent_again(layers, elsewhere, upper, objects):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    objects.files("lists")[0].unlink()
    objects.files("chunks")[0].write_bytes(b"half")
    assert 0 < await layers.upload(ACCOUNT, layer) < layer.size_bytes
    await elsewhere.ensure(ACCOUNT, layer)


async def test_a_damaged_file_is_fetched_anew(layers, upper):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    path = layers.path(layer.sha256)
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DamagedLayerError, match="this machine"):
        await layers.upload(OTHER, layer)
    with path.open("rb") as mounted:
        assert (await layers.ensure(ACCOUNT, layer)).read_bytes() == content
        assert mounted.read()[-1:] == b"x"


async def test_many_who_want_one_layer_cause_one_fetch(layers, elsewhere, upper, objects):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    objects.gets = 0
    paths = await asyncio.gather(*(elsewhere.ensure(ACCOUNT, layer) for _ in range(20)))
    assert set(paths) == {elsewhere.path(layer.sha256)}
    assert objects.gets == len(objects.files("chunks")) + 1


async def test_many_who_want_what_is_damaged_are_told_by_one_fetch(
    layers, elsewhere, upper, objects
):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    objects.files("lists")[0].unlink()
    objects.gets = 0
    wanted = (elsewhere.ensure(ACCOUNT, layer) for _ in range(20))
    errors = await asyncio.gather(*wanted, return_exceptions=True)
    assert {type(error) for error in errors} == {DamagedLayerError}
    assert objects.gets == 1


async def test_who_is_cancelled_while_fetching_spoils_nothing_for_others(
    layers, elsewhere, upper, objects
):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    objects.may_go_on.clear()
    objects.is_asked.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(elsewhere.ensure(ACCOUNT, layer))
        second = group.create_task(elsewhere.ensure(ACCOUNT, layer))
        await objects.is_asked.wait()
        first.cancel()
        objects.may_go_on.set()
    assert second.result() == elsewhere.path(layer.sha256)


async def test_a_cancelled_upload_goes_on_where_it_was(layers, elsewhere, upper, objects):
    layer = await packed(layers, upper, a=LARGE)

    def stop(done_bytes):
        if done_bytes > layer.size_bytes // 2:
            task.cancel()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(layers.upload(ACCOUNT, layer, progress=stop))
    assert task.cancelled()
    assert objects.files("lists") == []
    assert 0 < await layers.upload(ACCOUNT, layer) < layer.size_bytes * 2 // 3
    await elsewhere.ensure(ACCOUNT, layer)


async def test_a_store_that_is_away(layers, elsewhere, upper, objects):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    await objects.aclose()
    with pytest.raises(CapacityError):
        await layers.upload(OTHER, layer)
    with pytest.raises(CapacityError):
        await elsewhere.ensure(ACCOUNT, layer)
    assert await layers.ensure(ACCOUNT, layer) == layers.path(layer.sha256)


async def test_the_longest_unused_goes_first_and_never_what_is_needed(
    tmp_path, layers, upper, objects, clock
):
    image = tmp_path / f"data/layers/{'0' * 64}.sqfs"
    image.write_bytes(b"of an image")
    made = []
    for number in range(5):
        clock.time += timedelta(minutes=1)
        made.append(await packed(layers, upper, a=os.urandom(100_000 + number)))
        if number != 4:
            await layers.upload(ACCOUNT, made[-1])
    oldest, in_use, used, newest, unsent = made
    clock.time += timedelta(minutes=1)
    await layers.ensure(ACCOUNT, used)
    room = in_use.size_bytes + used.size_bytes + newest.size_bytes
    larger = LayerStore(tmp_path / "data", objects, clock, cache_bytes=room)
    assert await larger.forget_unused([in_use.sha256]) == oldest.size_bytes
    assert await larger.forget_unused([in_use.sha256]) == 0
    smaller = LayerStore(tmp_path / "data", objects, clock, cache_bytes=room - newest.size_bytes)
    assert await smaller.forget_unused([in_use.sha256]) == newest.size_bytes
    assert await layers.forget_unused([in_use.sha256]) == used.size_bytes
    left = {path.stem for path in (tmp_path / "data/layers").glob("*.sqfs")}
    assert left == {image.stem, in_use.sha256, unsent.sha256}
    await layers.discard([unsent.sha256, "f" * 64])
    assert not layers.path(unsent.sha256).exists()
    assert await layers.ensure(ACCOUNT, oldest) == layers.path(oldest.sha256)


async def test_chunks_go_with_the_last_layer_that_needs_them(layers, elsewhere, upper, objects):
    first = await packed(layers, upper, a=LARGE)
    second = await packed(layers, upper, b=os.urandom(1000))
    for each in (first, second):
        await layers.upload(ACCOUNT, each)
    orphan = objects.root / "layers" / ACCOUNT / "chunks" / ("e" * 64)
    orphan.write_bytes(b"left by an upload that never ended")
    before = len(objects.files("chunks"))
    await layers.delete_objects(ACCOUNT, [first.sha256])
    assert not orphan.exists()
    assert 0 < len(objects.files("chunks")) < before
    await elsewhere.ensure(ACCOUNT, second)
    for _ in range(2):
        await layers.delete_objects(ACCOUNT, [second.sha256])
    assert objects.files("chunks") == objects.files("lists") == []
    with pytest.raises(DamagedLayerError):
        await elsewhere.ensure(ACCOUNT, first)


async def test_no_chunk_is_removed_while_a_list_cannot_be_read(layers, upper, objects):
    first = await packed(layers, upper, a=LARGE)
    second = await packed(layers, upper, b=b"more")
    for each in (first, second):
        await layers.upload(ACCOUNT, each)
    chunks = objects.files("chunks")
    (objects.root / "layers" / ACCOUNT / "lists" / second.sha256).write_bytes(b"{}")
    with pytest.raises(DamagedLayerError, match=second.sha256):
        await layers.delete_objects(ACCOUNT, [first.sha256])
    assert objects.files("chunks") == chunks


async def test_a_deletion_and_an_upload_wait_for_each_other(layers, elsewhere, upper, objects):
    first = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, first)
    second = await packed(layers, upper, b=b"more")
    objects.may_go_on.clear()
    objects.is_asked.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(layers.upload(ACCOUNT, second))
        await objects.is_asked.wait()
        group.create_task(layers.delete_objects(ACCOUNT, [first.sha256]))
        objects.may_go_on.set()
    await elsewhere.ensure(ACCOUNT, second)


async def test_a_deletion_that_is_given_up_removes_nothing_that_is_sent_afterwards(
    layers, elsewhere, upper, objects
):
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    objects.may_go_on.clear()
    objects.is_asked.clear()
    async with asyncio.TaskGroup() as group:
        deleting = group.create_task(layers.delete_objects(ACCOUNT, [layer.sha256]))
        await objects.is_asked.wait()
        deleting.cancel()
        sending = group.create_task(layers.upload(ACCOUNT, layer))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not sending.done()
        objects.may_go_on.set()
    assert deleting.cancelled()
    await elsewhere.ensure(ACCOUNT, layer)


async def test_what_is_stored_need_not_be_here_to_be_stored(layers, elsewhere, upper):
    """A version that is restored or forked has layers that may have left this machine."""
    layer = await packed(layers, upper, a=LARGE)
    await layers.upload(ACCOUNT, layer)
    assert await elsewhere.upload(ACCOUNT, layer) == 0
    with pytest.raises(DamagedLayerError, match=layer.sha256):
        await elsewhere.upload(OTHER, layer)


async def test_a_layer_that_is_not_here_is_neither_sent_nor_merged(layers):
    gone = Layer("a" * 64, 1)
    with pytest.raises(DamagedLayerError, match=gone.sha256):
        await layers.upload(ACCOUNT, gone)
    with pytest.raises(DamagedLayerError, match=gone.sha256):
        await layers.merge([gone])
