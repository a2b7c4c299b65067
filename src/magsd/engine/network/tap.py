"""A tap: a network interface whose wire is a descriptor.

Python has no name for it, and netlink makes only those that stay; this one
ends with its descriptor.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from magsd.model.errors import LaunchError

_DEVICE: Final = Path("/dev/net/tun")
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
# struct ifreq: the name, flags, and room for what other requests carry.
_REQUEST: Final = "16sH22x"


def open_tap(name: str) -> int:
    """Make the interface `name` in the calling thread's namespace; return its descriptor.

    One read or write is one Ethernet frame, with nothing before it. The
    descriptor keeps the namespace, too. Raises `LaunchError` when the host has
    no taps, and `OSError`.
    """
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(
            f"{_DEVICE} could not be opened: is this process root, "
            f"and is tun in the host's kernel (`modprobe tun`)?",
            repr(error),
        ) from error
    try:
        request = struct.pack(_REQUEST, name.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
