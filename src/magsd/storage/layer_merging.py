"""A program: layers from their files, merged into one archive on standard output.

Shows what an overlay of them shows, and hides of what lies below them what
they hide: whiteouts and opaque marks are kept as against that. Every layer is
mounted, in a namespace that ends with its reader, and read twice: once for
the names, which decide what is visible, once for the content. Needs root.
Standard library only.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, TypeAlias

from magsd.storage import tar_entries
from magsd.storage.tar_entries import TarReader
from magsd.storage.tar_repack import IS_REFUSED, IS_TOO_LARGE
from magsd.storage.tar_rules import Kind, TarEntry, TarLimits, TarRefusedError, TarRules

TAR: Final = (
    "tar",
    "--create",
    "--sort=name",
    "--sparse",
    "--format=posix",
    "--numeric-owner",
    "--pax-option=delete=atime,delete=ctime,delete=mtime",
    "--xattrs",
    "--xattrs-include=*",
    "--warning=no-file-ignored",
    "--blocking-factor=512",
)
"""Reads a directory as `tar_repack` understands it; the same directory gives the same bytes.

It writes 256 KiB at once, for pipes that hold more than the few it would otherwise.

A squashfs has whole seconds, as the plain header has; a record for the rest of them would be
half of the work.
"""
_OPTIONS: Final = "loop,ro,nosuid,nodev,noexec"
# A squashfs knows no holes when it is asked for them: `raw` finds them by their zeros. And of one
# without attributes tar says so for every file.
_READ_LAYER: Final = (
    f'mount -t squashfs -o {_OPTIONS} -- "$0" "$1" && shift && '
    'exec "$@" --hole-detection=raw . 2> /dev/null'
)
_LIMITS: Final = TarLimits(
    apparent_bytes=1 << 42, entries=4_000_000, metadata_bytes=1 << 33, extents=1 << 22
)
"""Each layer was within the limits when it was packed."""
_BUFFER_BYTES: Final = 1 << 18


@dataclass(slots=True)
class _Node:
    layer: int
    """The highest that has it: 0 is the top."""
    is_directory: bool
    hides: bool
    """Whether a directory hides what lies below the layers that have part in it."""


@dataclass(slots=True)
class Merge:
    """What of each layer is visible. Pure."""

    is_whole: bool = False
    """Whether nothing lies below: then nothing is left of whiteouts."""
    _nodes: dict[bytes, _Node] = field(default_factory=dict)
    _moved: list[dict[bytes, bytes]] = field(default_factory=list)
    """Of each layer: names that are hidden, and the visible ones that get their content."""
    _covered: set[bytes] = field(default_factory=set)
    """Directories above which one hides all that lies below."""

    def add(self, entries: Iterable[TarEntry]) -> None:
        """Take in the names of a layer. To be called for all, from the top down."""
        layer = len(self._moved)
        merged: set[bytes] = set()
        """The directories whose entries in this layer may be visible."""
        hidden: set[bytes] = set()
        moved: dict[bytes, bytes] = {}
        for entry in entries:
            if not self._is_visible(entry, layer, merged):
                hidden.add(entry.path)
            elif entry.kind is Kind.DIRECTORY:
                merged.add(entry.path)
            elif entry.kind is Kind.HARD_LINK and entry.target in hidden:
                moved.setdefault(entry.target, entry.path)
        self._moved.append(moved)

    def _is_visible(self, entry: TarEntry, layer: int, merged: set[bytes]) -> bool:
        if entry.path and _parent(entry.path) not in merged:
            return False
        node = self._nodes.get(entry.path)
        is_directory = entry.kind is Kind.DIRECTORY
        if node is None:
            self._nodes[entry.path] = _Node(layer, is_directory, entry.is_opaque)
            return True
        if not node.is_directory or node.hides:
            return False
        node.hides = entry.is_opaque or not is_directory
        return is_directory

    def finish(self) -> None:
        """Know what is covered. To be called after all layers were added."""
        if self.is_whole and b"" in self._nodes:
            self._nodes[b""].hides = True
        for path, node in self._nodes.items():  # A parent comes before what is in it.
            if path and node.is_directory and self._is_covered(_parent(path)):
                self._covered.add(path)

    def select(self, layer: int, entry: TarEntry) -> TarEntry | None:
        """Return what a layer's entry becomes; None when it is not visible."""
        node, moved = self._nodes.get(entry.path), self._moved[layer]
        if node is None or node.layer != layer:
            if entry.path not in moved:
                return None
            entry.path = moved[entry.path]
            return entry
        if entry.kind is Kind.HARD_LINK:
            entry.target = moved.get(entry.target, entry.target)
            return entry if entry.target != entry.path else None
        if entry.is_whiteout and self._is_covered(_parent(entry.path)):
            return None  # There is nothing below to hide, and so an overlay would show it.
        if node.hides:
            entry.mark_opaque()
        return entry

    def _is_covered(self, directory: bytes) -> bool:
        """Say whether a directory shows nothing of what lies below all layers."""
        return directory in self._covered or self._nodes[directory].hides


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


Visible: TypeAlias = tuple[TarEntry, Iterator[bytes]]
"""An entry, and its content without its holes, to be read before the next is asked for."""


def visible(merge: Merge, layers: Sequence[str], mount_point: str) -> Iterator[Visible]:
    """Yield what layer files, lowest first, show together. Raises `TarRefusedError`."""
    top_first = list(reversed(layers))
    for path in top_first:
        with archive(path, mount_point) as reader:
            merge.add(checked(reader))
    merge.finish()
    for layer, path in enumerate(top_first):
        with archive(path, mount_point) as reader:
            for entry in checked(reader):
                if (selected := merge.select(layer, entry)) is not None:
                    yield selected, reader.content()


def write(layers: Sequence[str], mount_point: str, sink: BinaryIO) -> None:
    """Write the merged archive of layer files, lowest first. Raises `TarRefusedError`."""
    for entry, content in visible(Merge(), layers, mount_point):
        sink.write(tar_entries.header(entry))
        for piece in content:
            sink.write(piece)
        sink.write(tar_entries.padding(entry))
    sink.write(tar_entries.END)
    sink.flush()


def checked(reader: TarReader) -> Iterator[TarEntry]:
    """Yield the entries of a layer in their plain form. Raises `TarRefusedError`."""
    rules = TarRules(_LIMITS, is_ours=True)
    for entry in reader:
        rules.check(entry)
        yield entry


@contextmanager
def archive(layer: str, mount_point: str) -> Iterator[TarReader]:
    """Give a reader of a layer file's content. Raises `TarRefusedError` when it cannot be read."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _READ_LAYER]
    command += [layer, mount_point, *TAR, f"--directory={mount_point}"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=_BUFFER_BYTES
    )
    assert process.stdout is not None
    with process:
        yield TarReader(process.stdout, _LIMITS)
    if process.returncode != 0:
        raise TarRefusedError(f"the layer {layer} cannot be read")


def main(words: list[str]) -> int:
    """Merge the layers named behind a mount point; return the exit status."""
    try:
        with open(1, "wb", buffering=_BUFFER_BYTES, closefd=False) as sink:
            write(words[1:], words[0], sink)
    except TarRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return IS_TOO_LARGE if error.is_too_large else IS_REFUSED
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
