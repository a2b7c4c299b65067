"""The key by which clients know the SSH gateway: made once, kept beside the data."""

import os
from pathlib import Path

from magsd.core.keys import new_key
from magsd.model.errors import InvalidError

_MODE = 0o600


def host_key(path: Path) -> bytes:
    """Return the private key in a file, which is made if it is not there.

    Raises `InvalidError` when it can be neither read nor made.
    """
    try:
        if not path.exists():
            _write(path, new_key().private_key.encode())
        return path.read_bytes()
    except OSError as error:
        raise InvalidError(f"the SSH host key {path} cannot be used: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: clients would take another key for another server."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.rename(path)
