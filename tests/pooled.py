"""What lies in the disk pool of a data directory, whoever serves it at the moment."""

import fcntl
import struct
from collections.abc import Iterator
from pathlib import Path

from magsd.engine.disk_pool import IMAGE, shown

_LOOP_GET_STATUS64 = 0x4C05


def names(data: Path) -> list[str]:
    """The files in it, without what is made ahead; none where there is no pool."""
    if not (data / IMAGE).exists():
        return []
    with shown(data / IMAGE) as root:
        kept = {root / "spare", root / "blank"}
        found = [path for path in root.rglob("*") if not kept & {path, path.parent}]
        return sorted(str(path.relative_to(root)) for path in found)


def loop_devices(file: Path) -> list[str]:
    """The loop devices of a file, which may be the pool's or in a filesystem that is nowhere seen."""
    wanted = file.stat()
    return sorted(name for name, found in _backing() if found == (wanted.st_dev, wanted.st_ino))


def inner_loop_devices(data: Path) -> list[str]:
    """The loop devices of what is in the pool, each with the file that it is."""
    if not (data / IMAGE).exists():
        return []
    with shown(data / IMAGE) as root:
        device = root.stat().st_dev
        inner = [name for name, found in _backing() if found[0] == device]
        return sorted(f"{name} {_file_of(name)}" for name in inner)


def _file_of(name: str) -> str:
    try:
        return Path("/sys/block", name, "loop/backing_file").read_text().strip()
    except OSError:  # It is none any more.
        return ""


def _backing() -> Iterator[tuple[str, tuple[int, int]]]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        name = path.parts[3]
        try:
            with Path("/dev", name).open("rb") as device:
                status = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(232))
        except OSError:  # It is none any more.
            continue
        found, inode = struct.unpack_from("=2Q", status)
        yield name, (found, inode)
