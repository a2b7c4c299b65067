"""The image store: what it keeps, and that it notices what was done to it."""

import hashlib
import os

import pytest

from magsd.model.errors import InvalidError, JobCode, LaunchError, NotFoundError
from magsd.storage.images import ImageStore


@pytest.fixture
def store(tmp_path):
    return ImageStore(tmp_path / "data")


@pytest.fixture
def squashfs(tmp_path):
    path = tmp_path / "made.sqfs"
    path.write_bytes(b"hsqs" + os.urandom(2000))
    return path


def test_an_image_is_found_again_by_its_name(store, squashfs, tmp_path):
    added = store.add("standard", squashfs, {"release": "bookworm"})

    found = ImageStore(tmp_path / "data").get("standard")

    assert found == added
    assert found.metadata == {"release": "bookworm"}
    assert found.size_bytes == 2004
    (layer,) = found.layers
    assert layer.stem == hashlib.sha256(squashfs.read_bytes()).hexdigest()
    assert layer.read_bytes() == squashfs.read_bytes()


def test_the_same_content_is_kept_once(store, squashfs, tmp_path):
    first = store.add("one", squashfs, {})
    second = store.add("two", squashfs, {})

    assert store.names() == ["one", "two"]
    assert first.layers == second.layers
    assert len(list((tmp_path / "data/layers").iterdir())) == 1


def test_an_image_of_the_same_name_is_replaced(store, squashfs):
    before = store.add("standard", squashfs, {})
    held = before.layers[0].open("rb")
    squashfs.unlink()
    squashfs.write_bytes(b"hsqs other")

    after = store.add("standard", squashfs, {})

    assert store.get("standard") == after
    assert after.digest != before.digest
    with held:
        assert hashlib.file_digest(held, "sha256").hexdigest() == before.layers[0].stem


def test_an_unknown_name_lists_the_known(store, squashfs):
    with pytest.raises(NotFoundError, match="magsd image build standard"):
        store.get("other")
    store.add("standard", squashfs, {})
    with pytest.raises(NotFoundError, match="known: standard"):
        store.get("other")


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "-a", "a" * 64, "a\n"])
def test_a_name_is_never_a_path(store, squashfs, name):
    with pytest.raises(NotFoundError):
        store.get(name)
    with pytest.raises(InvalidError, match="cannot name an image"):
        store.add(name, squashfs, {})


def test_what_is_no_squashfs_is_refused(store, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"PK\3\4")
    with pytest.raises(InvalidError, match="not a squashfs"):
        store.add("standard", path, {})


async def test_an_image_as_it_was_added_is_whole(store, squashfs):
    image = store.add("standard", squashfs, {})
    await store.verify(image.name, image.layers)
    await store.verify(image.name, image.layers)


@pytest.mark.parametrize("damage", ["changed", "cut", "removed"])
async def test_damage_is_noticed_also_after_it_was_whole(store, squashfs, damage):
    image = store.add("standard", squashfs, {})
    await store.verify(image.name, image.layers)
    (layer,) = image.layers
    content = bytearray(layer.read_bytes())
    layer.unlink()
    if damage == "changed":
        content[100] ^= 1
        layer.write_bytes(content)
    elif damage == "cut":
        layer.write_bytes(content[:-1])

    with pytest.raises(LaunchError, match="is damaged: run") as caught:
        await store.verify(image.name, image.layers)

    assert caught.value.job_code is JobCode.IMAGE_DAMAGED


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"layers": 3}'])
def test_a_damaged_record_says_what_to_do(store, squashfs, tmp_path, content):
    store.add("standard", squashfs, {})
    (tmp_path / "data/images/standard.json").write_text(content)

    with pytest.raises(LaunchError, match="is damaged: run"):
        store.get("standard")


def test_adding_repairs_a_damaged_layer(store, squashfs):
    image = store.add("standard", squashfs, {})
    content = squashfs.read_bytes()
    squashfs.unlink()
    squashfs.write_bytes(content)
    image.layers[0].unlink()
    image.layers[0].write_bytes(b"hsqs broken")

    store.add("standard", squashfs, {})

    assert image.layers[0].read_bytes() == content
