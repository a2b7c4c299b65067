"""Uploads on their way to the object store and back."""

import asyncio
import hashlib
import os
from datetime import UTC, datetime

import pytest

from magsd.model.errors import CapacityError, TooLargeError
from magsd.model.names import AccountId, new_file_id
from magsd.model.uploads import StoredFile, UploadedFile
from magsd.storage import uploads
from magsd.storage.objects import ObjectStoreSettings, open_store
from magsd.storage.uploads import GoneError, UploadStore
from tests.integration.s3_server import BUCKET, s3_server

CONTENT = bytes(range(256)) * 20_000


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture(params=["directory", "bucket"])
async def objects(request, tmp_path):
    settings = ObjectStoreSettings((tmp_path / "objects").as_uri())
    if request.param == "bucket":
        aws = request.getfixturevalue("server").aws
        settings = ObjectStoreSettings(f"s3://{BUCKET}/{os.urandom(4).hex()}", aws)
    objects = open_store(settings)
    yield objects
    await objects.aclose()


@pytest.fixture
def store(tmp_path, objects):
    return UploadStore(tmp_path, objects)


def stored_file(content=CONTENT):
    file = UploadedFile(new_file_id(), "f", len(content), hashlib.sha256(content).hexdigest())
    return StoredFile(file, AccountId("acc_1"), datetime.now(UTC))


async def put(store, stored, content=CONTENT):
    async with store.receiving() as received:
        for start in range(0, len(content), 70_000):
            await received.write(content[start : start + 70_000])
        await received.flush()
        assert received.sha256 == hashlib.sha256(content).hexdigest()
        assert received.size_bytes == len(content)
        await store.put(stored, received)


def lying(tmp_path):
    return list((tmp_path / "tmp").iterdir())


async def test_it_comes_back_as_it_was(store, tmp_path):
    stored = stored_file()
    await put(store, stored)
    assert lying(tmp_path) == []
    async with store.here(stored) as path:
        assert path.read_bytes() == CONTENT
    assert lying(tmp_path) == []


async def test_many_share_one_copy(store, objects, tmp_path, monkeypatch):
    stored, got = stored_file(), []
    await put(store, stored)
    get = objects.get

    async def counted(key, into, *, limit_bytes):
        got.append(key)
        return await get(key, into, limit_bytes=limit_bytes)

    monkeypatch.setattr(objects, "get", counted)
    leave = asyncio.Event()

    async def use():
        async with store.here(stored) as path:
            assert path.read_bytes() == CONTENT
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(use(), name="use")
        async with store.here(stored):
            pass
        assert len(lying(tmp_path)) == 1
        leave.set()
    assert len(got) == 1
    assert lying(tmp_path) == []


async def test_what_is_gone_or_changed_is_told(store, objects, tmp_path):
    stored = stored_file()
    for content in (None, CONTENT[:-1], CONTENT + b"x", b"x" + CONTENT[1:]):
        if content is not None:
            await objects.put(stored.key, content)
        with pytest.raises(GoneError, match="'f'"):
            async with store.here(stored):
                pass
        assert lying(tmp_path) == []
    await put(store, stored)
    async with store.here(stored):
        pass
    await store.delete(stored)
    with pytest.raises(GoneError):
        async with store.here(stored):
            pass


async def test_whoever_gives_up_leaves_it_to_the_others(store, objects, tmp_path, monkeypatch):
    stored = stored_file()
    await put(store, stored)
    get, goes_on, began = objects.get, asyncio.Event(), asyncio.Event()

    async def slow(key, into, *, limit_bytes):
        began.set()
        await goes_on.wait()
        return await get(key, into, limit_bytes=limit_bytes)

    monkeypatch.setattr(objects, "get", slow)

    async def use():
        async with store.here(stored) as path:
            return path.read_bytes()

    first, second = asyncio.ensure_future(use()), asyncio.ensure_future(use())
    await began.wait()
    first.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == CONTENT
    assert lying(tmp_path) == []


async def test_an_upload_that_breaks_off_or_is_too_large_leaves_nothing(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr(uploads, "UPLOAD_MAX_BYTES", 1000)
    with pytest.raises(TooLargeError):
        async with store.receiving() as received:
            await received.write(b"x" * 1001)
    async with store.receiving() as received:
        await received.write(b"x")
        assert lying(tmp_path) == [received.path]
    assert lying(tmp_path) == []


async def test_a_disk_that_is_nearly_full_takes_none(objects, tmp_path):
    store = UploadStore(tmp_path, objects, free_min_bytes=1 << 62)
    with pytest.raises(CapacityError, match="disk"):
        async with store.receiving():
            pass
    with pytest.raises(CapacityError, match="disk"):
        async with store.here(stored_file()):
            pass
