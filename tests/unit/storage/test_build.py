"""Taking a finished build out of a cache, and noticing when it is none."""

import json

import pytest

from magsd.storage import build
from magsd.storage.images import ImageStore, file_sha256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a finished build for this machine, whatever it is."""
    monkeypatch.setattr(build, "_codename", lambda: "bookworm")
    folder = tmp_path / "cache"
    folder.mkdir()
    squashfs = build.cached_path(folder)
    squashfs.write_bytes(b"hsqs" + bytes(1000))
    recipe = build.recipe_key("bookworm", build._architecture())
    record = {"sha256": file_sha256(squashfs), "metadata": {"recipe": recipe}}
    squashfs.with_suffix(".json").write_text(json.dumps(record))
    return folder


def test_a_finished_build_is_taken_and_then_left_alone(cache, tmp_path):
    store, said = ImageStore(tmp_path / "data"), []

    image = build.build_standard(store, cache, False, said.append)
    again = build.build_standard(store, cache, False, said.append)

    assert store.get("standard") == image == again
    assert said == [f"image standard: found built in {cache}", "image standard is up to date"]


def test_a_damaged_layer_is_put_right_from_the_cache(cache, tmp_path):
    store = ImageStore(tmp_path / "data")
    (layer,) = build.build_standard(store, cache, False, lambda _: None).layers
    layer.unlink()
    layer.write_bytes(b"hsqs")

    build.build_standard(store, cache, False, lambda _: None)

    assert file_sha256(layer) == layer.stem


@pytest.mark.parametrize("damage", ["file", "record", "no record"])
def test_a_damaged_build_is_made_anew(cache, tmp_path, monkeypatch, damage):
    squashfs = build.cached_path(cache)
    if damage == "file":
        squashfs.write_bytes(b"hsqs")
    elif damage == "record":
        squashfs.with_suffix(".json").write_text("{")
    else:
        squashfs.with_suffix(".json").unlink()
    asked = []
    monkeypatch.setattr(build, "_build", lambda *arguments: asked.append(arguments))

    build.build_cached(cache, False, lambda _: None)

    assert len(asked) == 1


def test_the_recipe_names_its_result():
    key = build.recipe_key("bookworm", "amd64")
    assert key == build.recipe_key("bookworm", "amd64")
    assert key != build.recipe_key("trixie", "amd64")
    assert key != build.recipe_key("bookworm", "arm64")
