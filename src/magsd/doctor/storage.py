"""Where data lies: room, filesystem, permissions, the image, and real loop devices."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from magsd.config import DEFAULT_FILE, FILE_VARIABLE, Settings
from magsd.doctor.check import Check, Verdict
from magsd.engine import process
from magsd.engine.disk_files import has_reflinks
from magsd.engine.disk_pool import IMAGE, PROGRAM, shown
from magsd.engine.layers import Layers
from magsd.model.errors import MagsError
from magsd.storage.images import ImageStore

_SPACE_LEAST_GB: Final = 2
_SPACE_GOOD_GB: Final = 10
_FILES_GOOD: Final = 20_000
_IMAGE_OLD_DAYS: Final = 120
_SQUASH_S: Final = 10.0


def space(data_dir: Path) -> Check:
    """Look at the room for the data directory, and what its filesystem can do."""
    there = _nearest(data_dir)
    free_gb = shutil.disk_usage(there).free / 1e9
    files = os.statvfs(there).f_favail
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    kind = filesystem(mountinfo, there.resolve())
    seen = f"{data_dir}, {free_gb:.0f} GB free, {kind}"
    if free_gb < _SPACE_LEAST_GB:
        return Check("data", Verdict.FAIL, seen, "free some space, or set MAGSD_DATA_DIR")
    if free_gb < _SPACE_GOOD_GB:
        return Check("data", Verdict.WARN, seen, "jobs may write 2 GB each: give it more room")
    # A filesystem that makes them at need says 0 of 0.
    if 0 < files < _FILES_GOOD:
        return Check("data", Verdict.WARN, f"{seen}, room for {files} files", "delete old logs")
    return Check("data", Verdict.OK, seen)


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def filesystem(mountinfo: str, path: Path) -> str:
    """Return the kind of the filesystem that `path` lies on, by a `/proc/self/mountinfo`."""
    best, kind = "", "unknown filesystem"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4].replace("\\040", " ")
        if path.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, after.split()[0]
    return kind


def disks(settings: Settings) -> Check:
    """Look in which of three ways a VM's disk is copied: by the host's reflinks, in a pool, whole."""
    image, folder = settings.data_dir / IMAGE, settings.data_dir / "disks"
    if not os.access(folder, os.W_OK):
        return Check("disks", Verdict.OK, "not to be seen before magsd's first start, and by root")
    if image.exists():
        return _pool(image, settings.disk_pool)
    if has_reflinks(folder):
        return Check("disks", Verdict.OK, "copied by reference, by the host's own filesystem")
    if settings.disk_pool == "off":
        seen = "copied whole, without a pool, as is set: scripts are held up while that is done"
        return Check("disks", Verdict.OK, seen)
    if shutil.which(PROGRAM) is None:
        step = "install the package xfsprogs, then restart magsd: it makes a pool"
        return Check("disks", Verdict.WARN, "copied whole: there is no pool", step)
    step = "restart magsd; if it makes none its log says why"
    return Check("disks", Verdict.WARN, "copied whole: there is no pool yet", step)


def _pool(image: Path, mode: str) -> Check:
    try:
        with shown(image) as root:
            found = os.statvfs(root)
    except OSError as error:
        step = f"run `modprobe xfs`, else `xfs_repair {image}`; to give up all that sandboxes "
        step += f"changed and that is not stored yet, delete it: `rm {image}`"
        return Check("disks", Verdict.FAIL, f"the pool {image} cannot be mounted: {error}", step)
    used_gb = (found.f_blocks - found.f_bfree) * found.f_frsize / 1e9
    free_gb = found.f_bavail * found.f_frsize / 1e9
    held_gb = image.stat().st_blocks * 512 / 1e9
    seen = f"in the pool {image}, copied by reference: {used_gb:.1f} GB used, {free_gb:.1f} GB "
    seen += f"free, {held_gb:.1f} GB of the host's disk taken"
    if mode == "off":
        seen += "; older ones only, as is set: it goes when they have"
        return Check("disks", Verdict.OK, seen)
    if free_gb < _SPACE_LEAST_GB:
        return Check("disks", Verdict.WARN, seen, "raise MAGSD_DISK_POOL_GB, and restart magsd")
    return Check("disks", Verdict.OK, seen)


def permissions(settings: Settings) -> Check:
    """Look whether anybody but root may read secrets, or put files of theirs in place."""
    wrong = [*_open_folders(settings.data_dir), *_open_files(settings.data_dir)]
    if not wrong:
        return Check("permissions", Verdict.OK, "data directory and secrets are root's alone")
    seen = ", ".join(what for what, _ in wrong)
    step = "run `" + "; ".join(command for _, command in wrong) + "`"
    return Check("permissions", Verdict.WARN, seen, step)


def _open_folders(data_dir: Path) -> Iterator[tuple[str, str]]:
    for folder in (data_dir, *data_dir.parents):
        if not folder.exists():
            continue
        status = folder.stat()
        is_sticky = folder != data_dir and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not is_sticky:
            yield f"others can write to {folder}", f"chmod go-w {folder}"
        if status.st_uid != 0:
            yield f"{folder} is user {status.st_uid}'s", f"chown root {folder}"


def _open_files(data_dir: Path) -> Iterator[tuple[str, str]]:
    named = os.environ.get(FILE_VARIABLE)
    secret = [Path(named) if named else DEFAULT_FILE]
    secret += [data_dir / name for name in ("mags.db", "run", "logs", "disks", IMAGE, "tmp")]
    for path in secret:
        if path.exists() and path.stat().st_mode & 0o077:
            yield f"others can read {path}", f"chmod go= {path}"


async def image(settings: Settings, now: datetime) -> tuple[Check, datetime | None]:
    """Look at the standard image, and read all of it; return also when it was built."""
    images = ImageStore(settings.data_dir)
    try:
        found = images.get(settings.standard_image)
        await images.verify(found.name, found.layers)
    except MagsError as error:
        return Check("image", Verdict.FAIL, error.message), None
    days = (now - found.built_at).days
    size = f"{found.size_bytes / 1e6:.0f} MB"
    seen = f"{found.name}, {size}, built {found.built_at:%Y-%m-%d}, whole"
    if days > _IMAGE_OLD_DAYS:
        step = "it lacks that time's security updates: build it anew, for the standard one by "
        step += "`magsd image build standard --force`"
        return Check("image", Verdict.WARN, f"{seen}, {days} days old", step), found.built_at
    return Check("image", Verdict.OK, seen), found.built_at


async def loop_devices() -> Check:
    """Attach a loop device and mount what is on it, as the start of a VM does."""
    used = len(list(Path("/sys/block").glob("loop*/loop/backing_file")))
    nodes = len(list(Path("/dev").glob("loop[0-9]*")))
    seen = f"{used} of {nodes} in use; the kernel makes more at need"
    try:
        with tempfile.TemporaryDirectory(prefix="mags-doctor-") as folder:
            await _mount_one(Path(folder))
    except (MagsError, OSError) as error:
        detail = error.detail if isinstance(error, MagsError) else str(error)
        step = "run `modprobe loop`; a container needs /dev/loop-control and the devices 7:*"
        return Check("loop", Verdict.FAIL, f"none can be mounted ({detail}); {seen}", step)
    return Check("loop", Verdict.OK, f"one was mounted; {seen}")


async def _mount_one(folder: Path) -> None:
    (folder / "empty").mkdir()
    layer = folder / "layer.sqfs"
    squash = ["mksquashfs", str(folder / "empty"), str(layer), "-quiet", "-no-progress"]
    await process.run(squash, timeout_s=_SQUASH_S)
    layers = Layers()
    try:
        os.close(await layers.clone(layer))
    finally:
        await layers.aclose()
