"""What a root filesystem made of others' layers shows: names alone, decided before content. Pure.

The layers are those of an OCI image, or the one that a plain archive is. They
may lack directories that things lie in, and name a thing twice; a whiteout is
known by its name. Whether an entry may be in a layer of ours at all is
`tar_rules`' part. Standard library only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from magsd.storage.layer_export import OPAQUE_NAME, WHITEOUT
from magsd.storage.tar_rules import Kind, TarEntry, TarRefusedError, shown

_BOOKKEEPING: Final = b".wh..wh."
"""What names of a storage driver's own begin with."""


@dataclass(slots=True)
class _Name:
    """One name in one layer."""

    kind: Kind
    number: int
    """Of the entry in its layer's archive."""
    directory: TarEntry | None = None
    target: bytes = b""
    """Of a hard link."""


@dataclass(slots=True)
class _Node:
    """What a path shows."""

    layer: int
    """0 is the top."""
    kind: Kind
    number: int
    directory: TarEntry | None = None
    is_implied: bool = False
    """A directory that is there because something lies in it; a lower one knows better."""
    target: bytes = b""
    is_target_below: bool = False
    """Whether the file that a hard link names lies in no layer but lower ones."""


@dataclass(slots=True)
class Tree:
    """What is visible. `add` every layer from the top down, then `finish`."""

    directories: list[TarEntry] = field(default_factory=list)
    """In an order in which a parent comes before what is in it. After `finish`, as what follows."""
    placed: list[dict[int, bytes]] = field(default_factory=list)
    """Of each layer, the top one first: which entries are visible, by their numbers, and where."""
    links: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Hard links: what they are called, and what they are another name of."""
    _nodes: dict[bytes, _Node] = field(default_factory=dict)
    _covers: set[bytes] = field(default_factory=set)
    """What hides what lies there, and below it, in the layers that come now."""
    _opaque: set[bytes] = field(default_factory=set)
    _hidden: list[dict[bytes, int]] = field(default_factory=list)
    """Of each layer: files that are hidden and have a name that may not be, and their numbers."""

    def add(self, entries: Iterable[TarEntry], *, is_image: bool) -> None:
        """Take in the names of the next layer below, each path in its plain form.

        `is_image`: whiteouts are known by their names. Raises `TarRefusedError`.
        """
        own, covers, opaque = _own_names(entries, is_image=is_image)
        layer = len(self.placed)
        self.placed.append({})
        hidden: dict[bytes, int] = {}
        open_ones: dict[bytes, bool] = {}
        for path in sorted(own):
            found = own[path]
            target = _resolved(own, path) if found.kind is Kind.HARD_LINK else b""
            if self._is_open(path, open_ones) and self._show(layer, path, found, target, own):
                continue
            if found.kind not in (Kind.DIRECTORY, Kind.HARD_LINK):
                hidden[path] = found.number
        self._hidden.append(hidden)
        self._covers |= covers
        self._opaque |= opaque

    def finish(self) -> None:
        """Know the result. Raises `TarRefusedError` for a hard link to nothing."""
        links = []
        for path in sorted(self._nodes):
            node = self._nodes[path]
            if node.kind is Kind.DIRECTORY:
                self.directories.append(node.directory or _implied(path))
            elif node.kind is Kind.HARD_LINK:
                links.append((path, node))
            else:
                self.placed[node.layer][node.number] = path
        renamed: dict[tuple[int, bytes], bytes] = {}
        # What names a file of a lower layer comes behind all that lies there.
        links.sort(key=lambda link: (link[1].is_target_below, -link[1].layer))
        for path, node in links:
            self._place_link(path, node, renamed)

    def _place_link(
        self, path: bytes, node: _Node, renamed: dict[tuple[int, bytes], bytes]
    ) -> None:
        key, hidden = (node.layer, node.target), self._hidden[node.layer]
        if node.is_target_below:
            target = self._nodes.get(node.target)
            is_below = target is not None and target.layer > node.layer
            if target is None or not is_below or target.kind is Kind.DIRECTORY:
                raise _refused(path, "is a hard link to nothing in the archive")
            self.links.append((path, node.target))
        elif node.target not in hidden:
            self.links.append((path, node.target))
        elif key in renamed:
            self.links.append((path, renamed[key]))
        else:
            # The first of its names that is visible gets the content.
            renamed[key] = path
            self.placed[node.layer][hidden[node.target]] = path

    def _show(
        self, layer: int, path: bytes, found: _Name, target: bytes, own: dict[bytes, _Name]
    ) -> bool:
        """Let a path show what this layer has there, unless an upper one has something there."""
        node = self._nodes.get(path)
        is_directory = found.kind is Kind.DIRECTORY
        if node is not None:
            if node.is_implied and is_directory:
                node.directory, node.is_implied = found.directory, False
            elif node.is_implied and not is_directory:
                raise _refused(path, "is no directory, and has something in it in a layer above")
            return is_directory
        self._imply_parents(layer, path)
        self._nodes[path] = _Node(
            layer, found.kind, found.number, found.directory, False, target, target not in own
        )
        return True

    def _imply_parents(self, layer: int, path: bytes) -> None:
        while path:
            path = _parent(path)
            if path in self._nodes:
                return
            self._nodes[path] = _Node(layer, Kind.DIRECTORY, -1, is_implied=True)

    def _is_open(self, path: bytes, known: dict[bytes, bool]) -> bool:
        """Say whether what lies at a path is not hidden by an upper layer's covers."""
        if path in self._covers:
            return False
        above = []
        while path:
            path = _parent(path)
            if path in known:
                break
            above.append(path)
        is_open = known.get(path, True)
        for directory in reversed(above):
            node = self._nodes.get(directory)
            is_open = (
                is_open
                and directory not in self._covers
                and directory not in self._opaque
                and (node is None or node.kind is Kind.DIRECTORY)
            )
            known[directory] = is_open
        return is_open


def _own_names(
    entries: Iterable[TarEntry], *, is_image: bool
) -> tuple[dict[bytes, _Name], set[bytes], set[bytes]]:
    """Return a layer's names, what it hides, and the directories whose content it hides."""
    own: dict[bytes, _Name] = {}
    covers: set[bytes] = set()
    opaque: set[bytes] = set()
    for number, entry in enumerate(entries):
        parent, slash, name = entry.path.rpartition(b"/")
        if is_image and name.startswith(WHITEOUT):
            if name == OPAQUE_NAME:
                opaque.add(parent)
            elif not name.startswith(_BOOKKEEPING):
                covers.add(parent + slash + _whited_out(entry.path, name))
            continue
        _check_twice(own.get(entry.path), entry)
        is_directory = entry.kind is Kind.DIRECTORY
        own[entry.path] = _Name(
            entry.kind,
            number,
            entry if is_directory else None,
            entry.target if entry.kind is Kind.HARD_LINK else b"",
        )
    for path in own:
        parent = path
        while parent:
            parent = _parent(parent)
            if (found := own.get(parent)) is None:
                continue
            if found.kind is not Kind.DIRECTORY:
                raise _refused(path, "lies in what is no directory of the archive")
            break
    return own, covers, opaque


def _check_twice(known: _Name | None, entry: TarEntry) -> None:
    """Refuse what is another kind of thing the second time."""
    if known is not None and known.kind is not entry.kind:
        raise _refused(entry.path, "is there twice, and not as the same kind of thing")
    if known is not None and entry.kind not in (Kind.DIRECTORY, Kind.REGULAR):
        raise _refused(entry.path, "is there twice")


def _whited_out(path: bytes, name: bytes) -> bytes:
    hidden = name.removeprefix(WHITEOUT)
    if hidden in (b"", b".", b".."):
        raise _refused(path, "hides nothing that can be")
    return hidden


def _resolved(own: dict[bytes, _Name], path: bytes) -> bytes:
    """Return the path of the file, perhaps in a lower layer, that a hard link is a name of."""
    target, steps = own[path].target, 0
    while (found := own.get(target)) is not None and found.kind is Kind.HARD_LINK:
        target, steps = found.target, steps + 1
        if target == path or steps > len(own):
            raise _refused(path, "is a hard link to itself")
    if found is not None and found.kind is Kind.DIRECTORY:
        raise _refused(path, "is a hard link to a directory")
    return target


def _implied(path: bytes) -> TarEntry:
    return TarEntry(path, Kind.DIRECTORY, 0o755, 0, 0, 0)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _refused(path: bytes, problem: str) -> TarRefusedError:
    return TarRefusedError(f"the entry {shown(path)} {problem}")
