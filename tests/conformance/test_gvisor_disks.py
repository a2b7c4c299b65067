"""The parts of a VM's disk on the real kernel: layers mounted once, images made ahead."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from magsd.aio import Tasks
from magsd.engine.disk_pool import PoolSettings
from magsd.engine.disks import Disks
from magsd.engine.layers import Layers
from magsd.model.errors import JobCode, LaunchError
from magsd.model.names import VmId
from tests import census
from tests.conformance.vm import eventually

VM = VmId("00c0ffee")


@pytest.fixture(autouse=True)
def nothing_left(data: Path) -> Iterator[None]:
    """No mount and no loop device outlives its test."""
    yield
    layers = f"{data}/layers/"
    within = census.take()
    assert not [line for line in within.lines if "loop device" in line and layers in line]


def names(descriptor: int) -> set[str]:
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
    try:
        return set(os.listdir(folder))
    finally:
        os.close(folder)


async def test_a_layer_is_mounted_once_and_nowhere_to_be_seen(data: Path) -> None:
    (layer,) = (data / "layers").glob("*.sqfs")
    layers = Layers()
    mounts = Path("/proc/self/mountinfo").read_text()
    with contextlib.ExitStack() as undo:
        for _ in range(3):
            descriptor = await layers.clone(layer)
            undo.callback(os.close, descriptor)
            assert {"bin", "etc", "usr"} <= names(descriptor)
        devices = Path("/sys/block").glob("loop*/loop/backing_file")
        assert [path.read_text().strip() for path in devices].count(str(layer)) == 1
        assert Path("/proc/self/mountinfo").read_text() == mounts
        # What was handed out outlives whoever mounted it.
        await layers.aclose()
        assert "etc" in names(descriptor)


async def test_a_layer_that_was_replaced_is_mounted_anew(data: Path) -> None:
    (layer,) = (data / "layers").glob("*.sqfs")
    layers = Layers()
    first = await layers.clone(layer)
    copy = layer.with_suffix(".new")
    copy.write_bytes(layer.read_bytes())
    copy.rename(layer)
    second = await layers.clone(layer)
    try:
        assert os.stat(first).st_dev != os.stat(second).st_dev
        assert names(first) == names(second)
    finally:
        os.close(first)
        os.close(second)
        await layers.aclose()


async def test_what_is_no_layer_is_refused(data: Path) -> None:
    layers = Layers()
    broken = data / "layers" / "broken.sqfs"
    broken.write_bytes(b"hsqs" + bytes(8192))
    try:
        for path in (broken, data / "layers" / "missing.sqfs"):
            with pytest.raises(LaunchError) as caught:
                await layers.clone(path)
            assert caught.value.job_code is JobCode.IMAGE_DAMAGED
    finally:
        await layers.aclose()


async def test_a_clone_that_is_given_up_is_closed(data: Path) -> None:
    (layer,) = (data / "layers").glob("*.sqfs")
    layers = Layers()
    asking = [asyncio.ensure_future(layers.clone(layer)) for _ in range(8)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await layers.aclose()


async def test_a_file_of_the_host_can_be_given_other_content() -> None:
    layers = Layers()
    descriptor = await layers.clone_file(b"MemTotal: 1 kB\n")
    try:
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == b"MemTotal: 1 kB\n"
    finally:
        os.close(descriptor)
        await layers.aclose()


@pytest.fixture
def errors() -> list[str]:
    return []


@contextlib.asynccontextmanager
async def opened(directory: Path, errors: list[str], **settings: int):
    tasks = Tasks(lambda name, error: errors.append(f"{name}: {error!r}"))
    wanted = {"spare_gb": 2, "spare_count": 2, **settings}
    disks = Disks(directory, tasks=tasks, pool=PoolSettings("off"), **wanted)
    await disks.prepare()
    try:
        yield disks
    finally:
        await tasks.aclose()
        await disks.aclose()
    assert not errors


def spares(directory: Path) -> list[str]:
    return [path.name for path in (directory / "spare").glob("*.ext4")]


async def test_disks_of_the_usual_size_are_made_ahead(tmp_path: Path, errors: list[str]) -> None:
    async with opened(tmp_path, errors) as disks:
        await eventually(lambda: len(spares(tmp_path)) == 2)
        before = set(spares(tmp_path))
        path = await disks.create(VM, 2)
        assert path.stat().st_size == 2 << 30
        assert path.stat().st_blocks * 512 < 8 << 20
        assert len(before & set(spares(tmp_path))) == 1
        disks.refill()
        await eventually(lambda: len(spares(tmp_path)) == 2)
        assert disks.names() == [VM]
        await disks.delete(VM)
        await disks.delete(VM)
        assert disks.names() == []


async def test_a_disk_of_another_size_is_made_at_once(tmp_path: Path, errors: list[str]) -> None:
    async with opened(tmp_path, errors, spare_count=0) as disks:
        path = await disks.create(VM, 3)
        assert path.stat().st_size == 3 << 30
        assert path.stat().st_mode & 0o777 == 0o600


async def test_spares_of_an_earlier_setting_are_dropped(tmp_path: Path, errors: list[str]) -> None:
    async with opened(tmp_path, errors):
        await eventually(lambda: len(spares(tmp_path)) == 2)
    (tmp_path / ".new-left").touch()
    async with opened(tmp_path, errors, spare_gb=1, spare_count=1):
        await eventually(lambda: len(spares(tmp_path)) == 1)
        (spare,) = (tmp_path / "spare").glob("*.ext4")
        assert spare.stat().st_size == 1 << 30
        assert not (tmp_path / ".new-left").exists()


async def test_a_disk_that_is_given_up_leaves_nothing(tmp_path: Path, errors: list[str]) -> None:
    async with opened(tmp_path, errors, spare_count=0) as disks:
        making = asyncio.ensure_future(disks.create(VM, 4))
        await eventually(lambda: any(tmp_path.glob(".new-*")) or making.done())
        making.cancel()
        await asyncio.wait([making])
        if making.cancelled():
            assert [path for path in tmp_path.iterdir() if path.is_file()] == []


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, errors: list[str]) -> None:
    async with opened(tmp_path, errors, spare_count=0) as disks:
        disks.path(VM).mkdir()
        with pytest.raises(LaunchError):
            await disks.create(VM, 1)
