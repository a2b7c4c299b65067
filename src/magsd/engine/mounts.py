"""The few system calls about mounts that Python has no function for.

Owns their numbers, structures and errors. What is mounted where, and for how
long, is decided by `layers`. All of it blocks, and acts on the mount
namespace of the calling thread.
"""

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MNT_DETACH: Final = 0x2

_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_CLONE_NEWNS: Final = 0x20000
_OPEN_TREE: Final = 428
"""One number on every architecture, as all system calls since Linux 5.1."""
_OPEN_TREE_CLONE: Final = 0x1
_AT_FDCWD: Final = -100

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY: Final = 0x1
_LO_FLAGS_AUTOCLEAR: Final = 0x4
_LOOP_TRIES: Final = 64
_SECTOR_BYTES: Final = 512

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def enter_private_namespace() -> None:
    """Give the calling thread a copy of the mount namespace from which nothing spreads.

    It ends with the thread, and everything mounted in it with it.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "making / private")


def mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    """Mount a filesystem. Raises `OSError`."""
    words = (source.encode(), os.fsencode(target), kind.encode())
    result = _libc.mount(*words, ctypes.c_ulong(flags), options.encode())
    _check(result, f"mounting {source} at {target}")


def unmount(target: Path) -> None:
    """Take a mount out of the namespace; clones of it live on. Raises `OSError`."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmounting {target}")


def clone_mount(path: Path) -> int:
    """Return a descriptor of a detached copy of the mount at `path` (a folder or a file).

    The copy belongs to no namespace; it is gone when its last descriptor is
    closed, unless somebody attached it meanwhile.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    result = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    return _check(result, f"cloning the mount at {path}")


def mount_image(image: Path, target: Path, kind: str) -> None:
    """Mount a read-only filesystem image through a loop device that ends with the mount."""
    with image.open("rb") as file:
        device = _loop_device(file.fileno())
    try:
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount(f"/dev/loop{device.number}", target, kind, flags)
    finally:
        # The mount holds the device now; without one it is free again.
        os.close(device.descriptor)


class _LoopDevice:
    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.descriptor = descriptor


def _loop_device(file: int) -> _LoopDevice:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _loop_config(file))
            except OSError as error:
                os.close(device)
                # Somebody else was given the same number first.
                if error.errno != errno.EBUSY:
                    raise
            else:
                return _LoopDevice(number, device)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")


def _loop_config(file: int) -> bytes:
    """Return a `struct loop_config` (linux/loop.h)."""
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    # fd, block_size, then struct loop_info64: device, inode, rdevice, offset,
    # sizelimit, number, encrypt_type, encrypt_key_size, flags, names and keys.
    head = struct.pack("=II5Q4I", file, _SECTOR_BYTES, 0, 0, 0, 0, 0, 0, 0, 0, flags)
    return head.ljust(304, b"\0")
