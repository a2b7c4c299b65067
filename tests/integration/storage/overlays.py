"""Real overlay mounts, and trees compared by all that programs can see of them."""

import errno
import hashlib
import os
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

OPTIONS = "redirect_dir=nofollow,metacopy=off,index=off"


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", place], check=True, capture_output=True)


@contextmanager
def mounted_layer(file: Path, place: Path) -> Iterator[Path]:
    """Mount a layer's file at a new folder."""
    place.mkdir()
    mount("-t", "squashfs", "-o", "loop,ro,nosuid,nodev", file, place)
    try:
        yield place
    finally:
        unmount(place)
        place.rmdir()


@contextmanager
def overlay(
    base: Path, layers: Sequence[Path], work: Path, upper: Path | None = None
) -> Iterator[Path]:
    """Mount an overlay of layer files on `base`, lowest first, below a writable `upper` if any."""
    with ExitStack() as undo:
        lower = [base]
        for number, layer in enumerate(layers):
            lower.insert(0, undo.enter_context(mounted_layer(layer, work / f"layer{number}")))
        if upper is None and len(lower) == 1:
            yield base
            return
        place, own_work = work / "merged", work / "work"
        place.mkdir()
        undo.callback(place.rmdir)
        options = f"lowerdir={':'.join(map(str, lower))},{OPTIONS}"
        if upper is not None:
            own_work.mkdir(exist_ok=True)
            options += f",upperdir={upper},workdir={own_work}"
        mount("-t", "overlay", "overlay", "-o", options, place)
        undo.callback(unmount, place)
        yield place


def describe(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return everything below a folder by its path: kind, mode, owners, time, content, …"""
    return {name: _described(path) for name, path in _walk(top)}


def links(top: Path) -> set[frozenset[bytes]]:
    """Return which names are of one file or symbolic link. Of an overlay only when it has no upper: that gives
    a file other numbers when it is copied up."""
    names = defaultdict(list)
    for name, path in _walk(top):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            names[status.st_dev, status.st_ino].append(name)
    return {frozenset(each) for each in names.values() if len(each) > 1}


def _walk(top: Path) -> Iterator[tuple[bytes, bytes]]:
    root = os.fsencode(top)
    yield b".", root
    for folder, folders, files in os.walk(root):
        for each in (*folders, *files):
            path = os.path.join(folder, each)
            yield os.path.relpath(path, root), path


def _described(path: bytes) -> tuple[object, ...]:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content: object = None
    if stat.S_ISREG(kind):
        with open(path, "rb") as file:
            content = (status.st_size, hashlib.file_digest(file, "md5").hexdigest())
    elif stat.S_ISLNK(kind):
        content = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        content = status.st_rdev
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in _attribute_names(path)
    }
    mode, time = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    owners = (status.st_uid, status.st_gid)
    return (kind, mode, owners, time, content, tuple(sorted(xattrs.items())))


def _attribute_names(path: bytes) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # Nothing in that layer has an attribute.
            raise
        return []
