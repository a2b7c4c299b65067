"""What a pretended VM's shim keeps in its run directory: the journal and the state file.

Owns how they are written (`docs/reference/wire.md`); they are read by
`magsd.guest`. Nothing is made before there is something to write, and nothing
is held open while nothing runs, so that an idle VM costs no more than its
state. Not synced: what is pretended need not outlast the host.
"""

import os
import struct
from pathlib import Path
from typing import Final

from magsd.guest.journal import SEGMENT_BYTES, JournalReader, segment_path
from magsd.guest.state import EndCode, StreamState

DATA: Final = 1
EXIT: Final = 3
SYSTEM: Final = 3
"""The channel of the shim's own lines; the others are those of the wire."""

_SEGMENT: Final = struct.Struct("<8sQ")
_SEGMENT_MAGIC: Final = b"MAGSJRN1"
_RECORD: Final = struct.Struct("<IBBHQQ")
_PIECE_MIN: Final = 1024
"""Less room than this at a segment's end is left unused."""

_STATE_MAGIC: Final = b"MAGSSTA1"
_STATE: Final = struct.Struct("<8sIIQ2048s")
_DETAIL_MAX: Final = 2047
_ENTRIES_AT: Final = 4096
_ENTRY: Final = struct.Struct("<IIIIQQQQ")
_ENTRY_BYTES: Final = 64
_ENTRIES_FIRST: Final = 64


class Journal:
    """The journal of one VM. Its calls raise `OSError`."""

    __slots__ = ("_directory", "_file", "_is_begun", "_number", "_offset")

    def __init__(self, directory: Path) -> None:
        """Go on where the file ends that may be there."""
        self._directory = directory
        self._file: int | None = None
        self._number = self._offset = 0
        self._is_begun = segment_path(directory, 0).exists()
        if self._is_begun:
            self._number, self._offset = divmod(JournalReader(directory).end(), SEGMENT_BYTES)

    @property
    def end(self) -> int:
        """Where the next record begins, or what is before it ends."""
        return self._number * SEGMENT_BYTES + self._offset

    def append(
        self, channel: int, kind: int, stream: int, offset: int, payload: bytes, at_ns: int
    ) -> None:
        """Append a record, in pieces where a segment ends."""
        done = 0
        while True:
            rest = len(payload) - done
            least = _RECORD.size + min(rest, _PIECE_MIN)
            if self._file is None:
                self._open()
            # A segment that is full to its last byte ends where the next one begins.
            room = SEGMENT_BYTES - self._offset if self._offset else 0
            if room < least:
                self._begin(self._number + (1 if self._offset else 0))
                room = SEGMENT_BYTES - self._offset
            piece = payload[done : done + min(rest, room - _RECORD.size)]
            header = _RECORD.pack(len(piece), channel, kind, stream, offset + done, at_ns)
            self._write(header + piece)
            done += len(piece)
            if done == len(payload):
                return

    def close(self) -> None:
        """Hold no descriptor until something is written again. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        if not self._is_begun:
            self._begin(0)
        elif self._offset:
            path = segment_path(self._directory, self._number)
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.ftruncate(self._file, self._offset)

    def _begin(self, number: int) -> None:
        self.close()
        path = segment_path(self._directory, number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(path, flags, 0o600)
        self._is_begun = True
        self._number, self._offset = number, 0
        self._write(_SEGMENT.pack(_SEGMENT_MAGIC, number))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        if os.pwrite(self._file, data, self._offset) != len(data):
            raise OSError("the journal takes no more")
        self._offset += len(data)


def make_state(directory: Path) -> None:
    """Make the state file of a VM that lives. Raises `OSError`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / "state", flags, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _ENTRIES_AT + _ENTRIES_FIRST * _ENTRY_BYTES)
        os.pwrite(descriptor, _STATE_MAGIC, 0)
    finally:
        os.close(descriptor)


def write_end(directory: Path, code: EndCode, detail: str, at_ns: int) -> None:
    """Write down how a VM ended. Raises `OSError`."""
    text = detail.encode("utf-8", "replace")[:_DETAIL_MAX]
    _write_state(directory, 0, _STATE.pack(_STATE_MAGIC, code, 0, at_ns, text))


def write_stream(directory: Path, state: StreamState) -> None:
    """Write down what is known of a durable stream. Raises `OSError`."""
    entry = _ENTRY.pack(
        2 if state.is_over else 1,
        state.wait_status,
        state.has_timed_out,
        0,
        state.opened_ns,
        state.ended_ns,
        state.out_bytes,
        state.err_bytes,
    )
    _write_state(directory, _ENTRIES_AT + _ENTRY_BYTES * state.stream, entry)


def _write_state(directory: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(directory / "state", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)
