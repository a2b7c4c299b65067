"""What may be in a layer: an allow-list for the entries of an archive from a guest.

Pure. A layer is an overlay's upper directory, so an entry is a regular file,
a directory, a symbolic link, a hard link to an earlier entry, a FIFO, or a
whiteout (a character device 0:0).

Imported by programs that are started for each stream: standard library only.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

OPAQUE: Final = b"trusted.overlay.opaque"
"""The attribute of a directory that hides what lies below it."""
_CAPABILITY: Final = b"security.capability"
_USER: Final = b"user."
_NAME_MAX: Final = 255
_VALUE_MAX: Final = 1 << 16
_TARGET_MAX: Final = 4095
_SHOWN_CHARACTERS: Final = 200


class TarRefusedError(Exception):
    """An archive that does not become a layer. The message names the entry."""

    def __init__(self, message: str, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large
        """Whether it is over a limit, and not against a rule."""


@dataclass(frozen=True, slots=True)
class TarLimits:
    """How much may be in an archive."""

    content_bytes: int = 1 << 40
    """Of all files together, holes not counted."""
    apparent_bytes: int = 256 << 30
    """Of all files together, holes counted: packing takes time for them too."""
    entries: int = 1_000_000
    depth: int = 1024
    path_bytes: int = 1 << 15
    """Of a path, and of what a link says."""
    records_bytes: int = 1 << 20
    """Of one entry's extended attributes."""
    metadata_bytes: int = 1 << 30
    """Of all long names, extended attributes and maps of sparse files together."""
    extents: int = 1 << 17
    """Of one sparse file."""


class Kind(Enum):
    """What an entry is; the value is its mark in a tar header."""

    REGULAR = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(slots=True)
class TarEntry:
    """One entry of an archive."""

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_s: int
    target: bytes = b""
    """Of a link."""
    size_bytes: int = 0
    """Of a regular file, as who reads it sees it."""
    content_bytes: int = 0
    """Of what follows the entry: the file without its holes."""
    extents: tuple[tuple[int, int], ...] | None = None
    """Where a sparse file has content: offsets and sizes. None when there are no holes."""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def is_whiteout(self) -> bool:
        """Whether it hides what lies below."""
        return self.kind is Kind.CHARACTER and self.device == (0, 0)

    @property
    def is_opaque(self) -> bool:
        """Whether it is a directory that hides the content of those below."""
        return self.kind is Kind.DIRECTORY and self.xattrs.get(OPAQUE) == b"y"

    def mark_opaque(self) -> None:
        """Let it hide the content of the directories below."""
        self.xattrs = {**self.xattrs, OPAQUE: b"y"}


class TarRules:
    """The rules, applied to one archive's entries in their order."""

    def __init__(self, limits: TarLimits, *, is_ours: bool = False) -> None:
        self._limits = limits
        self._is_ours = is_ours
        """Whether the host wrote what is archived: then what no layer holds is left out."""
        self._kinds: dict[bytes, Kind] = {}
        self._whiteouts: set[bytes] = set()
        self._content_bytes = 0
        self._apparent_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing but the top directory itself."""
        return not self._kinds.keys() - {b""}

    def check(self, entry: TarEntry) -> None:
        """Bring an entry into its plain form: a path without `./`, a target likewise.

        Raises `TarRefusedError`.
        """
        entry.path = self.plain_path(entry.path, entry.path)
        if entry.path in self._kinds:
            raise _refused(entry.path, "is there twice")
        if not entry.path and entry.kind is not Kind.DIRECTORY:
            raise _refused(entry.path, "is the top and no directory")
        self._check_parent(entry.path)
        self._check_kind(entry)
        self._check_xattrs(entry)
        self._count(entry)
        self._kinds[entry.path] = entry.kind

    def plain_path(self, path: bytes, named: bytes) -> bytes:
        """Return a path without `./` in front; `named` is whose it is. Raises `TarRefusedError`."""
        if len(path) > self._limits.path_bytes:
            raise _refused(named, "has a longer path than may be", is_too_large=True)
        plain = path.removeprefix(b"./").rstrip(b"/") if path != b"." else b""
        if not plain:
            if path.startswith(b"/"):
                raise _refused(named, "is not a relative path")
            return plain
        parts = plain.split(b"/")
        if path.startswith(b"/") or b"\0" in path or any(p in (b"", b".", b"..") for p in parts):
            raise _refused(named, "is not a plain relative path")
        if len(parts) > self._limits.depth:
            raise _refused(named, "lies deeper than may be", is_too_large=True)
        if any(len(part) > _NAME_MAX for part in parts):
            raise _refused(named, "has a longer name than may be")
        return plain

    def _check_parent(self, path: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        if parent and self._kinds.get(parent) is not Kind.DIRECTORY:
            raise _refused(path, "lies in what is no directory of the archive")

    def _check_kind(self, entry: TarEntry) -> None:
        if entry.kind is Kind.HARD_LINK:
            entry.target = self.plain_path(entry.target, entry.path)
            if self._kinds.get(entry.target) in (None, Kind.DIRECTORY):
                raise _refused(entry.path, "is a hard link to nothing earlier in the archive")
            if entry.target in self._whiteouts:
                entry.kind, entry.target, entry.mode = Kind.CHARACTER, b"", 0
        elif entry.kind is Kind.SYMLINK:
            if not entry.target or b"\0" in entry.target or len(entry.target) > _TARGET_MAX:
                raise _refused(entry.path, "is a symbolic link that cannot be")
        elif entry.kind in (Kind.CHARACTER, Kind.BLOCK) and not entry.is_whiteout:
            if not self._is_ours:
                raise _refused(entry.path, "is a device")
            # At least it hides what was there before.
            entry.kind, entry.device = Kind.CHARACTER, (0, 0)
        if entry.is_whiteout:
            entry.mode = 0
            self._whiteouts.add(entry.path)

    def _check_xattrs(self, entry: TarEntry) -> None:
        if entry.kind is Kind.HARD_LINK:
            entry.xattrs = {}
        for name, value in list(entry.xattrs.items()):
            if self._may_have(entry, name, value):
                continue
            if not self._is_ours:
                raise _refused(entry.path, f"has the attribute {shown(name)}, which may not be")
            del entry.xattrs[name]

    def _may_have(self, entry: TarEntry, name: bytes, value: bytes) -> bool:
        if len(value) > _VALUE_MAX:
            return False
        if entry.kind is Kind.DIRECTORY and name == OPAQUE:
            return value == b"y"
        if entry.kind is Kind.REGULAR and name == _CAPABILITY:
            return True
        is_named = len(_USER) < len(name) <= _NAME_MAX and b"\0" not in name
        return entry.kind in (Kind.DIRECTORY, Kind.REGULAR) and is_named and name.startswith(_USER)

    def _count(self, entry: TarEntry) -> None:
        self._content_bytes += entry.content_bytes
        self._apparent_bytes += entry.size_bytes
        if self._content_bytes > self._limits.content_bytes:
            raise _refused(entry.path, "is where the content becomes too much", is_too_large=True)
        if self._apparent_bytes > self._limits.apparent_bytes:
            raise _refused(entry.path, "is where the files become too large", is_too_large=True)
        if len(self._kinds) >= self._limits.entries:
            raise _refused(entry.path, "is where the entries become too many", is_too_large=True)


def shown(name: bytes) -> str:
    """Return a name of any bytes as text for a message."""
    text = ascii(name.decode("utf-8", "surrogateescape"))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _refused(path: bytes, problem: str, *, is_too_large: bool = False) -> TarRefusedError:
    return TarRefusedError(f"the entry {shown(path)} {problem}", is_too_large)
