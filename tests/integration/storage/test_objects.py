"""The contract of an object store, in a directory and in a bucket of a real S3 server."""

import asyncio
import hashlib
import os
import re

import pytest

from magsd.model.errors import CapacityError, InvalidError, NotFoundError
from magsd.storage.objects import Head, ObjectStoreSettings, open_store
from tests.integration.s3_server import BUCKET, SECRET, s3_server

LARGE = os.urandom(1 << 20) * 13
"""More than one part of an upload."""


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture(params=["directory", "bucket", "bucket-prefix"])
async def store(request, tmp_path):
    if request.param == "directory":
        settings = ObjectStoreSettings((tmp_path / "objects").as_uri())
    else:
        server = request.getfixturevalue("s3")
        folder = re.sub(r"\W", "", request.node.name)
        prefix = f"a/{folder}" if request.param == "bucket-prefix" else folder
        settings = ObjectStoreSettings(f"s3://{BUCKET}/{prefix}", server.aws)
    opened = open_store(settings)
    yield opened
    await opened.aclose()


async def fetched(store, key, into, limit_bytes=1 << 30):
    found = await store.get(key, into, limit_bytes=limit_bytes)
    content = into.read_bytes()
    into.unlink()
    assert found.size_bytes == len(content)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    return content


async def test_what_was_put_is_there_until_it_is_deleted(store, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(LARGE)
    await store.put("logs/account/job/1", b"small")
    await store.put("logs/account/job/2", large)
    await store.put("empty", b"")
    assert await fetched(store, "logs/account/job/1", tmp_path / "got") == b"small"
    assert await fetched(store, "logs/account/job/2", tmp_path / "got") == LARGE
    assert await fetched(store, "empty", tmp_path / "got") == b""
    assert await store.head("logs/account/job/2") == Head("logs/account/job/2", len(LARGE))
    await store.put("logs/account/job/1", b"other")
    assert await fetched(store, "logs/account/job/1", tmp_path / "got") == b"other"
    for _ in range(2):
        await store.delete("logs/account/job/1")
    with pytest.raises(NotFoundError, match="logs/account/job/1"):
        await store.get("logs/account/job/1", tmp_path / "got", limit_bytes=10)
    with pytest.raises(NotFoundError):
        await store.head("logs/account/job/1")
    assert store.trouble is None


async def test_of_many_objects_those_are_known_that_are_there(store):
    await store.put("a/b/one", b"1")
    await store.put("a/b/empty", b"")
    keys = ["a/b/one", "a/b/none", "a/b", "a/b/empty", "other/one"]
    assert await store.sizes(keys) == {"a/b/one": 1, "a/b/empty": 0}
    assert await store.sizes([]) == {}
    with pytest.raises(InvalidError):
        await store.sizes(["a/b/one", "../b/one"])


async def test_what_was_put_with_others_is_there(store, tmp_path):
    wanted = {f"a/{number % 3}/{number}": os.urandom(100_000) for number in range(20)}
    await store.put("a/0/0", b"replaced")
    await store.put_all(iter(wanted.items()))
    for key, content in wanted.items():
        assert await fetched(store, key, tmp_path / "got") == content
    await store.put_all([])


async def test_of_many_an_error_leaves_each_whole_or_not_there(store, tmp_path):
    def some():
        yield "a/one", b"1" * 1000
        raise OSError("cannot be read")

    with pytest.raises(CapacityError):
        await store.put_all(some())
    assert await store.sizes(["a/one"]) in ({}, {"a/one": 1000})
    with pytest.raises(InvalidError):
        await store.put_all([("../a", b"")])
    await store.put_all([("a/one", b"2")])
    assert await fetched(store, "a/one", tmp_path / "got") == b"2"


async def test_a_list_is_of_one_folder(store):
    keys = [f"logs/a/{number}" for number in range(7)]
    for key in (*keys, "logs/ab/1", "other"):
        await store.put(key, b"x" * 3)
    assert sorted([head.key async for head in store.list("logs/a")]) == keys
    assert {head.size_bytes async for head in store.list("logs")} == {3}
    assert [head async for head in store.list("nothing")] == []


async def test_an_object_larger_than_expected_fills_no_disk(store, tmp_path):
    await store.put("large", LARGE)
    found = await store.get("large", tmp_path / "got", limit_bytes=10)
    assert 10 < found.size_bytes < len(LARGE)


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "../a", "a/..", ".staging/x", "a/", "a b", "ä", "a" * 129, "a\n"]
)
async def test_what_is_no_key_is_refused(store, tmp_path, key):
    with pytest.raises(InvalidError):
        await store.put(key, b"")
    with pytest.raises(InvalidError):
        await store.get(key, tmp_path / "got", limit_bytes=1)
    with pytest.raises(InvalidError):
        await store.delete(key)


async def test_many_at_once(store, tmp_path):
    """Also while folders come and go with the objects in them."""

    async def one(number):
        key = f"logs/a/{number % 3}/{number}"
        await store.put(key, str(number).encode())
        content = await fetched(store, key, tmp_path / str(number))
        await store.delete(key)
        return content

    async with asyncio.timeout(60):
        contents = await asyncio.gather(*(one(number) for number in range(60)))
    assert contents == [str(number).encode() for number in range(60)]
    assert [head async for head in store.list("logs")] == []


async def test_a_probe_leaves_nothing(store):
    await store.probe()
    assert store.trouble is None
    assert [head async for head in store.list("probe")] == []


async def test_a_store_that_was_closed(store):
    await store.aclose()
    with pytest.raises(CapacityError):
        await store.put("a", b"")


async def test_a_server_that_is_away_and_comes_back(tmp_path):
    with s3_server() as server:
        store = open_store(ObjectStoreSettings(f"s3://{BUCKET}", server.aws))
        await store.put("a", b"kept")
        server.stop()
        with pytest.raises(CapacityError) as caught:
            await store.get("a", tmp_path / "got", limit_bytes=10)
        assert caught.value.detail == store.trouble
        assert "127.0.0.1" in store.trouble
        assert SECRET not in store.trouble
        await store.probe()
        assert store.trouble is not None
        server.start()
        await store.probe()
        assert store.trouble is None
        (tmp_path / "got").unlink(missing_ok=True)
        assert await fetched(store, "a", tmp_path / "got") == b"kept"
        await store.aclose()


@pytest.mark.parametrize("bucket", [BUCKET, "none-such"])
async def test_wrong_keys_and_buckets_are_trouble_and_no_missing_object(s3, tmp_path, bucket):
    aws = s3.aws if bucket != BUCKET else {**s3.aws, "AWS_SECRET_ACCESS_KEY": "wrong-and-private"}
    store = open_store(ObjectStoreSettings(f"s3://{bucket}/x", aws))
    with pytest.raises(CapacityError):
        await store.put("a", b"")
    with pytest.raises(CapacityError):
        await store.get("a", tmp_path / "got", limit_bytes=10)
    await store.probe()
    assert store.trouble is not None
    assert "private" not in store.trouble
    await store.aclose()
