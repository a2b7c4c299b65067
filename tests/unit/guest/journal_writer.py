"""A journal written as docs/reference/wire.md says, by other code than that under test."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

SEGMENT = 1 << 20
HEADER = 16


def record(payload, *, channel=1, kind=1, stream=1, offset=0, at_ns=0):
    head = struct.pack("<IBBHQQ", len(payload), channel, kind, stream, offset, at_ns)
    return head + payload


@dataclass
class JournalWriter:
    """What a shim does."""

    directory: Path
    number: int = -1
    length: int = 0
    written: list[tuple[int, bytes]] = field(default_factory=list)
    """Where each record began, and its payload."""

    def path(self, number):
        name = "head" if number == 0 else str((number - 1) % 16)
        return self.directory / f"journal.{name}"

    def cut(self):
        """Begin the next segment, and stop after the file was cut to nothing."""
        self.number += 1
        self.path(self.number).write_bytes(b"")

    def begin(self):
        self.cut()
        self.path(self.number).write_bytes(b"MAGSJRN1" + struct.pack("<Q", self.number))
        self.length = HEADER

    def raw(self, data):
        with self.path(self.number).open("ab") as file:
            file.write(data)
        self.length += len(data)

    def add(self, payload, **fields):
        """Append a record; return the position of its end."""
        data = record(payload, **fields)
        if self.number < 0 or self.length + len(data) > SEGMENT:
            self.begin()
        self.written.append((self.number * SEGMENT + self.length, payload))
        self.raw(data)
        return self.number * SEGMENT + self.length

    def fill(self, segments, size=200_000):
        """Write until `segments` more have been begun."""
        last = self.number + segments
        while self.number < last:
            self.add(len(self.written).to_bytes(8, "little") * (size // 8))
