"""A program: layers from their files, written as other tools read them.

`root` writes what all layers show together, as one archive, to standard
output. `image` writes one layer into a folder, as a layer of an OCI image:
compressed, with whiteouts by name, called by its SHA-256, beside a note of
what it is. The same layer gives the same bytes. Needs root, as
`layer_merging` does. Standard library only.
"""

import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from magsd.storage import tar_entries
from magsd.storage.layer_merging import Merge, archive, checked, visible
from magsd.storage.tar_repack import IS_REFUSED, IS_TOO_LARGE
from magsd.storage.tar_rules import OPAQUE, Kind, TarEntry, TarRefusedError, shown

WHITEOUT: Final = b".wh."
"""What the name of an entry begins with that hides the rest of the name in the layers below."""
OPAQUE_NAME: Final = b".wh..wh..opq"
"""What an entry is called that hides all else in its directory in the layers below."""
NOTE: Final = "layer.json"
_BUFFER_BYTES: Final = 1 << 18
_ZEROS: Final = bytes(_BUFFER_BYTES)
_HOLES_MAX_BYTES: Final = 64 << 20
"""So much is written out: not every reader knows of holes, and a layer has them in many files."""
_GZIP_BITS: Final = 31
_GZIP_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer of an OCI image, as it lies in a file."""

    sha256: str
    size_bytes: int
    content_sha256: str
    """Of the archive before it was compressed."""


class _Compressed:
    """Writes a file with gzip's compression, and knows what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_BITS)
        self._content, self._written = hashlib.sha256(), hashlib.sha256()
        self._size_bytes = 0

    def write(self, content: bytes) -> None:
        """Add content."""
        self._content.update(content)
        self._put(self._compressor.compress(content))

    def finish(self) -> Blob:
        """Return what the file is now, which is complete."""
        self._put(self._compressor.flush())
        self._file.flush()
        return Blob(self._written.hexdigest(), self._size_bytes, self._content.hexdigest())

    def _put(self, content: bytes) -> None:
        self._written.update(content)
        self._size_bytes += len(content)
        self._file.write(content)


def write_root(layers: list[str], mount_point: str, sink: BinaryIO) -> None:
    """Write what layers, lowest first, show together. Raises `TarRefusedError`."""
    for entry, content in visible(Merge(is_whole=True), layers, mount_point):
        if entry.is_whiteout:
            continue
        _forget_marks(entry)
        _write(entry, content, sink, are_holes_known=True)
    sink.write(tar_entries.END)
    sink.flush()


def write_image_layer(layer: str, mount_point: str, folder: Path) -> None:
    """Write one layer into `folder`. Raises `TarRefusedError`."""
    staged = folder / "staged"
    with staged.open("wb", buffering=_BUFFER_BYTES) as file:
        sink = _Compressed(file)
        with archive(layer, mount_point) as reader:
            for entry in checked(reader):
                for each in marked_by_name(entry):
                    _write(each, reader.content(), sink, are_holes_known=False)
        sink.write(tar_entries.END)
        blob = sink.finish()
    staged.replace(folder / blob.sha256)
    (folder / NOTE).write_text(json.dumps(asdict(blob)), encoding="ascii")


def marked_by_name(entry: TarEntry) -> Iterator[TarEntry]:
    """Yield what stands in an OCI image for an entry of a layer. Pure.

    Raises `TarRefusedError` for a name that would hide something there.
    """
    parent, slash, name = entry.path.rpartition(b"/")
    if name.startswith(WHITEOUT):
        raise TarRefusedError(
            f"the entry {shown(entry.path)} has a name that hides another in an OCI image: "
            "remove it, or export as tar"
        )
    hidden = parent + slash + WHITEOUT + name
    if entry.is_whiteout:
        yield replace(entry, path=hidden, kind=Kind.REGULAR, mode=0, xattrs={})
        return
    is_opaque = entry.is_opaque
    _forget_marks(entry)
    yield entry
    if is_opaque:
        path = entry.path + (b"/" if entry.path else b"") + OPAQUE_NAME
        yield replace(entry, path=path, kind=Kind.REGULAR, mode=0, xattrs={})


def _forget_marks(entry: TarEntry) -> None:
    entry.xattrs = {name: value for name, value in entry.xattrs.items() if name != OPAQUE}


def _write(
    entry: TarEntry,
    content: Iterable[bytes],
    sink: BinaryIO | _Compressed,
    *,
    are_holes_known: bool,
) -> None:
    holes_bytes = entry.size_bytes - entry.content_bytes
    if entry.extents is not None and not (are_holes_known and holes_bytes > _HOLES_MAX_BYTES):
        content = filled(entry, content)
        entry.extents, entry.content_bytes = None, entry.size_bytes
    sink.write(tar_entries.header(entry, is_for_others=True))
    for piece in content:
        sink.write(piece)
    sink.write(tar_entries.padding(entry))


def filled(entry: TarEntry, content: Iterable[bytes]) -> Iterator[bytes]:
    """Return the content of a sparse file with zeros for its holes. Pure."""
    return _filled(entry.extents or (), entry.size_bytes, content)


def _filled(
    extents: tuple[tuple[int, int], ...], size_bytes: int, content: Iterable[bytes]
) -> Iterator[bytes]:
    pieces, rest, at = iter(content), b"", 0
    for start, length in extents:
        yield from _zeros(start - at)
        at = start + length
        while length:
            rest = rest or next(pieces)
            yield rest[:length]
            length, rest = length - len(rest[:length]), rest[length:]
    yield from _zeros(size_bytes - at)


def _zeros(size_bytes: int) -> Iterator[bytes]:
    while size_bytes > 0:
        piece = _ZEROS[:size_bytes]
        yield piece
        size_bytes -= len(piece)


def main(words: list[str]) -> int:
    """Do what is asked for; return the exit status."""
    form, mount_point, *rest = words
    try:
        if form == "image":
            write_image_layer(rest[0], mount_point, Path(rest[1]))
        else:
            with open(1, "wb", buffering=_BUFFER_BYTES, closefd=False) as sink:
                write_root(rest, mount_point, sink)
    except TarRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return IS_TOO_LARGE if error.is_too_large else IS_REFUSED
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
