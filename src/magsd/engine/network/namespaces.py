"""Network namespaces of a thread: making them, moving between them, their settings.

Python 3.11 has neither `unshare` nor `setns`. A namespace made here has no
name and no place in the file system: it lives as long as somebody holds its
descriptor or runs in it.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_SETTINGS: Final = Path("/proc/sys/net")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def current_namespace() -> int:
    """Return a new descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter_new_namespace() -> int:
    """Move the calling thread to a network namespace made for it; return its descriptor."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    return current_namespace()


def enter_namespace(descriptor: int) -> None:
    """Move the calling thread to a network namespace."""
    _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns")


def write_setting(name: str, value: str) -> None:
    """Set `ipv4/conf/eth0/forwarding` and the like, in the calling thread's namespace."""
    (_SETTINGS / name).write_text(value)


def read_setting(name: str) -> str:
    """Return a setting of the calling thread's namespace."""
    return (_SETTINGS / name).read_text().strip()


def disable_ipv6() -> None:
    """Switch IPv6 off in the calling thread's namespace, where the kernel has it."""
    for scope in ("all", "default"):
        if (_SETTINGS / f"ipv6/conf/{scope}").exists():
            write_setting(f"ipv6/conf/{scope}/disable_ipv6", "1")
