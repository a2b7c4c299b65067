"""Root filesystems that leave as archives and come back, compared with what an overlay shows."""

import asyncio
import gzip
import io
import os
import subprocess
import sys
import tarfile
from datetime import UTC, datetime

import pytest

from magsd.model.errors import InvalidError, MagsError, TooLargeError
from magsd.storage import root_exports
from magsd.storage.layers import TarLimits
from tests.integration.storage.held_parts import ACCOUNT, packed
from tests.integration.storage.overlays import describe, links, mounted_layer, overlay

CALLED = root_exports.ImageName("made", "1", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
async def chain(layers, tmp_path):
    """Return the files of a base, and of two layers that an overlay wrote above it."""
    base = tmp_path / "base"
    (base / "d/sub").mkdir(parents=True)
    (base / "d/sub/old").write_text("old")
    (base / "gone").write_text("gone")
    (base / "kept").write_bytes(os.urandom(70_000))
    os.link(base / "kept", base / "d/second")
    (base / "link").symlink_to("d/sub/old")
    (base / "tmp").mkdir()
    (base / "tmp").chmod(0o1777)
    with (base / "sparse").open("wb") as file:
        file.truncate(200 << 20)
        file.seek(5 << 20)
        file.write(b"middle")
    found = [await packed(layers, base)]
    for change in (_first, _second):
        upper = tmp_path / change.__name__
        upper.mkdir()
        work = tmp_path / f"work{change.__name__}"
        work.mkdir()
        with overlay(base, [layers.path(each.sha256) for each in found[1:]], work, upper) as merged:
            change(merged)
        found.append(await packed(layers, upper))
    return [layers.path(each.sha256) for each in found]


def _first(merged):
    (merged / "gone").unlink()
    for each in (merged / "d/sub").iterdir():
        each.unlink()
    (merged / "d/sub").rmdir()
    (merged / "d/sub").mkdir()
    (merged / "d/sub/new").write_text("new")
    (merged / "kept").chmod(0o4755)
    os.chown(merged / "kept", 1000, 2000)


def _second(merged):
    (merged / "d/second").unlink()
    (merged / "gone").mkdir()
    (merged / "gone/again").write_text("again")
    (
        merged
        / "name\nwith \udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    ).touch()
    os.setxattr(merged / "d/sub/new", "user.a", b"\0b")


def _seen(files, tmp_path):
    """Return what an overlay of layer files shows, by content and metadata."""
    work = tmp_path / "seen"
    work.mkdir(exist_ok=True)
    with (
        mounted_layer(files[0], tmp_path / "lowest") as base,
        overlay(base, files[1:], work) as merged,
    ):
        return describe(merged), links(merged)


async def _collected(pieces, file):
    with file.open("wb") as into:
        async for piece in pieces:
            into.write(piece)
    return file


async def _exported(form, files, tmp_path):
    mount_point, folder = tmp_path / "mount", tmp_path / "blobs"
    mount_point.mkdir()
    if form == "tar":
        return await _collected(root_exports.root(files, mount_point), tmp_path / "out")
    folder.mkdir()
    image = await root_exports.image(files, mount_point, folder, CALLED)
    return await _collected(image.pieces(), tmp_path / "out")


@pytest.mark.parametrize("form", ["tar", "oci"])
async def test_what_comes_back_is_what_was_seen(layers, chain, tmp_path, form):
    archive = await _exported(form, chain, tmp_path)
    layer = await layers.pack_root(archive, TarLimits(), "auto")
    tree, names = _seen(chain, tmp_path)
    again, names_again = _seen([layers.path(layer.sha256)], tmp_path)
    assert again == tree
    assert names_again == names


async def test_a_tar_is_what_tar_unpacks(chain, tmp_path):
    archive = await _exported("tar", chain, tmp_path)
    assert archive.stat().st_size < 1 << 20
    into = tmp_path / "unpacked"
    into.mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "-xpf", archive, "-C", into]
    subprocess.run(command, check=True)
    tree, names = _seen(chain, tmp_path)
    assert describe(into) == tree
    assert links(into) == names


async def test_the_same_layers_give_the_same_image(chain, tmp_path):
    whole = []
    for turn in ("one", "two"):
        folder = tmp_path / turn
        folder.mkdir()
        whole.append((await _exported("oci", chain, folder)).read_bytes())
    assert whole[0] == whole[1]


async def test_a_name_that_hides_cannot_be_in_an_image_but_in_a_tar(layers, upper, tmp_path):
    layer = await packed(layers, upper, **{".wh.a": b"x"})
    files = [layers.path(layer.sha256)]
    with pytest.raises(InvalidError, match=r"\.wh\.a.*export as tar"):
        await _exported("oci", files, tmp_path)
    (tmp_path / "again").mkdir()
    archive = await _exported("tar", files, tmp_path / "again")
    with tarfile.open(archive) as found:
        assert "./.wh.a" in found.getnames()


@pytest.mark.parametrize("form", ["tar", "oci"])
async def test_a_layer_that_cannot_be_read_is_an_error(tmp_path, form):
    broken = tmp_path / "broken.sqfs"
    broken.write_bytes(b"hsqs and nothing else")
    with pytest.raises(MagsError, match="could not be exported"):
        await _exported(form, [broken], tmp_path)


async def test_an_export_that_is_left_ends_its_programs(chain, tmp_path):
    (tmp_path / "mount").mkdir()
    pieces = root_exports.root(chain, tmp_path / "mount")
    await anext(pieces)
    await pieces.aclose()
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "layer_export" not in children.stdout


async def test_files_that_are_lent_outlive_their_deletion(layers, upper, tmp_path):
    layer = await packed(layers, upper, a=b"content")
    async with layers.lent([(ACCOUNT, layer)]) as (file,):
        await layers.discard([layer.sha256])
        assert not layers.path(layer.sha256).exists()
        assert file.stat().st_size == layer.size_bytes
    assert not file.exists()


def _archive(*members, compress=bytes):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for member in members:
            archive.addfile(member)
    return compress(sink.getvalue())


async def test_what_is_refused_leaves_nothing(layers, tmp_path):
    source, before = tmp_path / "source", sorted((tmp_path / "data/layers").iterdir())
    hostile = tarfile.TarInfo("../x")
    large = tarfile.TarInfo("a")
    cases = [
        (_archive(hostile), TarLimits(), InvalidError, "cannot be imported: the entry '../x'"),
        (_archive(large, hostile), TarLimits(entries=1), TooLargeError, "too many"),
        (gzip.compress(bytes(9 << 20)), TarLimits(content_bytes=1 << 20), TooLargeError, "large"),
    ]
    for content, limits, kind, said in cases:
        source.write_bytes(content)
        with pytest.raises(kind, match=said):
            await layers.pack_root(source, limits, "auto")
    assert sorted((tmp_path / "data/layers").iterdir()) == before


async def test_an_archive_of_nothing_makes_no_layer(layers, tmp_path):
    (tmp_path / "source").write_bytes(_archive())
    assert await layers.pack_root(tmp_path / "source", TarLimits(), "auto") is None


MEASURE = """
import asyncio, resource, sys
from pathlib import Path
from magsd.storage import root_exports

async def main():
    async for piece in root_exports.root([Path(sys.argv[1])], Path(sys.argv[2])):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

asyncio.run(main())
"""


async def test_memory_does_not_grow_with_what_is_exported(layers, upper, tmp_path):
    (tmp_path / "mount").mkdir()
    peaks = []
    for size in (1 << 20, 300 << 20):
        with (upper / "a").open("wb") as file:
            for _ in range(0, size, 1 << 20):
                file.write(os.urandom(1 << 10) * (1 << 10))
        layer = await packed(layers, upper)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", MEASURE, layers.path(layer.sha256), tmp_path / "mount"],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append([int(each) for each in done.stdout.split()])
    for small, large in zip(*peaks, strict=True):
        assert large - small < 32 << 10, peaks
