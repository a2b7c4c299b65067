"""A program: an archive that nobody vouches for becomes one layer's, on standard output.

It reads an OCI image or a plain root filesystem from a descriptor, twice: for
the names, which decide what is visible, and for the content. What is written
is made of what was understood, and nothing is ever unpacked. Run for each
archive as a process of its own, without privileges and with little memory.
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import BinaryIO, Final

from magsd.storage import image_archive, tar_entries
from magsd.storage.image_archive import InflatedReader, Part, PartReader
from magsd.storage.root_tree import Tree
from magsd.storage.tar_entries import TarReader
from magsd.storage.tar_repack import IS_EMPTY, IS_REFUSED, IS_TOO_LARGE, confine
from magsd.storage.tar_rules import Kind, TarEntry, TarLimits, TarRefusedError, TarRules, shown

FORMS: Final = ("auto", "oci", "tar")
_BUFFER_BYTES: Final = 1 << 18
_LABEL: Final = b"security.selinux"
"""A policy's of another machine: without meaning here."""


def arguments(source: int, scratch: int, limits: TarLimits, form: str) -> list[str]:
    """Return what `main` is to be called with: open files, the second empty and writable."""
    return [str(source), str(scratch), json.dumps(asdict(limits)), form]


class _Layers:
    """The layers of an archive, the top one first, read as often as need be."""

    def __init__(self, file: int, parts: list[Part], limits: TarLimits) -> None:
        self._file = file
        self._parts = parts
        self._limits = limits
        self._rules = TarRules(limits)
        self._entries = self._content_bytes = 0

    def __len__(self) -> int:
        return len(self._parts)

    @contextmanager
    def opened(self, number: int) -> Iterator[TarReader]:
        """Give a reader of a layer, and check what was read against what it should have been."""
        part = self._parts[len(self._parts) - 1 - number]
        source = PartReader(self._file, part)
        buffered = io.BufferedReader(source, _BUFFER_BYTES)
        content = InflatedReader(buffered)
        stream = io.BufferedReader(content, _BUFFER_BYTES)
        yield TarReader(stream, self._limits)
        if stream.read(1) or buffered.read(1):
            raise TarRefusedError("the archive goes on behind its end")
        is_right = (not part.sha256 or source.hash.hexdigest() == part.sha256) and (
            not part.content_sha256 or content.hash.hexdigest() == part.content_sha256
        )
        if not is_right:
            raise TarRefusedError(f"the layer {shown(part.name.encode())} is damaged")

    def names(self, reader: TarReader) -> Iterator[TarEntry]:
        """Yield entries with their paths in the plain form, counted over all layers."""
        for entry in reader:
            self._count(entry)
            yield self._plain(entry)

    def _plain(self, entry: TarEntry) -> TarEntry:
        named = entry.path
        entry.path = self._rules.plain_path(named, named)
        if entry.kind is Kind.HARD_LINK:
            entry.target = self._rules.plain_path(entry.target, named)
        elif entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            raise TarRefusedError(
                f"the entry {shown(named)} is a device: leave it out, `tar --exclude=./dev/*`"
            )
        if not entry.path and entry.kind is not Kind.DIRECTORY:
            raise TarRefusedError(f"the entry {shown(named)} is the top and no directory")
        entry.xattrs.pop(_LABEL, None)
        return entry

    def _count(self, entry: TarEntry) -> None:
        self._entries += 1
        self._content_bytes += entry.content_bytes
        if self._entries > self._limits.entries:
            raise _too_large(entry, "the entries become too many")
        if self._content_bytes > self._limits.content_bytes:
            raise _too_large(entry, "the content becomes too much")

    def placed(self, reader: TarReader, places: dict[int, bytes]) -> Iterator[TarEntry]:
        """Yield the entries that are visible, at their places."""
        for number, entry in enumerate(reader):
            if (place := places.get(number)) is not None:
                self._plain(entry)
                yield replace(entry, path=place)


def flatten(layers: _Layers, sink: BinaryIO, rules: TarRules, *, is_image: bool) -> None:
    """Write what layers show as one archive. Raises `TarRefusedError`, with part of it written."""
    tree = Tree()
    for number in range(len(layers)):
        with layers.opened(number) as reader:
            tree.add(layers.names(reader), is_image=is_image)
    tree.finish()
    for entry in tree.directories:
        _write(entry, sink, rules)
    for number, places in enumerate(tree.placed):
        with layers.opened(number) as reader:
            for entry in layers.placed(reader, places):
                _write(entry, sink, rules)
                for piece in reader.content():
                    sink.write(piece)
                sink.write(tar_entries.padding(entry))
    for path, target in tree.links:
        _write(TarEntry(path, Kind.HARD_LINK, 0o644, 0, 0, 0, target), sink, rules)
    sink.write(tar_entries.END)
    sink.flush()


def _write(entry: TarEntry, sink: BinaryIO, rules: TarRules) -> None:
    rules.check(entry)
    if entry.is_opaque:
        raise TarRefusedError(f"the entry {shown(entry.path)} has an attribute that may not be")
    sink.write(tar_entries.header(entry))


def plain(source: int, scratch: int, limits: TarLimits) -> int:
    """Return the descriptor of an archive that is not compressed. Raises `TarRefusedError`."""
    size_bytes = os.fstat(source).st_size
    part = Part("", 0, size_bytes)
    beginning = io.BufferedReader(PartReader(source, part), _BUFFER_BYTES)
    if not image_archive.is_compressed(beginning):
        return source
    content, written = InflatedReader(beginning), 0
    most = 2 * limits.content_bytes
    with open(scratch, "wb", closefd=False) as into:
        while piece := content.read(_BUFFER_BYTES):
            written += len(piece)
            if written > most:
                raise TarRefusedError("the archive is too large without its compression", True)
            into.write(piece)
    return scratch


def run(source: int, scratch: int, limits: TarLimits, form: str, sink: BinaryIO) -> bool:
    """Do it; return whether anything was in the archive. Raises `TarRefusedError`."""
    file = plain(source, scratch, limits)
    size_bytes = os.fstat(file).st_size
    parts = None if form == "tar" else image_archive.find_layers(file, size_bytes, limits)
    if parts is None and form == "oci":
        raise TarRefusedError("the archive holds no image: neither an OCI layout nor `docker save`")
    rules = TarRules(limits)
    layers = _Layers(file, parts or [Part("", 0, size_bytes)], limits)
    flatten(layers, sink, rules, is_image=parts is not None)
    return not rules.is_empty


def _too_large(entry: TarEntry, problem: str) -> TarRefusedError:
    return TarRefusedError(f"the entry {shown(entry.path)} is where {problem}", True)


def main(words: list[str]) -> int:
    """Import; return the exit status."""
    confine()
    source, scratch, limits, form = words
    try:
        with open(1, "wb", buffering=_BUFFER_BYTES, closefd=False) as sink:
            has_content = run(
                int(source), int(scratch), TarLimits(**json.loads(limits)), form, sink
            )
    except TarRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return IS_TOO_LARGE if error.is_too_large else IS_REFUSED
    except (MemoryError, RecursionError):
        sys.stderr.write("the archive needs more memory than may be\n")
        return IS_TOO_LARGE
    except BrokenPipeError:
        return 1
    return 0 if has_content else IS_EMPTY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
