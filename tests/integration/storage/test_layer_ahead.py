"""Chunks that are sent while a layer is packed: a guess, whatever the packer does."""

import asyncio
import hashlib
import os

import pytest

from magsd.aio import SystemClock
from magsd.model.errors import CapacityError, TooLargeError
from magsd.storage import layer_packing
from magsd.storage.layer_ahead import AheadSender
from magsd.storage.layers import LayerStore
from tests.integration.storage.held_parts import ACCOUNT, OTHER

DEADLINE_S = 60.0
LARGE = os.urandom(24 << 20)


@pytest.fixture
def clock():
    return SystemClock()


@pytest.fixture
def slow_end(monkeypatch):
    """A packer that ends when what can be sent ahead has been."""
    pack = layer_packing.pack_directory

    def ending_when(is_enough):
        async def packing(directory, into):
            packed = await pack(directory, into)
            async with asyncio.timeout(DEADLINE_S):
                while not is_enough():
                    await asyncio.sleep(0.01)
            return packed

        monkeypatch.setattr(layer_packing, "pack_directory", packing)

    return ending_when


def has_sent(objects, size_bytes):
    return lambda: sum(file.stat().st_size for file in objects.files("chunks")) >= size_bytes


def are_true(objects):
    """Whether every chunk is what its name says."""
    files = objects.files("chunks")
    return all(hashlib.sha256(file.read_bytes()).hexdigest() == file.name for file in files)


async def restored(elsewhere, layers, layer, account=ACCOUNT):
    path = await elsewhere.ensure(account, layer)
    return path.read_bytes() == layers.path(layer.sha256).read_bytes()


async def test_most_of_a_layer_is_sent_before_it_is_packed(
    layers, elsewhere, upper, objects, slow_end
):
    (upper / "a").write_bytes(LARGE)
    slow_end(has_sent(objects, 12 << 20))
    layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    assert objects.files("lists") == []
    ahead = objects.puts
    sent_bytes = await layers.upload(ACCOUNT, layer)
    # Twice: what was still on its way.
    assert layer.size_bytes < sent_bytes < layer.size_bytes + (10 << 20)
    assert objects.puts < 2 * ahead
    assert await layers.upload(ACCOUNT, layer) == 0
    assert are_true(objects)
    assert await restored(elsewhere, layers, layer)
    assert layers.untidy == set()


async def test_what_another_account_was_sent_counts_for_nobody_else(
    layers, elsewhere, upper, objects, slow_end
):
    (upper / "a").write_bytes(LARGE)
    slow_end(has_sent(objects, 12 << 20))
    layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    assert layer.size_bytes < await layers.upload(OTHER, layer) < layer.size_bytes + (1 << 20)
    assert await restored(elsewhere, layers, layer, OTHER)


async def test_what_the_packer_takes_back_is_in_no_layer(
    layers, elsewhere, upper, objects, slow_end
):
    """It finds out that a file is as an earlier one when it has written it."""
    for name in "abc":
        (upper / name).write_bytes(LARGE)
    slow_end(has_sent(objects, 12 << 20))
    layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    assert layer.size_bytes < len(LARGE) + (1 << 20)
    await layers.upload(ACCOUNT, layer)
    assert are_true(objects)
    assert await restored(elsewhere, layers, layer)


async def test_a_file_that_changes_under_it_gives_true_chunks(objects, tmp_path, clock):
    file = tmp_path / "packed"
    sender = AheadSender(objects, clock)
    async with asyncio.timeout(DEADLINE_S), sender.following(ACCOUNT, file) as ahead:
        for number in range(4):
            file.write_bytes(os.urandom((12 + 6 * number) << 20))
            while ahead.sent_bytes < number << 20:
                await asyncio.sleep(0.01)
    assert are_true(objects)


async def test_a_collection_meanwhile_takes_nothing_from_a_layer(
    layers, elsewhere, upper, objects, slow_end
):
    (upper / "a").write_bytes(LARGE)
    slow_end(has_sent(objects, 12 << 20))
    layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    # What was on its way may arrive after the first time.
    async with asyncio.timeout(DEADLINE_S):
        while objects.files("chunks"):
            await layers.delete_objects(ACCOUNT, ())
    await layers.upload(ACCOUNT, layer)
    assert await restored(elsewhere, layers, layer)


async def test_what_was_sent_of_no_layer_is_known_until_it_is_removed(
    layers, upper, objects, monkeypatch
):
    (upper / "a").write_bytes(LARGE)
    pack = layer_packing.pack_directory

    async def refused(directory, into):
        await pack(directory, into)
        async with asyncio.timeout(DEADLINE_S):
            while not objects.files("chunks"):
                await asyncio.sleep(0.01)
        raise TooLargeError("in the end")

    monkeypatch.setattr(layer_packing, "pack_directory", refused)
    with pytest.raises(TooLargeError, match="in the end"):
        await layers.pack_directory(upper, account_id=ACCOUNT)
    assert layers.untidy == {ACCOUNT}
    assert objects.files("chunks")
    # What was on its way may arrive after the first time.
    async with asyncio.timeout(DEADLINE_S):
        while objects.files("chunks"):
            await layers.delete_objects(ACCOUNT, ())
    assert layers.untidy == set()


async def test_a_store_that_is_away_delays_no_layer(layers, elsewhere, upper, objects, monkeypatch):
    (upper / "a").write_bytes(LARGE)
    is_tried = asyncio.Event()
    put_all, pack = objects.put_all, layer_packing.pack_directory

    async def away(objects):
        is_tried.set()
        raise CapacityError("the object store cannot be used now")

    async def packing(directory, into):
        packed = await pack(directory, into)
        async with asyncio.timeout(DEADLINE_S):
            await is_tried.wait()
        return packed

    monkeypatch.setattr(objects, "put_all", away)
    monkeypatch.setattr(layer_packing, "pack_directory", packing)
    layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    with pytest.raises(CapacityError):
        await layers.upload(ACCOUNT, layer)
    monkeypatch.setattr(objects, "put_all", put_all)
    assert await layers.upload(ACCOUNT, layer) > layer.size_bytes
    assert await restored(elsewhere, layers, layer)


async def test_a_store_that_hangs_delays_no_layer(layers, upper, objects, slow_end):
    (upper / "a").write_bytes(LARGE)
    objects.may_go_on.clear()
    slow_end(objects.is_asked.is_set)
    before = asyncio.all_tasks()
    async with asyncio.timeout(DEADLINE_S):
        layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    assert layer is not None
    assert asyncio.all_tasks() == before
    objects.may_go_on.set()
    assert await layers.upload(ACCOUNT, layer) > layer.size_bytes


async def test_who_gives_up_a_pack_leaves_no_task(layers, upper, objects, slow_end):
    (upper / "a").write_bytes(LARGE)
    slow_end(lambda: False)
    before = asyncio.all_tasks()
    async with asyncio.TaskGroup() as group:
        packing = group.create_task(layers.pack_directory(upper, account_id=ACCOUNT))
        async with asyncio.timeout(DEADLINE_S):
            while not objects.files("chunks"):
                await asyncio.sleep(0.01)
        packing.cancel()
    assert asyncio.all_tasks() == before
    assert layers.untidy == {ACCOUNT}


async def test_layers_that_are_known_no_more_are_cut_again(
    tmp_path, objects, clock, upper, elsewhere, monkeypatch
):
    monkeypatch.setattr("magsd.storage.layers._CHUNKS_KEPT", 1)
    layers = LayerStore(tmp_path / "data", objects, clock, cache_bytes=0)
    (upper / "a").write_bytes(os.urandom(5 << 20))
    layer = await layers.pack_directory(upper, account_id=ACCOUNT)
    assert await layers.upload(ACCOUNT, layer) > layer.size_bytes
    assert await restored(elsewhere, layers, layer)
