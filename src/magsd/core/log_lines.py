"""From journal records to lines: pure, and the same lines each time the journal is read.

Bytes of stdout and stderr of several streams lie mixed in the journal; a line
is put together per stream and channel and stands where its last byte stands.
That position is its `seq`: `(epoch - 1) << 40 | position`. What a journal no
longer holds, because its ring came round, is told by a line of its own.
"""

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from magsd.guest.journal import Record
from magsd.guest.wire import WireError, parse_fields
from magsd.model.records import LogLine, LogSource

LINE_MAX: Final = 64 * 1024
"""Bytes of the longest line; a longer one is split."""
EPOCH_SHIFT: Final = 40

DATA: Final = 1
"""The kind of a record that holds bytes of a stream."""

_OUT, _ERR, _SYSTEM = 1, 2, 3
_GAP, _EXIT = 2, 3
_SOURCES: Final = {_OUT: LogSource.STDOUT, _ERR: LogSource.STDERR, _SYSTEM: LogSource.SYSTEM}


class Entry(NamedTuple):
    """A line before it is decoded."""

    seq: int
    at_ns: int
    channel: int
    text: bytes

    @property
    def source(self) -> LogSource:
        """Where the line comes from."""
        return _SOURCES[self.channel]

    def line(self) -> LogLine:
        """Return the line as people read it; what is not UTF-8 is replaced."""
        timestamp = datetime.fromtimestamp(self.at_ns / 1e9, UTC)
        return LogLine(timestamp, self.source, self.text.decode("utf-8", "replace"), self.seq)


@dataclass(slots=True)
class _Partial:
    """The line that a channel has begun and not ended."""

    parts: list[bytes] = field(default_factory=list)
    length: int = 0
    offset: int = 0
    """Where in its channel the next byte belongs."""
    at_ns: int = 0

    def copied(self) -> "_Partial":
        return _Partial(self.parts.copy(), self.length, self.offset, self.at_ns)

    def take(self) -> bytes:
        text = b"".join(self.parts)
        self.parts.clear()
        self.length = 0
        return text


class Assembler:
    """Puts the lines of one journal together, record by record, from its first on."""

    def __init__(self, epoch: int) -> None:
        self._base = (epoch - 1) << EPOCH_SHIFT
        self._partials: dict[tuple[int, int], _Partial] = {}

    @property
    def held_bytes(self) -> int:
        """How much of unfinished lines is kept."""
        return sum(partial.length for partial in self._partials.values())

    def copied(self) -> "Assembler":
        """Return an assembler that goes on from here on its own."""
        other = copy.copy(self)
        other._partials = {key: partial.copied() for key, partial in self._partials.items()}
        return other

    def is_like(self, other: "Assembler") -> bool:
        """Say whether the same lines will come from both."""
        return self._base == other._base and self._partials == other._partials

    def feed(self, record: Record) -> list[Entry]:
        """Return the lines that end in `record`."""
        end = self._base + record.end_position
        if record.kind == _EXIT:
            return self._exit(record, end)
        if record.channel == _SYSTEM:
            return [Entry(end, record.at_ns, _SYSTEM, record.payload.rstrip(b"\n"))]
        key = (record.stream, record.channel)
        partial = self._partials.setdefault(key, _Partial())
        if record.kind == _GAP:
            after = record.offset + int.from_bytes(record.payload[:8], "little")
            lost = after - partial.offset
            return self._lost(key, lost, end, record.at_ns) if lost > 0 else []
        start = end - len(record.payload)
        entries: list[Entry] = []
        if record.offset < partial.offset and partial.length:
            # Another stream of that number, in a later life of the VM: the earlier one was cut off.
            entries.append(Entry(start, partial.at_ns, record.channel, partial.take()))
        if record.offset > partial.offset:
            lost = record.offset - partial.offset
            entries = self._lost(key, lost, start, record.at_ns)
        partial.offset = record.offset + len(record.payload)
        partial.at_ns = record.at_ns
        self._cut(record, partial, start, entries)
        return entries

    def finish(self, position: int) -> list[Entry]:
        """Return what is left when nothing will follow `position`."""
        entries: list[Entry] = []
        for (_, channel), partial in self._partials.items():
            if partial.length:
                seq = self._base + position + 1 + len(entries)
                entries.append(Entry(seq, partial.at_ns, channel, partial.take()))
        return entries

    def skim(self, record: Record, source: LogSource | None = None) -> int:
        """Go past `record` as `feed` does, much faster; return how many lines end in it.

        `source` counts lines from there only.
        """
        partial = self._partials.get((record.stream, record.channel))
        is_plain = (
            partial is not None
            and record.kind == DATA
            and record.channel != _SYSTEM
            and record.offset == partial.offset
            and not _may_be_long(partial, record.payload)
        )
        if partial is None or not is_plain:
            return sum(source in (None, entry.source) for entry in self.feed(record))
        lines = record.payload.count(b"\n")
        if lines:
            partial.take()
        if rest := record.payload[record.payload.rfind(b"\n") + 1 :]:
            partial.parts.append(rest)
            partial.length += len(rest)
        partial.offset += len(record.payload)
        partial.at_ns = record.at_ns
        return lines if source in (None, _SOURCES[record.channel]) else 0

    def _cut(self, record: Record, partial: _Partial, start: int, into: list[Entry]) -> None:
        at_ns, channel, position = record.at_ns, record.channel, start
        may_be_long = _may_be_long(partial, record.payload)
        *whole, rest = record.payload.split(b"\n")
        for piece in whole:
            position += len(piece)
            if may_be_long:
                self._split(record, partial, piece, position, into)
            elif partial.length:
                partial.parts.append(piece)
            position += 1
            line = partial.take() if partial.parts else b"" if may_be_long else piece
            into.append(Entry(position, at_ns, channel, line))
        if may_be_long:
            self._split(record, partial, rest, start + len(record.payload), into)
        elif rest:
            partial.parts.append(rest)
            partial.length += len(rest)

    @staticmethod
    def _split(
        record: Record, partial: _Partial, piece: bytes, end: int, into: list[Entry]
    ) -> None:
        """Add `piece`, which ends at `end`, and cut off what is over the limit.

        A cut stands where its line outgrew the limit; that is a byte of this
        piece, so that the order of `seq` holds.
        """
        text = partial.take() + piece
        begin = end - len(text)
        while len(text) > LINE_MAX:
            cut = _character_border(text, LINE_MAX)
            into.append(Entry(begin + LINE_MAX + 1, record.at_ns, record.channel, text[:cut]))
            text = text[cut:]
            begin += cut
        if text:
            partial.parts.append(text)
            partial.length = len(text)

    def _lost(self, key: tuple[int, int], lost: int, seq: int, at_ns: int) -> list[Entry]:
        """Tell of `lost` bytes; `seq` and the one before it are free for that."""
        partial = self._partials[key]
        partial.offset += lost
        entries = []
        if partial.length:
            entries.append(Entry(seq - 1, partial.at_ns, key[1], partial.take()))
        text = f"{lost} bytes of {_SOURCES[key[1]]} are missing here: the log was full"
        entries.append(Entry(seq, at_ns, _SYSTEM, text.encode()))
        return entries

    def _exit(self, record: Record, end: int) -> list[Entry]:
        """End both channels of a stream; what it printed and nobody kept is told too."""
        entries: list[Entry] = []
        # An exit record is longer than the at most four lines that end in it.
        seq = end - 3
        for channel, total in zip((_OUT, _ERR), _printed(record), strict=True):
            key = (record.stream, channel)
            partial = self._partials.setdefault(key, _Partial())
            if total > partial.offset:
                entries += self._lost(key, total - partial.offset, seq + 1, record.at_ns)
            elif partial.length:
                entries.append(Entry(seq, partial.at_ns, channel, partial.take()))
            seq += 2
            del self._partials[key]
        return entries


def _may_be_long(partial: _Partial, payload: bytes) -> bool:
    """Say whether a line that `payload` goes on or holds may be over the limit."""
    first = payload.find(b"\n")
    goes_on = len(payload) if first < 0 else first
    return partial.length + goes_on > LINE_MAX or len(payload) > LINE_MAX


def _printed(record: Record) -> tuple[int, int]:
    """Return how many bytes a stream printed to stdout and stderr, as its exit record says."""
    try:
        fields = parse_fields(record.payload)
        return int(fields.get("out", "0")), int(fields.get("err", "0"))
    except (WireError, ValueError):
        return 0, 0


def _character_border(text: bytes, at: int) -> int:
    """Return the place at or just before `at` that does not cut a UTF-8 character."""
    for back in range(4):
        if text[at - back] & 0xC0 != 0x80:
            return at - back
    return at
