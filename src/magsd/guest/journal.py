"""Reading the journal in a run directory, and adding the daemon's own lines to it.

The shim writes it while the VM lives: segments of 1 MiB, the first kept for
good, the others in a ring that is overwritten while it is read here. The layout
is that of `docs/reference/wire.md`; lines are put together in `core.log_lines`.

A *position* is the number of a segment times 2**20 plus the offset in its file.
"""

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

SEGMENT_BYTES: Final = 1 << 20
RING_SEGMENTS: Final = 16

_MAGIC: Final = b"MAGSJRN1"
_SEGMENT: Final = struct.Struct("<8sQ")
_RECORD: Final = struct.Struct("<IBBHQQ")
_KIND_DATA: Final = 1
_CHANNEL_SYSTEM: Final = 3
_LAST_CHANNEL: Final = 3
_LAST_KIND: Final = 3
_NOTE_MAX: Final = 64 * 1024


class Record(NamedTuple):
    """One record: bytes of a stream, a gap in them, the stream's exit, or a system line."""

    channel: int
    """1 stdout, 2 stderr, 3 system."""
    kind: int
    """1 data, 2 gap, 3 exit."""
    stream: int
    offset: int
    """Of the payload in its channel."""
    at_ns: int
    """Wall clock."""
    payload: bytes
    end_position: int
    """Just after the last byte of the payload."""

    @property
    def position(self) -> int:
        """Where the record begins."""
        return self.end_position - len(self.payload) - _RECORD.size


class JournalReader:
    """Reads one journal. Holds nothing open and nothing in memory, so it costs nothing to keep.

    Its calls block: call it in a thread when much is to be read. Where a file
    cannot be read, `OSError` comes through; a missing one is an empty one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, position: int, limit_bytes: int = 1 << 20) -> tuple[list[Record], int]:
        """Return whole records from `position` on (0: from the first), and where to go on.

        About `limit_bytes` at most, one record at least. An empty list means
        the end. Where the ring has passed `position`, and where a segment ends
        with something that is no record, it goes on at the next one kept.
        """
        number, offset = divmod(position, SEGMENT_BYTES)
        while True:
            offset = max(offset, _SEGMENT.size)
            # Asked before the read: a segment that has a successor grows no more.
            following = self._following(number)
            data = _read(self._path(number), number, offset, limit_bytes)
            records = _parse(data or b"", number, offset)
            if records:
                return records, records[-1].end_position
            if data is None:  # the ring may have come round to it since
                following = self._following(number)
            if following is None:
                is_there = data is not None
                return [], number * SEGMENT_BYTES + offset if is_there else position
            number, offset = following, 0

    def end(self) -> int:
        """Return where the last whole record ends: what `read` comes to in the end."""
        last = max(self._numbers(), default=None)
        if last is None:
            return 0
        data = _read(self._path(last), last, _SEGMENT.size, SEGMENT_BYTES) or b""
        return last * SEGMENT_BYTES + _SEGMENT.size + _whole_bytes(data)

    def ends_with_note(self, text: str) -> bool:
        """Say whether the last whole record is the system line `text`."""
        if (last := max(self._numbers(), default=None)) is None:
            return False
        data = _read(self._path(last), last, _SEGMENT.size, SEGMENT_BYTES) or b""
        found = [(record.channel, record.payload) for record in _parse(data, last, _SEGMENT.size)]
        return found[-1:] == [(_CHANNEL_SYSTEM, _note(text))]

    def has_note_since(self, text: str, at_ns: int) -> bool:
        """Say whether the system line `text` is in the last segment, written then or later."""
        if (last := max(self._numbers(), default=None)) is None:
            return False
        data = _read(self._path(last), last, _SEGMENT.size, SEGMENT_BYTES) or b""
        return any(
            record.channel == _CHANNEL_SYSTEM
            and record.at_ns >= at_ns
            and record.payload == _note(text)
            for record in _parse(data, last, _SEGMENT.size)
        )

    def _path(self, number: int) -> Path:
        return segment_path(self._directory, number)

    def _following(self, number: int) -> int | None:
        """Return the number of the oldest segment kept after `number`."""
        if self._is_kept(number + 1):
            return number + 1
        oldest = min((other for other in self._numbers() if other > number), default=None)
        # The next one may have been begun, and one more, while the others were looked at.
        return number + 1 if oldest is not None and self._is_kept(number + 1) else oldest

    def _is_kept(self, number: int) -> bool:
        return _number_of(self._path(number)) == number

    def _numbers(self) -> list[int]:
        """Return the numbers of all segments that are there at this moment."""
        names = [segment_path(self._directory, number) for number in range(RING_SEGMENTS + 1)]
        found = [(_number_of(path), path) for path in names]
        return [n for n, path in found if n is not None and self._path(n) == path]


def segment_path(directory: Path, number: int) -> Path:
    """Return the file in which segment `number` is found, if it is kept."""
    if number == 0:
        return directory / "journal.head"
    return directory / f"journal.{(number - 1) % RING_SEGMENTS}"


def append_note(directory: Path, text: str, at_ns: int) -> int:
    """Append a system line to the journal and return where it ends; make the journal if need be.

    Only while no shim lives beside it. What follows the last whole record,
    the beginning of one that a dying shim did not finish, is cut off.
    Raises `OSError`.
    """
    payload = _note(text)
    header = (len(payload), _CHANNEL_SYSTEM, _KIND_DATA, 0, 0, at_ns)
    record = _RECORD.pack(*header) + payload
    end = JournalReader(directory).end()
    number, offset = divmod(end, SEGMENT_BYTES)
    if end == 0:
        _begin_segment(directory, 0)
        offset = _SEGMENT.size
    elif offset == 0 or offset + len(record) > SEGMENT_BYTES:
        # A segment that is full to its last byte ends where the next one begins.
        number += 0 if offset == 0 else 1
        _begin_segment(directory, number)
        offset = _SEGMENT.size
    with open(segment_path(directory, number), "r+b", buffering=0) as file:
        file.truncate(offset)
        file.seek(offset)
        if file.write(record) != len(record):
            raise OSError(f"the journal in {directory} takes no more")
    return number * SEGMENT_BYTES + offset + len(record)


def _note(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:_NOTE_MAX] + b"\n"


def _begin_segment(directory: Path, number: int) -> None:
    path = segment_path(directory, number)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(_SEGMENT.pack(_MAGIC, number))


def _number_of(path: Path) -> int | None:
    """Return which segment a file holds; None when it is not there or has just been cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _read_number(descriptor)
    finally:
        os.close(descriptor)


def _read_number(descriptor: int) -> int | None:
    header = os.pread(descriptor, _SEGMENT.size, 0)
    if len(header) < _SEGMENT.size:
        return None
    magic, number = _SEGMENT.unpack(header)
    return int(number) if magic == _MAGIC else None


def _read(path: Path, number: int, offset: int, limit_bytes: int) -> bytes | None:
    """Return bytes of segment `number`, at least one whole record of them if there is one.

    None when the file does not hold it, or did not to the end of the read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _read_number(descriptor) != number:
            return None
        limit = min(max(limit_bytes, _RECORD.size), SEGMENT_BYTES - offset)
        data = os.pread(descriptor, limit, offset)
        if len(data) >= _RECORD.size:
            first = min(_RECORD.size + _RECORD.unpack_from(data)[0], SEGMENT_BYTES - offset)
            if first > len(data):
                data = os.pread(descriptor, first, offset)
        return data if _read_number(descriptor) == number else None
    finally:
        os.close(descriptor)


def _parse(data: bytes, number: int, offset: int) -> list[Record]:
    """Return the records at the head of `data`, up to the first thing that is not one."""
    records = []
    base = number * SEGMENT_BYTES + offset
    at = 0
    while (end := _record_end(data, at)) is not None:
        _, channel, kind, stream, place, at_ns = _RECORD.unpack_from(data, at)
        payload = data[at + _RECORD.size : end]
        records.append(Record(channel, kind, stream, place, at_ns, payload, base + end))
        at = end
    return records


def _whole_bytes(data: bytes) -> int:
    """Return how far whole records reach in `data`."""
    at = 0
    while (end := _record_end(data, at)) is not None:
        at = end
    return at


def _record_end(data: bytes, at: int) -> int | None:
    """Return where the record at `at` ends; None when there is no whole one."""
    if len(data) - at < _RECORD.size:
        return None
    length, channel, kind = struct.unpack_from("<IBB", data, at)
    end: int = at + _RECORD.size + length
    is_record = 1 <= channel <= _LAST_CHANNEL and 1 <= kind <= _LAST_KIND
    return end if is_record and end <= len(data) else None
