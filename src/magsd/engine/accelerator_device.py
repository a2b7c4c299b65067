"""A device folder with a node for KVM in it, for an emulator that sees nothing else of the host.

Owns a filesystem in memory that is mounted nowhere until a shim attaches it.
The host's own node is not used: whom it lets in (root alone, or a group
`kvm`) differs from host to host, and the emulator belongs to neither.
"""

import ctypes
import os
import stat
from pathlib import Path
from typing import Final

NODE: Final = Path("/dev/kvm")

# One number on every architecture, as all system calls since Linux 5.1.
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
# linux/mount.h: FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC are the same.
_CLOEXEC: Final = 0x1
_SET_STRING: Final = 1
_CREATE: Final = 6
_NOSUID: Final = 0x2
_NOEXEC: Final = 0x8
_OPTIONS: Final = {"mode": "0755", "size": "16k", "nr_inodes": "8"}

_libc: Final = ctypes.CDLL(None, use_errno=True)


def device_folder() -> int:
    """Return a descriptor of a detached mount: a folder with the node `kvm`, and little room.

    Whoever gets there may open the node, and only root add to the folder; who
    gets there is decided by where it is attached. It is gone with its last
    descriptor, or with the namespace that it was attached in. Raises
    `OSError` when there is no KVM, or devices cannot be made here.
    """
    device = NODE.stat().st_rdev
    folder = _new_filesystem()
    try:
        os.mknod("kvm", stat.S_IFCHR | 0o600, device, dir_fd=folder)
        os.chmod("kvm", 0o666, dir_fd=folder)  # noqa: S103 - see above; whatever the umask
    except BaseException:
        os.close(folder)
        raise
    return folder


def _new_filesystem() -> int:
    context = _call(_FSOPEN, b"tmpfs", _CLOEXEC)
    try:
        for name, value in _OPTIONS.items():
            _call(_FSCONFIG, context, _SET_STRING, name.encode(), value.encode(), 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _CLOEXEC, _NOSUID | _NOEXEC)
    finally:
        os.close(context)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"making a device folder: {os.strerror(error)}")
    return result
