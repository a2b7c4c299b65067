"""A directory as an archive: what GNU tar makes of it, read by `tar_repack`, byte for byte."""

import os
import random
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from magsd.storage import directory_pack, tar_repack
from magsd.storage.layer_merging import TAR
from magsd.storage.tar_rules import OPAQUE, TarLimits

LIMITS = TarLimits()
HOLES = 3 << 30


def by_tar(directory: Path) -> tuple[bytes, int]:
    words = tar_repack.arguments(LIMITS, is_ours=True)
    command = [sys.executable, "-I", "-m", "magsd.storage.tar_repack", *words]
    with subprocess.Popen([*TAR, "-C", directory, "."], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(command, stdin=tar.stdout, capture_output=True, check=False)
    assert tar.returncode == 0
    return done.stdout, done.returncode


def packed(directory: Path, limits: TarLimits = LIMITS) -> subprocess.CompletedProcess[bytes]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        words = directory_pack.arguments(descriptor, limits)
        return subprocess.run(
            [sys.executable, "-I", "-m", "magsd.storage.directory_pack", *words],
            pass_fds=(descriptor,),
            capture_output=True,
            check=False,
        )
    finally:
        os.close(descriptor)


def is_as_by_tar(directory: Path) -> bool:
    done = packed(directory)
    return (done.stdout, done.returncode) == by_tar(directory)


def sparse(path: Path, size: int, *places: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for at in places:
            file.seek(at)
            file.write(b"abc")


def test_all_kinds(upper):
    for name, number in (("whiteout", (0, 0)), ("disk", (8, 1))):
        os.mknod(upper / name, stat.S_IFBLK if number[0] else stat.S_IFCHR, os.makedev(*number))
    os.mkfifo(upper / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(upper / "socket"))
    (upper / "link").symlink_to("x" * 150)
    (upper / "dangling").symlink_to("/nowhere")
    for name in (b"\xff\xfe", b"new\nline", b" ", b"n" * 255, b"-rf", "ä€".encode(), b"a=b%"):
        Path(os.fsdecode(os.fsencode(upper) + b"/" + name)).write_bytes(name)
    (upper / "empty").mkdir()
    (upper / "opaque" / "inner").mkdir(parents=True)
    os.setxattr(upper / "opaque", OPAQUE, b"y")
    os.setxattr(upper / "opaque", "user.a=b%", b"\0\xff")
    os.setxattr(upper / "opaque", "trusted.overlay.origin", b"of no use")
    (upper / "file").write_bytes(os.urandom(300_000))
    os.setxattr(upper / "file", "user.mine", b"v" * 2000)
    os.chown(upper / "file", 4_000_000_000, 33)
    (upper / "file").chmod(0o4755)
    assert is_as_by_tar(upper)


def test_order_is_by_bytes_and_what_is_inside_comes_at_once(upper):
    for name in ("b/a", "a.b", "a/z/y", "a/b", "a-b", "A", "ab/c", "é", "z"):
        path = upper / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert is_as_by_tar(upper)


def test_names_of_one_file(upper):
    (upper / "b").mkdir()
    (upper / "b/first").write_bytes(b"content")
    os.mknod(upper / "b/whiteout", stat.S_IFCHR, 0)
    os.mkfifo(upper / "b/fifo")
    (upper / "b/link").symlink_to("target")
    os.mknod(upper / "b/disk", stat.S_IFBLK, os.makedev(8, 1))
    for name in ("first", "whiteout", "fifo", "link", "disk"):
        os.link(upper / "b" / name, upper / f"z-{name}", follow_symlinks=False)
    os.link(upper / "b/first", upper / "a-first")
    assert is_as_by_tar(upper)


@pytest.mark.parametrize(
    ("size", "places"),
    [
        (HOLES, ()),
        (HOLES, (0,)),
        (HOLES, (0, HOLES // 2, HOLES - 3)),
        (HOLES, (5000, HOLES // 2)),
        (1, ()),
        (512, ()),
        (513, ()),
        (700, (600,)),
        (4097, (4096,)),
        (3, (0,)),
    ],
)
def test_holes(upper, size, places):
    sparse(upper / "sparse", max(size, *(place + 3 for place in places), 0), *places)
    assert is_as_by_tar(upper)


def test_times(upper):
    for number, seconds in enumerate((-5, -0.5, 0, 1.9, 2**31, 2**32 - 1, 2**32 + 7)):
        path = upper / str(number)
        path.write_text("")
        os.utime(path, (seconds, seconds))
    assert is_as_by_tar(upper)


@pytest.mark.parametrize("seed", range(3))
def test_any_tree(upper, seed):
    """More entries than are found ahead."""
    randomly = random.Random(seed)
    folders = [upper]
    for number in range(400):
        path = randomly.choice(folders) / f"{randomly.randrange(1 << 20):x}-{number}"
        if randomly.random() < 0.2:
            path.mkdir()
            folders.append(path)
        else:
            path.write_bytes(randomly.randbytes(randomly.choice([0, 1, 511, 512, 70_000, 600_000])))
    assert is_as_by_tar(upper)


def test_nothing(upper):
    assert packed(upper).returncode == tar_repack.IS_EMPTY
    assert is_as_by_tar(upper)


def test_as_deep_as_may_be(upper):
    """Deeper than a path can be said, and than there are open files by default."""
    _deep(upper, 1030)
    done, deeper = packed(upper), packed(upper, TarLimits(depth=1200))
    # Python's own way to remove it would go too deep.
    subprocess.run(["rm", "-r", upper / "d"], check=True)
    assert done.returncode == tar_repack.IS_TOO_LARGE
    assert b"deeper than may be" in done.stderr
    assert deeper.returncode == 0


def _deep(directory: Path, depth: int) -> None:
    folder = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (TarLimits(entries=2), b"entries become too many"),
        (TarLimits(content_bytes=5), b"content becomes too much"),
        (TarLimits(apparent_bytes=1 << 20), b"files become too large"),
        (TarLimits(extents=1), b"more parts than may be"),
    ],
)
def test_what_is_over_a_limit_is_named(upper, limits, problem):
    sparse(upper / "sparse", 2 << 20, 0, 1 << 20)
    (upper / "other").write_text("other")
    done = packed(upper, limits)
    assert done.returncode == tar_repack.IS_TOO_LARGE
    assert problem in done.stderr


def test_whoever_reads_no_more_ends_it(upper):
    (upper / "large").write_bytes(bytes(4 << 20))
    descriptor = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
    words = directory_pack.arguments(descriptor, LIMITS)
    command = [sys.executable, "-I", "-m", "magsd.storage.directory_pack", *words]
    with subprocess.Popen(command, pass_fds=(descriptor,), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 1
    os.close(descriptor)
