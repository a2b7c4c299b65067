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
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FS_CLOEXEC: Final = 0x1
"""Of `fsopen` and of `fsmount`."""
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOUNT_ATTR_RDONLY: Final = 0x1
_ATTRIBUTES: Final = 0x2 | 0x4 | 0x8 | 0x10
"""Of a mount: nosuid, nodev, noexec, noatime."""

_WRITE_OUT: Final = 0x1 | 0x2 | 0x4
"""For `sync_file_range`: wait for what is being written, write, wait for that."""

_FITRIM: Final = 0xC0185879
_TRIM_BYTES: Final = 1 << 20

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO_BYTES: Final = 232
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY: Final = 0x1
_LO_FLAGS_AUTOCLEAR: Final = 0x4
_LO_FLAGS_DIRECT_IO: Final = 0x10
_LOOP_SET_CAPACITY: Final = 0x4C07
_LOOP_TRIES: Final = 64
_SECTOR_BYTES: Final = 512
_PAGE_BYTES: Final = 4096

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


def write_out(file: int) -> None:
    """Return when a file's data is where its filesystem has it, if not on the device yet.

    Unlike `fdatasync` it waits for no device, and for nothing that others write.
    """
    result = _libc.sync_file_range(file, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_OUT)
    _check(result, "sync_file_range")


def sync_filesystem(descriptor: int) -> None:
    """Return when all that was written to a filesystem is on its device. Raises `OSError`."""
    _check(_libc.syncfs(descriptor), "syncfs")


def trim(descriptor: int) -> None:
    """Give back to the device what is free in a filesystem, in places of 1 MiB or more.

    Smaller ones would make many pieces of the file that is the device. Raises `OSError`.
    """
    wanted = struct.pack("=3Q", 0, (1 << 64) - 1, _TRIM_BYTES)
    fcntl.ioctl(descriptor, _FITRIM, wanted)


def mount_image(image: Path, target: Path, kind: str) -> None:
    """Mount a read-only filesystem image through a loop device that ends with the mount."""
    with image.open("rb") as file:
        device = _loop_device(file.fileno(), os.O_RDONLY)
    try:
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount(f"/dev/loop{device.number}", target, kind, flags)
    finally:
        # The mount holds the device now; without one it is free again.
        os.close(device.descriptor)


def mount_detached(
    image: int,
    kind: str,
    *,
    is_writable: bool = False,
    is_direct: bool = False,
    options: str = "",
) -> int:
    """Return a descriptor of a mount of a filesystem image; nothing else has it.

    It is gone, and its loop device with it, when its last descriptor is closed,
    also by the end of this process; so are those of files in it. `image` must
    be open for writing, to be read too: a journal may have to be applied. An
    image that is a loop device already is mounted from that: two mounts of one
    image must be one filesystem. `is_direct`: what is in it is not cached a
    second time, where the filesystem below can do without; its sectors must have
    4096 bytes then. Raises `OSError`.
    """
    # Of its own: a device keeps what it was given open, and with it the locks of that.
    again = os.open(f"/proc/self/fd/{image}", os.O_RDWR | os.O_CLOEXEC)
    try:
        device = _loop_device_of(again) or _loop_device(again, os.O_RDWR, is_direct=is_direct)
    finally:
        os.close(again)
    try:
        context = _check(_libc.syscall(_FSOPEN, kind.encode(), _FS_CLOEXEC), f"fsopen {kind}")
        try:
            _configure(context, _FSCONFIG_SET_STRING, b"source", b"/dev/loop%d" % device.number)
            for option in [*options.split(","), "" if is_writable else "ro"]:
                if option:
                    _configure(context, _FSCONFIG_SET_FLAG, option.encode(), None)
            _configure(context, _FSCONFIG_CMD_CREATE, None, None)
            attributes = _ATTRIBUTES | (0 if is_writable else _MOUNT_ATTR_RDONLY)
            mounted = _libc.syscall(_FSMOUNT, context, _FS_CLOEXEC, attributes)
            return _check(mounted, f"mounting an image of {kind}")
        finally:
            os.close(context)
    finally:
        os.close(device.descriptor)


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    result = _libc.syscall(_FSCONFIG, context, command, key, value, 0)
    _check(result, f"configuring a mount: {key!r}")


class _LoopDevice:
    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.descriptor = descriptor


def _loop_device_of(file: int) -> _LoopDevice | None:
    """Return the loop device that a file is already; open, it stays what it is."""
    wanted = os.fstat(file)
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        number = int(path.parts[3].removeprefix("loop"))
        device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
        try:
            status = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_BYTES))
        except OSError as error:
            os.close(device)
            if error.errno != errno.ENXIO:  # It is none any more.
                raise
            continue
        if struct.unpack_from("=2Q", status) == (wanted.st_dev, wanted.st_ino):
            return _LoopDevice(number, device)
        os.close(device)
    return None


def tell_size(image: int) -> bool:
    """Have the loop device that an image is see how large it became; False: it is none.

    Raises `OSError`.
    """
    if (device := _loop_device_of(image)) is None:
        return False
    try:
        fcntl.ioctl(device.descriptor, _LOOP_SET_CAPACITY)
    finally:
        os.close(device.descriptor)
    return True


def _loop_device(file: int, access: int, *, is_direct: bool = False) -> _LoopDevice:
    """Return a free loop device that is a file now; `access`: `O_RDONLY` or `O_RDWR`."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", access | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _loop_config(file, access, is_direct))
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


def _loop_config(file: int, access: int, is_direct: bool) -> bytes:
    """Return a `struct loop_config` (linux/loop.h)."""
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if access == os.O_RDONLY else 0)
    # The kernel leaves the flag out where the file's filesystem has no direct I/O.
    flags |= _LO_FLAGS_DIRECT_IO if is_direct else 0
    block_bytes = _PAGE_BYTES if is_direct else _SECTOR_BYTES
    # fd, block_size, then struct loop_info64: device, inode, rdevice, offset,
    # sizelimit, number, encrypt_type, encrypt_key_size, flags, names and keys.
    head = struct.pack("=II5Q4I", file, block_bytes, 0, 0, 0, 0, 0, 0, 0, 0, flags)
    return head.ljust(304, b"\0")
