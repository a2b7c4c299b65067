"""Root filesystems, made of layers, as archives that other tools read.

What goes out is streamed; of a whole layer nothing is ever in memory. An OCI
image names its layers by their content, so they are written to the disk first.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from magsd.model.errors import CapacityError, InvalidError, MagsError
from magsd.storage import layer_export, oci_layout
from magsd.storage.layer_export import Blob
from magsd.storage.pipelines import Command, Ended, run_pipeline, stream_pipeline
from magsd.storage.tar_repack import IS_REFUSED, IS_TOO_LARGE

_PYTHON: Final = (sys.executable, "-I", "-m", "magsd.storage.layer_export")
_PIECE_BYTES: Final = 1 << 18
_DISK_FULL: Final = "No space left on device"


@dataclass(frozen=True, slots=True)
class ImageName:
    """What an image is called, and since when it is what it is."""

    name: str
    tag: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class ImageArchive:
    """An OCI image whose layers lie in a folder."""

    size_bytes: int
    made_at: datetime
    beginning: bytes
    layers: Sequence[Blob]
    folder: Path

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the archive."""
        yield self.beginning
        for blob in self.layers:
            path = self.folder / blob.sha256
            yield oci_layout.member(
                f"{oci_layout.BLOBS}/{blob.sha256}", blob.size_bytes, self.made_at
            )
            with path.open("rb") as file:
                while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                    yield piece
            yield oci_layout.padding(blob.size_bytes)
        yield oci_layout.END


def root(layers: Sequence[Path], mount_point: Path) -> AsyncGenerator[bytes]:
    """Yield the tar of what `layers`, lowest first, show together. Needs root.

    To be closed. Raises `MagsError` when a layer cannot be read, at any place.
    """
    words = ["root", *(str(path.absolute()) for path in (mount_point, *layers))]
    return stream_pipeline([Command([*_PYTHON, *words])], _check)


async def image(
    layers: Sequence[Path], mount_point: Path, folder: Path, called: ImageName
) -> ImageArchive:
    """Write the layers of an OCI image into an empty `folder`; return the image. Needs root.

    Raises `InvalidError` for a name that cannot be in such an image,
    `CapacityError` for a full disk.
    """
    blobs = [await _blob(layer, mount_point, folder) for layer in layers]
    distinct = list({blob.sha256: blob for blob in blobs}.values())
    found = oci_layout.layout(blobs, called.name, called.tag, called.made_at)
    return ImageArchive(
        size_bytes=oci_layout.archive_bytes(found, distinct),
        made_at=called.made_at,
        beginning=oci_layout.documents(found, called.made_at),
        layers=distinct,
        folder=folder,
    )


async def _blob(layer: Path, mount_point: Path, folder: Path) -> Blob:
    places = [str(path.absolute()) for path in (mount_point, layer, folder)]
    _check(await run_pipeline([Command([*_PYTHON, "image", *places])]))
    note = await asyncio.to_thread((folder / layer_export.NOTE).read_bytes)
    return Blob(**json.loads(note))


def _check(ended: Sequence[Ended]) -> None:
    (program,) = ended
    if program.exit_code == 0:
        return
    if program.exit_code in (IS_REFUSED, IS_TOO_LARGE) and "has a name that" in program.tail:
        raise InvalidError(f"the workspace cannot be exported: {program.tail}")
    if _DISK_FULL in program.tail:
        text = "the disk of this machine cannot be written now: make room and try again"
        raise CapacityError(text, program.tail)
    detail = f"{program.name} ended with {program.exit_code}: {program.tail}"
    raise MagsError("the workspace could not be exported", detail)
