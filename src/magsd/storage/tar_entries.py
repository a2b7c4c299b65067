"""Tar streams (POSIX `pax`), entry by entry: reading what nobody vouches for, and writing.

Owns the format: headers, extended records, sparse files of GNU's format 1.0.
Whether an entry may be in a layer is `tar_rules`' part. The reader holds one
entry at a time, whatever the stream says of its sizes.

Imported by programs that are started for each stream: standard library only.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Final

from magsd.storage.tar_rules import Kind, TarEntry, TarLimits, TarRefusedError, shown

_BLOCK_BYTES: Final = 512
_PIECE_BYTES: Final = 1 << 18
_TRAILER_BYTES: Final = 1 << 20
"""Of zeros after the end: writers fill up a record of theirs."""
_ZEROS: Final = bytes(_BLOCK_BYTES)
_RECORDS: Final = b"x"
_LONG_NAME: Final = b"L"
_LONG_TARGET: Final = b"K"
_SPARSE: Final = b"GNU.sparse."
_XATTRS: Final = b"SCHILY.xattr."
_NUMBER_MAX: Final = (1 << 63) - 1
_ID_MAX: Final = (1 << 32) - 2
_TIME_MAX: Final = (1 << 32) - 1
"""A squashfs holds seconds since 1970 in 32 bits."""
_DECIMAL: Final = re.compile(rb"[0-9]{1,19}")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,19})(\.[0-9]*)?")
_KIND_OF: Final = {b"\0": Kind.REGULAR, b"7": Kind.REGULAR, **{kind.value: kind for kind in Kind}}

END: Final = _ZEROS * 2
"""What a stream ends with."""


@dataclass(slots=True)
class _Extra:
    """What stood in front of a header for it."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes = b""
    target: bytes = b""


class TarReader:
    """The entries of a stream, in its order.

    Raises `TarRefusedError` for what is no such stream, ends early, or is over
    a limit.
    """

    def __init__(self, stream: IO[bytes], limits: TarLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._left_bytes = 0
        """Of the content of the entry that was returned last."""
        self._padding_bytes = 0
        self._metadata_bytes = 0
        self._place: bytes | None = None

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield every entry; content that was not read is skipped."""
        extra = _Extra()
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            if kind in (_RECORDS, _LONG_NAME, _LONG_TARGET):
                self._read_extra(kind, header, extra)
                continue
            entry = self._entry(header, extra)
            extra = _Extra()
            yield entry
        if extra != _Extra():
            raise self._refused("ends early")

    def content(self) -> Iterator[bytes]:
        """Yield the content of the entry that was returned last, without its holes."""
        while self._left_bytes:
            piece = self._stream.read(min(self._left_bytes, _PIECE_BYTES))
            if not piece:
                raise self._refused("ends early")
            self._left_bytes -= len(piece)
            yield piece

    def _next_header(self) -> bytes | None:
        for _ in self.content():
            pass
        self._read(self._padding_bytes)
        self._padding_bytes = 0
        header = self._read(_BLOCK_BYTES)
        if header == _ZEROS:
            self._read_trailer()
            return None
        summed = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if _number(header[148:156]) != summed:
            raise self._refused("has a header with a wrong checksum")
        return header

    def _read_trailer(self) -> None:
        trailer = self._stream.read(_TRAILER_BYTES)
        if len(trailer) < _BLOCK_BYTES or self._stream.read(1) or trailer.count(0) < len(trailer):
            raise self._refused("does not end with its end mark")

    def _read_extra(self, kind: bytes, header: bytes, extra: _Extra) -> None:
        size_bytes = self._field(header[124:136])
        if kind != _RECORDS:
            if size_bytes > self._limits.path_bytes + 1:
                raise self._refused("has a longer name than may be")
            text = self._read_metadata(size_bytes).rstrip(b"\0")
            if kind == _LONG_NAME:
                extra.name = text
            else:
                extra.target = text
            return
        if size_bytes > self._limits.records_bytes:
            raise self._refused("has more extended attributes than may be", is_too_large=True)
        extra.records.update(self._records(self._read_metadata(size_bytes)))

    def _records(self, content: bytes) -> Iterator[tuple[bytes, bytes]]:
        at = 0
        while at < len(content):
            digits, separator, _ = content[at : at + 20].partition(b" ")
            if not separator or not _DECIMAL.fullmatch(digits):
                raise self._refused("has a damaged extended record")
            end = at + int(digits)
            key, equals, value = content[at + len(digits) + 1 : end].partition(b"=")
            if end > len(content) or not equals or not value.endswith(b"\n"):
                raise self._refused("has a damaged extended record")
            yield key, value[:-1]
            at = end

    def _entry(self, header: bytes, extra: _Extra) -> TarEntry:
        records = extra.records
        name = records.get(_SPARSE + b"name") or records.get(b"path") or extra.name
        name = name or _name(header)
        target = records.get(b"linkpath") or extra.target or header[157:257].split(b"\0", 1)[0]
        self._place = name
        kind = _KIND_OF.get(header[156:157])
        if kind is None:
            raise self._refused("is neither file, folder, link, FIFO nor device")
        entry = TarEntry(
            path=name,
            kind=kind,
            mode=self._field(header[100:108]) & 0o7777,
            uid=self._field(header[108:116], records.get(b"uid"), _ID_MAX),
            gid=self._field(header[116:124], records.get(b"gid"), _ID_MAX),
            mtime_s=self._time(header[136:148], records.get(b"mtime")),
            target=target,
            xattrs={
                key.removeprefix(_XATTRS).replace(b"%3D", b"=").replace(b"%25", b"%"): value
                for key, value in records.items()
                if key.startswith(_XATTRS)
            },
        )
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            entry.device = (self._field(header[329:337]), self._field(header[337:345]))
        self._read_sizes(entry, self._field(header[124:136], records.get(b"size")), records)
        return entry

    def _read_sizes(self, entry: TarEntry, size: int, records: dict[bytes, bytes]) -> None:
        if entry.kind is not Kind.REGULAR:
            if size:
                raise self._refused("has content although it is no file")
            return
        entry.size_bytes = entry.content_bytes = self._left_bytes = size
        self._padding_bytes = -size % _BLOCK_BYTES
        if not any(key.startswith(_SPARSE) for key in records):
            return
        if (records.get(_SPARSE + b"major"), records.get(_SPARSE + b"minor")) != (b"1", b"0"):
            raise self._refused("is sparse in another format than 1.0")
        entry.size_bytes = self._field(b"", records.get(_SPARSE + b"realsize", b""))
        entry.extents = self._read_map()
        entry.content_bytes = self._left_bytes
        end = 0
        for start, length in entry.extents:
            if start < end:
                raise self._refused("has parts that lie over each other")
            end = start + length
        if end > entry.size_bytes or sum(part[1] for part in entry.extents) != self._left_bytes:
            raise self._refused("has another size than its parts")

    def _read_map(self) -> tuple[tuple[int, int], ...]:
        numbers: list[int] = []
        text, wanted = b"", 1
        while len(numbers) < wanted:
            if self._left_bytes < _BLOCK_BYTES:
                raise self._refused("has a damaged map")
            self._left_bytes -= _BLOCK_BYTES
            *lines, text = (text + self._read_metadata(_BLOCK_BYTES)).split(b"\n")
            for line in lines:
                if len(numbers) < wanted:
                    numbers.append(self._field(b"", line))
                    wanted = 1 + 2 * numbers[0]
            if len(text) > _BLOCK_BYTES or wanted > 2 * self._limits.extents + 1:
                raise self._refused("has more parts than may be", is_too_large=True)
        return tuple(zip(numbers[1::2], numbers[2::2], strict=True))

    def _field(self, octal: bytes, decimal: bytes | None = None, most: int = _NUMBER_MAX) -> int:
        """Return a number of a header, or of the record that stands for it."""
        if decimal is None:
            number = _number(octal)
        else:
            number = int(decimal) if _DECIMAL.fullmatch(decimal) else -1
        if not 0 <= number <= most:
            raise self._refused("has a number that cannot be")
        return number

    def _time(self, octal: bytes, decimal: bytes | None) -> int:
        if decimal is None:
            return min(max(_number(octal), 0), _TIME_MAX)
        if (found := _TIME.fullmatch(decimal)) is None:
            raise self._refused("has a time that cannot be")
        return 0 if found[1] else min(int(found[2]), _TIME_MAX)

    def _read_metadata(self, size_bytes: int) -> bytes:
        self._metadata_bytes += size_bytes
        if self._metadata_bytes > self._limits.metadata_bytes:
            raise self._refused("is where names and attributes become too many", is_too_large=True)
        content = self._read(size_bytes)
        self._read(-size_bytes % _BLOCK_BYTES)
        return content

    def _read(self, size_bytes: int) -> bytes:
        content = self._stream.read(size_bytes) if size_bytes else b""
        if len(content) != size_bytes:
            raise self._refused("ends early")
        return content

    def _refused(self, problem: str, *, is_too_large: bool = False) -> TarRefusedError:
        place = "its beginning" if self._place is None else f"the entry {shown(self._place)}"
        return TarRefusedError(f"the archive, at {place}, {problem}", is_too_large)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    # GNU's own format has other things in the prefix's place.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _number(octal: bytes) -> int:
    """Return the number in a field of a header, -1 when there is none."""
    if octal[:1] == b"\x80":
        return int.from_bytes(octal[1:], "big")
    try:
        return int(octal.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def header(entry: TarEntry, *, is_for_others: bool = False) -> bytes:
    """Return what stands in front of an entry's content.

    `is_for_others`: attributes are written as GNU tar and container engines read them, which
    loses names with an equals sign, not as `tar2sqfs` does.
    """
    form = _schily if is_for_others else _libarchive
    records = b"".join(form(name, value) for name, value in sorted(entry.xattrs.items()))
    path, size, sparse_map = b"./" + entry.path, entry.content_bytes, b""
    if entry.extents is not None:
        sparse_map = _map(entry.extents)
        size += len(sparse_map)
        for key, value in ((b"major", b"1"), (b"minor", b"0"), (b"name", path)):
            records += _record(_SPARSE + key, value)
        records += _record(_SPARSE + b"realsize", b"%d" % entry.size_bytes)
    elif len(path) > 100:
        records += _record(b"path", path)
    target = b"./" + entry.target if entry.kind is Kind.HARD_LINK else entry.target
    if len(target) > 100:
        records += _record(b"linkpath", target)
    uid, gid = entry.uid, entry.gid
    if uid > 0o7777777:
        records, uid = records + _record(b"uid", b"%d" % uid), 0
    if gid > 0o7777777:
        records, gid = records + _record(b"gid", b"%d" % gid), 0
    if size > 0o77777777777:
        records, size = records + _record(b"size", b"%d" % size), 0
    own = _ustar(
        path[:100], entry.kind.value, entry.mode, uid, gid, size, entry.mtime_s, target[:100]
    )
    if not records:
        return own + sparse_map
    in_front = _ustar(b"pax", _RECORDS, 0o600, 0, 0, len(records), 0, b"")
    return in_front + records + bytes(-len(records) % _BLOCK_BYTES) + own + sparse_map


def padding(entry: TarEntry) -> bytes:
    """Return what stands behind an entry's content."""
    return bytes(-entry.content_bytes % _BLOCK_BYTES)


def _ustar(
    name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime_s: int, target: bytes
) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime_s)
    end = kind + target.ljust(100, b"\0") + b"ustar\00000".ljust(72, b"\0")
    end += b"0000000\0000000000\0".ljust(183, b"\0")
    start = name.ljust(100, b"\0") + numbers
    checksum = sum(start) + sum(end) + 8 * ord(" ")
    return start + b"%06o\0 " % checksum + end


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))
    return b"%d %b=%b\n" % (size, key, value)


def _map(extents: tuple[tuple[int, int], ...]) -> bytes:
    lines = b"%d\n" % len(extents) + b"".join(b"%d\n%d\n" % extent for extent in extents)
    return lines + bytes(-len(lines) % _BLOCK_BYTES)


def _libarchive(name: bytes, value: bytes) -> bytes:
    return _record(b"LIBARCHIVE.xattr." + _quoted(name), _base64(value))


def _schily(name: bytes, value: bytes) -> bytes:
    return b"" if b"=" in name else _record(_XATTRS + name, value)


def _quoted(name: bytes) -> bytes:
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def _base64(value: bytes) -> bytes:
    return binascii.b2a_base64(value, newline=False).rstrip(b"=")
