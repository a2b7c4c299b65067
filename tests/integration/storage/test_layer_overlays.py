"""Layers as the kernel sees them: what a real overlay showed is there again from its layers."""

import asyncio
import os
import random
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from magsd.aio import SystemClock
from magsd.model.errors import CapacityError
from magsd.storage.layer_merging import TAR
from magsd.storage.layers import LayerStore, TarLimits
from magsd.storage.objects import DirectoryStore
from tests.integration.storage.overlays import (
    describe,
    links,
    mount,
    mounted_layer,
    overlay,
    unmount,
)

DEADLINE_S = 20.0

FULL = os.environ.get("MAGS_TEST_FULL") == "1"
ROUNDS, STEPS = (6, 120) if FULL else (3, 40)
SEEDS = range(12 if FULL else 2)
FILES = 100_000 if FULL else 5_000
CAPABILITY = b"\x01\0\0\x02\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0"
NAMES = ["a", "b", "c", "new\nline", os.fsdecode(b"\xff\xfe"), "n" * 255]


@pytest.fixture
async def layers(tmp_path):
    objects = DirectoryStore(tmp_path / "objects")
    yield LayerStore(tmp_path / "data", objects, SystemClock(), cache_bytes=0)
    await objects.aclose()


@pytest.fixture
def base(tmp_path):
    """An image's files."""
    folder = tmp_path / "base"
    for path in ("a/b/c", "b/a", "c"):
        (folder / path).mkdir(parents=True)
    for path in ("a/b/c/a", "a/b/b", "a/c", "b/a/a", "c/a", "c/b"):
        (folder / path).write_text(f"base {path}")
    (folder / "c/c").symlink_to("../a")
    return folder


class Changes:
    """Random steps of a program in a tree."""

    def __init__(self, top: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.top = top

    def place(self) -> Path:
        depth = self.random.randint(1, 3)
        return self.top.joinpath(*(self.random.choice(NAMES) for _ in range(depth)))

    def leads_elsewhere(self, place: Path) -> bool:
        """Say whether a link may lead out of the tree: nothing is done through one."""
        inside = place.relative_to(self.top).parents
        return any((self.top / parent).is_symlink() for parent in inside)

    def step(self) -> None:
        place = self.place()
        if self.leads_elsewhere(place) or not place.parent.is_dir():
            return
        steps = [self.write, self.write, self.make_folder, self.make_folder, self.remove]
        steps += [self.link, self.symlink, self.fifo, self.describe, self.describe, self.move]
        try:
            self.random.choice(steps)(place)
        except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return

    def write(self, place: Path) -> None:
        if place.is_symlink() or (place.exists() and not place.is_file()):
            return
        with place.open("ab" if self.random.random() < 0.3 else "wb") as file:
            file.seek(self.random.choice([0, 300_000]), os.SEEK_CUR)
            file.write(self.random.randbytes(self.random.choice([0, 10, 200_000])))

    def make_folder(self, place: Path) -> None:
        if place.is_file() or place.is_symlink():
            place.unlink()
        place.mkdir()

    def remove(self, place: Path) -> None:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
            if self.random.random() < 0.5:
                self.write(place)
        else:
            place.unlink()

    def link(self, place: Path) -> None:
        other = self.place()
        if not self.leads_elsewhere(other) and (other.is_symlink() or not other.is_dir()):
            os.link(other, place, follow_symlinks=False)

    def symlink(self, place: Path) -> None:
        place.symlink_to(self.random.choice(["../a", "/nonexistent/target", "x/" * 150]))

    def fifo(self, place: Path) -> None:
        os.mkfifo(place)

    def move(self, place: Path) -> None:
        other = self.place()
        if not self.leads_elsewhere(other):
            # It may fail, as it may for a user.
            subprocess.run(["mv", "-T", "--", other, place], check=False, capture_output=True)

    def describe(self, place: Path) -> None:
        if place.is_symlink() or not place.exists():
            return
        os.chown(place, self.random.choice([0, 1000, 4_000_000_000]), 33)
        place.chmod(self.random.choice([0o4755, 0o2711, 0o1777, 0o600]))
        if place.is_file() or place.is_dir():
            os.setxattr(place, "user.a=b%", self.random.randbytes(9))
        if place.is_file():
            os.setxattr(place, "security.capability", CAPABILITY)
        seconds = self.random.randint(0, 2_000_000_000)
        os.utime(place, (seconds, seconds))


async def archive(upper: Path) -> AsyncIterator[bytes]:
    """Stream a folder as a guest's agent does: attributes of the allowed kinds only."""
    kept = ("user.*", "security.capability", "trusted.overlay.opaque")
    words = [word for word in TAR if word != "--xattrs-include=*"]
    words += [f"--xattrs-include={each}" for each in kept]
    with subprocess.Popen([*words, "-C", upper, "."], stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        while piece := made.stdout.read(65536):
            yield piece


@pytest.mark.parametrize("way", ["directory", "tar"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_what_an_overlay_showed_is_there_again(tmp_path, layers, base, way, seed):
    """Through a chain of layers, and through one that they were merged into."""
    made = []
    for number in range(ROUNDS):
        upper, work = tmp_path / f"upper{number}", tmp_path / f"work{number}"
        for folder in (upper, work):
            folder.mkdir()
        paths = [layers.path(layer.sha256) for layer in made]
        with overlay(base, paths, work, upper) as top:
            changes = Changes(top, 1000 * seed + number)
            for _ in range(STEPS):
                changes.step()
            expected = describe(top)
        if way == "directory":
            layer = await layers.pack_directory(upper)
        else:
            layer = await layers.pack_tar(archive(upper), TarLimits())
        assert layer is not None
        made.append(layer)
        with mounted_layer(layers.path(layer.sha256), work / "layer") as alone:
            assert links(alone) == links(upper)
        with overlay(base, [layers.path(layer.sha256) for layer in made], work) as top:
            chained = describe(top)
            assert chained == expected
            chained_links = links(top)
    for merged in ([await layers.merge(made)], [*made[:1], await layers.merge(made[1:])]):
        with overlay(base, [layers.path(layer.sha256) for layer in merged], work) as top:
            assert describe(top) == chained
            assert links(top) == chained_links


async def test_what_a_removed_name_shared_stays_in_a_merged_layer(tmp_path, layers, base):
    uppers = [tmp_path / "upper0", tmp_path / "upper1"]
    for upper in uppers:
        upper.mkdir()
    (uppers[0] / "first").write_text("shared")
    (uppers[0] / "z").mkdir(mode=0o711)
    for name in ("z/second", "z/third"):
        os.link(uppers[0] / "first", uppers[0] / name)
    os.mknod(uppers[1] / "first", stat.S_IFCHR, os.makedev(0, 0))
    made = [await layers.pack_directory(upper) for upper in uppers]
    merged = await layers.merge([layer for layer in made if layer is not None])
    work = tmp_path / "work"
    work.mkdir()
    with overlay(base, [layers.path(merged.sha256)], work) as top:
        assert not (top / "first").exists()
        assert (top / "z/second").read_text() == "shared"
        assert (top / "z/second").samefile(top / "z/third")
        assert stat.S_IMODE((top / "z").stat().st_mode) == 0o711


@pytest.mark.parametrize(("way", "size"), [("directory", 10 << 30), ("tar", 1 << 30)])
async def test_a_file_of_holes_takes_little_room(tmp_path, layers, way, size):
    upper = tmp_path / "upper"
    upper.mkdir()
    with (upper / "sparse").open("wb") as file:
        file.write(b"start")
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"middle")
    if way == "directory":
        layer = await layers.pack_directory(upper)
    else:
        layer = await layers.pack_tar(archive(upper), TarLimits(content_bytes=1 << 20))
    assert layer is not None
    assert layer.size_bytes < 1 << 20
    work = tmp_path / "work"
    work.mkdir()
    with overlay(tmp_path / "objects", [layers.path(layer.sha256)], work) as top:
        with (top / "sparse").open("rb") as file:
            assert file.read(6) == b"start\0"
            file.seek(size // 2)
            assert file.read(7) == b"middle\0"
        assert (top / "sparse").stat().st_size == size


async def test_many_small_files(tmp_path, layers):
    upper = tmp_path / "upper"
    for number in range(FILES):
        if number % 500 == 0:
            folder = upper / str(number // 500)
            folder.mkdir(parents=True)
        (folder / str(number)).write_bytes(b"%d" % number)
    layer = await layers.pack_directory(upper)
    assert layer is not None
    work = tmp_path / "work"
    work.mkdir()
    with overlay(tmp_path / "objects", [layers.path(layer.sha256)], work) as top:
        found = {path.name: path.read_bytes() for path in top.glob("*/*") if path.is_file()}
    assert found == {str(number): b"%d" % number for number in range(FILES)}


async def test_a_socket_is_left_out_and_a_device_hides(tmp_path, layers, base):
    upper = tmp_path / "upper"
    (upper / "c").mkdir(parents=True)
    os.mknod(upper / "socket", stat.S_IFSOCK)
    os.mknod(upper / "c/a", stat.S_IFCHR, os.makedev(1, 3))
    layer = await layers.pack_directory(upper)
    assert layer is not None
    work = tmp_path / "work"
    work.mkdir()
    with overlay(base, [layers.path(layer.sha256)], work) as top:
        assert not (top / "socket").exists()
        assert not (top / "c/a").exists()
        assert (top / "c/b").read_text() == "base c/b"


async def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    upper, data = tmp_path / "upper", tmp_path / "data"
    for folder in (upper, data):
        folder.mkdir()
    (upper / "large").write_bytes(os.urandom(8 << 20))
    objects = DirectoryStore(tmp_path / "objects")
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", data)
    try:
        layers = LayerStore(data, objects, SystemClock(), cache_bytes=0)
        with pytest.raises(CapacityError, match="make room"):
            await layers.pack_directory(upper)
        assert list((data / "layers/.staging").iterdir()) == []
        assert list((data / "layers").glob("*.sqfs")) == []
        elsewhere = LayerStore(tmp_path / "elsewhere", objects, SystemClock(), cache_bytes=0)
        layer = await elsewhere.pack_directory(upper)
        assert layer is not None
        await elsewhere.upload("acc_0123456789abcdef", layer)
        with pytest.raises(CapacityError):
            await layers.ensure("acc_0123456789abcdef", layer)
        assert list((data / "layers/.staging").iterdir()) == []
    finally:
        await objects.aclose()  # Its threads may have a file there.
        unmount(data)


async def test_a_directory_of_objects_without_room_is_told_and_used_again(tmp_path):
    upper, place = tmp_path / "upper", tmp_path / "objects"
    for folder in (upper, place):
        folder.mkdir()
    (upper / "large").write_bytes(os.urandom(8 << 20))
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", place)
    objects = DirectoryStore(place)
    try:
        here = LayerStore(tmp_path / "here", objects, SystemClock(), cache_bytes=0)
        there = LayerStore(tmp_path / "there", objects, SystemClock(), cache_bytes=0)
        layer = await here.pack_directory(upper)
        assert layer is not None
        with pytest.raises(CapacityError):
            await here.upload("acc_0123456789abcdef", layer)
        # What others had begun when one failed ends by itself.
        async with asyncio.timeout(DEADLINE_S):
            while list((place / ".staging").iterdir()):
                await asyncio.sleep(0.01)
        mount("-o", "remount,size=32m", place)
        assert await here.upload("acc_0123456789abcdef", layer) > 0
        path = await there.ensure("acc_0123456789abcdef", layer)
        assert path.read_bytes() == here.path(layer.sha256).read_bytes()
    finally:
        await objects.aclose()
        unmount(place)
