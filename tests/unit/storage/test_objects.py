"""An object store in a directory: addresses, and what a crash or a full disk leaves."""

import os
import re

import pytest

from magsd.model.errors import CapacityError, InvalidError
from magsd.storage.objects import BucketStore, DirectoryStore, ObjectStoreSettings, open_store


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/objects",
        "file:relative",
        "file://host/srv",
        "http://host/bucket",
        "s3://",
        "s3:bucket",
        "s3://key:private@bucket",
        "s3://bucket?private",
        "s3://bucket/../x",
        "s3://[",
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(url):
    with pytest.raises(InvalidError) as caught:
        open_store(ObjectStoreSettings(url))
    assert "private" not in caught.value.message


async def test_a_bucket_is_not_tried_before_it_is_used():
    settings = ObjectStoreSettings(
        "s3://bucket/some/prefix", {"AWS_ENDPOINT_URL": "http://[::1]:1"}
    )
    store = open_store(settings)
    assert isinstance(store, BucketStore)
    assert store.trouble is None
    await store.aclose()


def test_secrets_are_not_shown():
    assert "private" not in repr(ObjectStoreSettings("s3://b", {"AWS_SESSION_TOKEN": "private"}))


async def test_what_an_unfinished_put_left_is_cleared_and_never_listed(tmp_path):
    root = tmp_path / "with space"
    (root / ".staging").mkdir(parents=True)
    (root / ".staging/abcd").write_text("half")
    store = open_store(ObjectStoreSettings(root.as_uri()))
    assert isinstance(store, DirectoryStore)
    assert list((root / ".staging").iterdir()) == []
    await store.put("a/b", b"whole")
    assert (root / "a/b").read_bytes() == b"whole"
    assert root.stat().st_mode & 0o777 == 0o700
    assert (root / "a").stat().st_mode & 0o777 == 0o700
    await store.aclose()


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """What is synced and renamed below the directory of a test, in its order."""
    steps = []
    sync, rename = os.fsync, type(tmp_path).rename

    def watched_sync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path))
        steps.append(f"sync {re.sub('[0-9a-f]{24}', 'staged', name) or '/'}")
        sync(descriptor)

    def watched_rename(path, target):
        steps.append(f"rename {str(target).removeprefix(str(tmp_path))}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(type(tmp_path), "rename", watched_rename)
    return steps


async def test_everything_is_synced_before_it_counts(tmp_path, steps):
    store = DirectoryStore(tmp_path)
    await store.put("a/b/c", b"")
    await store.aclose()
    assert steps == [
        "sync /.staging/staged",
        "sync /",
        "sync /a",
        "rename /a/b/c",
        "sync /a/b",
    ]


async def test_of_many_none_counts_before_all_are_synced(tmp_path, steps):
    store = DirectoryStore(tmp_path)
    await store.put_all([("a/b", b"1"), ("a/c", b"2"), ("d", b"3")])
    await store.aclose()
    staged = ["sync /.staging/staged"] * 3
    assert steps[:4] == [*staged, "sync /"]
    assert steps[4:7] == ["rename /a/b", "rename /a/c", "rename /d"]
    assert sorted(steps[7:]) == ["sync /", "sync /a"]


async def test_a_directory_that_cannot_be_written_is_trouble_that_passes(tmp_path):
    store = DirectoryStore(tmp_path / "objects")
    (tmp_path / "objects/a").write_text("a file where a folder belongs")
    with pytest.raises(CapacityError):
        await store.put("a/b", b"")
    assert store.trouble
    await store.put("b", b"")
    assert store.trouble is None
    assert list((tmp_path / "objects/.staging").iterdir()) == []
    await store.aclose()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CapacityError):
        open_store(ObjectStoreSettings((tmp_path / "file/objects").as_uri()))
