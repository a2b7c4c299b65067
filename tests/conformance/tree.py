"""What a capture holds, as entries that can be compared, whether it is a directory or a tar."""

import io
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from magsd.engine.base import Capture

OPAQUE = "trusted.overlay.opaque"
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
}


@dataclass(frozen=True)
class Entry:
    """One entry of an upper directory."""

    kind: str
    """`file`, `folder`, `link`, `fifo` or `whiteout`."""
    mode: int
    owner: tuple[int, int]
    mtime_s: int
    content: bytes = b""
    """Of a file, or a link's target."""
    same_as: str = ""
    """The first of the names that this file has."""
    is_opaque: bool = False
    attributes: frozenset[tuple[str, bytes]] = frozenset()
    """Those of users."""


Tree = dict[str, Entry]
"""By path, relative to the root: the root itself is `.`."""


async def read(capture: Capture) -> Tree:
    """Read all of a capture."""
    assert (capture.directory is None) != (capture.tar is None)
    if capture.directory is not None:
        return read_directory(capture.directory)
    assert capture.tar is not None
    return read_tar(b"".join([piece async for piece in capture.tar]))


def read_directory(directory: Path) -> Tree:
    tree: Tree = {}
    inodes: dict[int, str] = {}
    todo = [directory]
    while todo:
        path = todo.pop()
        name = os.path.relpath(path, directory)
        # The directory itself is a link, of /proc.
        status = path.stat() if path == directory else path.lstat()
        tree[name] = _of_file(path, name, status, inodes)
        if tree[name].kind == "folder":
            todo += sorted(path.iterdir(), reverse=True)
    return tree


def _of_file(path: Path, name: str, status: os.stat_result, inodes: dict[int, str]) -> Entry:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        assert stat.S_ISCHR(status.st_mode), name
        assert status.st_rdev == 0, name
        kind = "whiteout"
    common = (kind, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))
    if kind == "link":
        return Entry(*common, int(status.st_mtime), os.fsencode(path.readlink()))
    if kind in ("fifo", "whiteout"):
        return Entry(*common, int(status.st_mtime))
    names = os.listxattr(path)
    users = frozenset((key, os.getxattr(path, key)) for key in names if key.startswith("user."))
    is_opaque = OPAQUE in names and os.getxattr(path, OPAQUE) == b"y"
    first, content = "", b""
    if kind == "file":
        first = inodes.setdefault(status.st_ino, name)
        content = path.read_bytes() if status.st_size < 1 << 28 else b""
    return Entry(*common, int(status.st_mtime), content, first, is_opaque, users)


def read_tar(content: bytes) -> Tree:
    tree: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            name = os.path.normpath(member.name)
            assert name not in tree
            tree[name] = _of_member(tar, member, name, tree)
    return tree


def _of_member(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, tree: Tree) -> Entry:
    if member.islnk():
        return tree[os.path.normpath(member.linkname)]
    common = (member.mode, (member.uid, member.gid), int(member.mtime))
    if member.issym():
        return Entry("link", *common, os.fsencode(member.linkname))
    if member.isfifo():
        return Entry("fifo", *common)
    if member.ischr():
        assert (member.devmajor, member.devminor) == (0, 0)
        return Entry("whiteout", *common)
    records = {
        key.removeprefix("SCHILY.xattr."): os.fsencode(value)
        for key, value in member.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    users = frozenset((key, value) for key, value in records.items() if key.startswith("user."))
    if member.isdir():
        return Entry("folder", *common, b"", "", records.get(OPAQUE) == b"y", users)
    assert member.isfile()
    file = tar.extractfile(member)
    assert file
    held = file.read() if member.size < 1 << 28 else b""
    return Entry("file", *common, held, name, False, users)
