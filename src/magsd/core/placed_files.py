"""Uploads in a VM: in `/root` before its script begins, and shown in `/uploads`.

They lie on the VM's disk, once, like all that its script may change; what
shows them are links on a tmpfs, which take no memory to speak of and are no
part of a workspace.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError

_FOLDER: Final = "/root"
_PIECE_BYTES: Final = 256 << 10
_LEAST_RATE: Final = 2_000_000
"""Bytes a second that a VM takes even on a host that is very busy."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An upload that lies on this machine."""

    name: str
    path: Path
    size_bytes: int


def placing_s(files: Sequence[LocalFile]) -> float:
    """Return how many seconds placing them may take."""
    return sum(file.size_bytes for file in files) / _LEAST_RATE


async def place_files(connection: ShimConnection, files: Sequence[LocalFile]) -> None:
    """Write files into a VM, one after the other. Raises `LaunchError` that names the one."""
    for file in files:
        try:
            async with aclosing(_pieces(file.path)) as content:
                await streams.write_file(connection, f"{_FOLDER}/{file.name}", content)
        except ShimError as error:
            text = f"the file {file.name!r} could not be put into the VM: {error}"
            raise LaunchError(text) from error
    if files:
        await streams.control(connection, "uploads", name=[file.name for file in files])


async def _pieces(path: Path) -> AsyncGenerator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
