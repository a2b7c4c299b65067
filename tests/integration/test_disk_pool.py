"""The disk pool on real loop devices: made, grown, adopted, full, damaged, given up."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from magsd.aio import Tasks
from magsd.config import Settings
from magsd.doctor import leftovers, storage
from magsd.doctor.check import Verdict
from magsd.engine import disk_files
from magsd.engine.disk_pool import IMAGE, PoolMode, PoolSettings, shown
from magsd.engine.disks import Disks
from magsd.model.errors import JobCode, LaunchError
from magsd.model.names import VmId
from tests import pooled
from tests.e2e.server import eventually

ONE, OTHER = VmId("00c0ffee"), VmId("0badcafe")
MB = 1 << 20
HOLDER = """
import sys, time
from pathlib import Path
from magsd.engine.disk_pool import shown
held = shown(Path(sys.argv[1]))
root = held.__enter__()
print(root, flush=True)
time.sleep(600)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory on a filesystem that has no reflinks."""
    if disk_files.has_reflinks(tmp_path):
        pytest.fail(f"{tmp_path} has reflinks: set TMPDIR to where there are none, as on ext4")
    (tmp_path / "data" / "run").mkdir(parents=True)
    return tmp_path / "data"


@asynccontextmanager
async def opened(
    data: Path, mode: PoolMode = "auto", size_gb: int | None = 4, spare_count: int = 0
) -> AsyncIterator[Disks]:
    errors: list[str] = []
    tasks = Tasks(lambda name, error: errors.append(f"{name}: {error!r}"))
    disks = Disks(
        data / "disks",
        spare_gb=2,
        spare_count=spare_count,
        tasks=tasks,
        pool=PoolSettings(mode, size_gb),
    )
    try:
        await disks.prepare()
        yield disks
    finally:
        await tasks.aclose()
        await disks.aclose()
    assert not errors


@contextmanager
def small_filesystem(size_mb: int) -> Iterator[Path]:
    """A filesystem of that size with a data directory."""
    with tempfile.TemporaryDirectory(prefix="mags-test-", dir="/var/tmp") as work:
        folder, image = Path(work) / "mount", Path(work) / "disk.ext4"
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(size_mb * MB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            (folder / "data").mkdir()
            yield folder / "data"
        finally:
            eventually(lambda: subprocess.run(["umount", folder], check=False).returncode == 0)


def taken_mb(file: Path) -> int:
    return file.stat().st_blocks * 512 // MB


def write(path: Path, size_mb: int) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(size_mb * MB))
        os.fsync(file.fileno())


def settings(data: Path, **more: object) -> Settings:
    return Settings(data_dir=data, **more)  # type: ignore[arg-type]


async def test_disks_lie_where_nobody_sees_them_and_copies_share_their_blocks(data: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    async with opened(data, spare_count=2) as disks:
        path = await disks.create(ONE, 2)
        assert path.stat().st_size == 2 << 30
        assert path.stat().st_mode & 0o777 == 0o600
        assert (data / IMAGE).stat().st_mode & 0o777 == 0o600
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert not list((data / "disks").glob("*.ext4"))
        assert disks.has_reflinks(ONE)
        path.write_bytes(os.urandom(64 * MB))
        image = disks.open(ONE)
        os.fsync(image)
        before = os.statvfs(path).f_bfree
        copy = disks.copy_unnamed(ONE, image)
        assert before - os.statvfs(path).f_bfree < 16 * MB // 4096
        assert os.pread(copy, MB, 63 * MB) == os.pread(image, MB, 63 * MB)
        os.close(copy)
        os.close(image)
        assert len(pooled.loop_devices(data / IMAGE)) == 1
    eventually(lambda: not pooled.loop_devices(data / IMAGE))


async def test_one_in_many_pieces_is_copied_with_its_data(data: Path) -> None:
    async with opened(data, spare_count=0) as disks:
        path = await disks.create(ONE, 2)
        path.write_bytes(os.urandom(32 * MB))
        image = disks.open(ONE)
        os.fsync(image)
        by_reference = disks.copy_unnamed(ONE, image)
        # Each page that is written while there is that copy lies apart from then on.
        writing = os.open(path, os.O_WRONLY)
        for at in range(0, 32 * MB, 2 * 4096):
            os.pwrite(writing, b"new", at)
        os.fsync(writing)
        before = os.statvfs(path).f_bfree
        by_data = disks.copy_unnamed(ONE, image)
        os.fsync(by_data)
        assert before - os.statvfs(path).f_bfree > 24 * MB // 4096
        assert os.pread(by_data, 32 * MB, 0) == path.read_bytes()[: 32 * MB]
        for descriptor in (by_reference, writing, by_data, image):
            os.close(descriptor)


async def test_it_is_not_cached_a_second_time(data: Path) -> None:
    async with opened(data):
        (device,) = pooled.loop_devices(data / IMAGE)
        is_direct = Path("/sys/block", device, "loop/dio").read_text().strip()
        assert is_direct == ("1" if has_direct_io(data) else "0")


def has_direct_io(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(folder / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
        return True
    return False


async def test_what_is_deleted_is_given_back_to_the_host(data: Path) -> None:
    async with opened(data) as disks:
        path = await disks.create(ONE, 2)
        before_mb = taken_mb(data / IMAGE)
        write(path, 128)
        assert taken_mb(data / IMAGE) >= before_mb + 128
        await disks.delete(ONE)

        def is_given_back() -> bool:
            os.sync()
            return taken_mb(data / IMAGE) < before_mb + 32

        eventually(is_given_back)


async def test_whoever_has_a_disk_open_keeps_it_and_the_next_daemon_finds_the_same(
    data: Path,
) -> None:
    async with opened(data) as earlier:
        path = await earlier.create(ONE, 2)
        disk = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        before = os.fstat(disk).st_dev
    devices = pooled.loop_devices(data / IMAGE)
    assert len(devices) == 1
    os.pwrite(disk, b"written without a daemon", 4096)
    async with opened(data) as later:
        assert later.names() == [ONE]
        assert pooled.loop_devices(data / IMAGE) == devices
        found = os.stat(later.path(ONE))
        assert (found.st_dev, found.st_ino) == (before, os.fstat(disk).st_ino)
        with later.path(ONE).open("rb") as file:
            file.seek(4096)
            assert file.read(24) == b"written without a daemon"
        await later.delete(ONE)
    os.close(disk)
    eventually(lambda: not pooled.loop_devices(data / IMAGE))


async def test_a_daemon_that_is_killed_leaves_nothing_attached(data: Path) -> None:
    async with opened(data) as disks:
        await disks.create(ONE, 2)
    arguments = [sys.executable, "-c", HOLDER, str(data / IMAGE)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        root = Path(daemon.stdout.readline().strip())
        disk = os.open(root / f"{ONE}.ext4", os.O_RDWR | os.O_CLOEXEC)
        daemon.send_signal(signal.SIGKILL)
    # A VM has it open still.
    assert len(pooled.loop_devices(data / IMAGE)) == 1
    async with opened(data) as disks:
        image = disks.open(ONE)
        assert os.fstat(image).st_ino == os.fstat(disk).st_ino
        os.close(image)
    os.close(disk)
    eventually(lambda: not pooled.loop_devices(data / IMAGE))


async def test_those_who_come_at_once_see_one(data: Path) -> None:
    async with opened(data):
        pass
    eventually(lambda: not pooled.loop_devices(data / IMAGE))
    for _ in range(20):
        with contextlib.ExitStack() as held, ThreadPoolExecutor() as threads:
            them = [threads.submit(shown, data / IMAGE) for _ in range(4)]
            roots = list(threads.map(lambda one: held.enter_context(one.result()), them))
            assert len({root.stat().st_dev for root in roots}) == 1
            assert len(pooled.loop_devices(data / IMAGE)) == 1


async def test_it_grows_and_never_shrinks(data: Path) -> None:
    async with opened(data, size_gb=1) as disks:
        path = await disks.create(ONE, 2)
        blocks = os.statvfs(path).f_blocks
    async with opened(data, size_gb=3) as disks:
        assert os.statvfs(disks.path(ONE)).f_blocks > 2.5 * blocks
    async with opened(data, size_gb=1) as disks:
        assert os.statvfs(disks.path(ONE)).f_blocks > 2.5 * blocks
        assert (data / IMAGE).stat().st_size == 3 << 30


async def test_turned_off_it_keeps_what_is_in_it_and_goes_when_that_has(data: Path) -> None:
    async with opened(data) as disks:
        await disks.create(ONE, 2)
    async with opened(data, "off") as disks:
        await disks.create(OTHER, 2)
        assert (data / "disks" / f"{OTHER}.ext4").exists()
        assert sorted(disks.names()) == sorted([ONE, OTHER])
        assert disks.has_reflinks(ONE)
        assert not disks.has_reflinks(OTHER)
        for vm in (ONE, OTHER):
            image = disks.open(vm)
            os.close(disks.copy_unnamed(vm, image))
            os.close(image)
        await disks.delete(ONE)
        assert disks.names() == [OTHER]
    async with opened(data, "off") as disks:
        assert not (data / IMAGE).exists()
        assert disks.names() == [OTHER]
    async with opened(data) as disks:
        assert disks.names() == [OTHER]
        assert disks.path(OTHER) == data / "disks" / f"{OTHER}.ext4"
        await disks.delete(OTHER)
        assert disks.names() == []


async def test_without_its_program_disks_are_copied_unless_a_pool_is_wanted(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    program = shutil.which("mkfs.ext4")
    assert program is not None
    (tmp_path / "bin/mkfs.ext4").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    async with opened(data) as disks:
        assert await disks.create(ONE, 2) == data / "disks" / f"{ONE}.ext4"
        check = storage.disks(settings(data))
        assert (check.verdict, "xfsprogs" in check.step) == (Verdict.WARN, True)
    with pytest.raises(LaunchError, match="xfsprogs"):
        async with opened(data, "on"):
            pass
    assert not (data / IMAGE).exists()


async def test_no_vm_begins_on_a_host_whose_disk_is_nearly_full() -> None:
    with small_filesystem(1000) as data:
        async with opened(data, size_gb=2) as disks:
            await disks.create(ONE, 2)
            free = os.statvfs(data).f_bavail * os.statvfs(data).f_frsize
            with (data / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, free - 100 * MB)
            for make in (disks.create(OTHER, 2), disks.create_copy(OTHER, filler_of(data))):
                with pytest.raises(LaunchError, match="the host's disk is full") as caught:
                    await make
                assert caught.value.job_code is JobCode.HOST_DISK_FULL
            assert disks.names() == [ONE]
            (data / "filler").unlink()
            await disks.create(OTHER, 2)


def filler_of(data: Path) -> int:
    """A descriptor that is never read: it is refused before."""
    return (data / IMAGE).stat().st_ino


async def test_no_vm_begins_in_a_pool_that_is_nearly_full(data: Path) -> None:
    async with opened(data, size_gb=1) as disks:
        path = await disks.create(ONE, 2)
        free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, free - 50 * MB)
        with pytest.raises(LaunchError, match="MAGSD_DISK_POOL_GB") as caught:
            await disks.create(OTHER, 2)
        assert caught.value.job_code is JobCode.HOST_DISK_FULL
    async with opened(data, size_gb=2) as disks:
        await disks.create(OTHER, 2)


async def test_it_stays_whole_when_the_host_has_nothing_left() -> None:
    with small_filesystem(900) as data:
        async with opened(data, size_gb=2) as disks:
            path = await disks.create(ONE, 2)
            free = os.statvfs(data).f_bavail * os.statvfs(data).f_frsize
            with (data / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, free - 8 * MB)
            with pytest.raises(OSError, match=r"space|Input/output"):
                write(path, 64)
            (data / "filler").unlink()
            # A filesystem that had shut down would take nothing any more.
            write(path, 64)
            await disks.create(OTHER, 2)
            await disks.delete(ONE)
        async with opened(data, size_gb=2) as disks:
            assert disks.names() == [OTHER]


async def test_a_damaged_one_is_told_and_kept(data: Path) -> None:
    async with opened(data) as disks:
        await disks.create(ONE, 2)
    eventually(lambda: not pooled.loop_devices(data / IMAGE))
    with (data / IMAGE).open("r+b") as file:
        file.write(bytes(4096))
    modes: tuple[PoolMode, ...] = ("auto", "on", "off")
    for mode in modes:
        with pytest.raises(LaunchError, match="magsd doctor"):
            async with opened(data, mode):
                pass
    check = storage.disks(settings(data))
    assert check.verdict is Verdict.FAIL
    assert "xfs_repair" in check.step
    assert not pooled.loop_devices(data / IMAGE)


async def test_a_disk_from_elsewhere_is_brought_near_with_its_holes(data: Path) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as elsewhere:
        elsewhere.truncate(1 << 30)
        os.pwrite(elsewhere.fileno(), b"one", 5 * MB)
        os.pwrite(elsewhere.fileno(), b"other", 900 * MB)
        async with opened(data) as disks:
            near = disks.brought_near(os.dup(elsewhere.fileno()))
            try:
                path = await disks.create_copy(ONE, near)
                assert os.fstat(near).st_dev == path.stat().st_dev
                assert os.fstat(near).st_size == 1 << 30
                assert os.fstat(near).st_blocks * 512 < 8 * MB
                assert os.pread(near, 3, 5 * MB) == b"one"
                assert os.pread(near, 5, 900 * MB) == b"other"
                again = disks.brought_near(near)
                assert again == near
            finally:
                os.close(near)


async def test_doctor_says_which_of_three(data: Path) -> None:
    assert storage.disks(settings(data)).verdict is Verdict.OK
    async with opened(data, "off"):
        assert "copied whole" in storage.disks(settings(data, disk_pool="off")).seen
    async with opened(data):
        check = storage.disks(settings(data))
        assert check.verdict is Verdict.OK
        assert str(data / IMAGE) in check.seen


async def test_doctor_finds_and_removes_what_nobody_needs(data: Path) -> None:
    async with opened(data) as disks:
        await disks.create(ONE, 2)
        await disks.create(OTHER, 2)
    (data / "run" / ONE).mkdir()
    eventually(lambda: not pooled.loop_devices(data / IMAGE))
    # By hand, as nothing of ours does: it would stay.
    subprocess.run(["losetup", "-f", data / IMAGE], check=True)
    found = [one for one in leftovers.find(data) if str(data) in one.name]
    assert [one.kind for one in found] == ["loop device", "disk"]
    assert str(OTHER) in found[1].name
    said: list[str] = []
    assert leftovers.clean(reversed(found), said.append)
    eventually(lambda: not pooled.loop_devices(data / IMAGE))
    async with opened(data) as disks:
        assert disks.names() == [ONE]
