"""From a place in a job's log to the next: the journals of its lives, one after the other.

A place never changes, so any number of readers may stand at one; a step from
it leads to another. Everything here blocks.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Final

from magsd.core.log_lines import DATA, Assembler, Entry
from magsd.core.log_places import LogPlaces
from magsd.guest.journal import JournalReader, Record
from magsd.model.lifecycle import RunState
from magsd.model.names import RequestId, VmId
from magsd.model.records import LogSource, Run

STEPS_MAX: Final = 400
"""Enough for a whole log; a script may print faster than it is read."""

_STEP_BYTES: Final = 256 * 1024
_SLICE_BYTES: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Place:
    """How far a log has been read."""

    epoch: int
    position: int
    assembler: Assembler
    inner: int = 0
    """Bytes that were taken already of the record at `position`."""
    last_seq: int = 0
    """Of the last line that ended before here."""

    def is_like(self, other: "Place") -> bool:
        """Say whether a reader at one goes on as a reader at the other."""
        return (
            (self.epoch, self.position, self.inner) == (other.epoch, other.position, other.inner)
            and self.last_seq == other.last_seq
            and self.assembler.is_like(other.assembler)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """What lies between two places."""

    entries: Sequence[Entry]
    end: Place


def first_place() -> Place:
    """Return the beginning of a log."""
    return Place(1, 0, Assembler(1))


class LogReader:
    """Reads the log of one job. Keeps nothing."""

    def __init__(self, places: LogPlaces, request_id: RequestId) -> None:
        self._places = places
        self._request_id = request_id

    def step(
        self, place: Place, run: Run, *, lines: int | None = None, bytes_: int = _STEP_BYTES
    ) -> Stretch | None:
        """Return the next stretch, which may have no line; None when there is nothing more now.

        `run` must have been known before the call: what it says is there, is
        read. About `bytes_` at most, and about `lines` lines.
        """
        found = self._next(place, run, bytes_)
        if found is None:
            return None
        records, taken = found
        if not records:
            return self._finish(place, run)
        assembler, entries = place.assembler.copied(), list[Entry]()
        position = inner = 0
        for record in records:
            part = record if lines is None else _first_lines(record, lines - len(entries))
            entries += assembler.feed(part)
            if part is not record:
                inner = taken + len(part.payload)
                position = place.position if taken else record.position
                break
            position, taken = record.end_position, 0
            if lines is not None and len(entries) >= lines:
                break
        last_seq = entries[-1].seq if entries else place.last_seq
        return Stretch(entries, Place(place.epoch, position, assembler, inner, last_seq))

    def skim(self, place: Place, run: Run, source: LogSource | None) -> tuple[int, Place] | None:
        """Go a step as `step` does, faster; return how many lines of `source` end in it."""
        if (found := self._next(place, run, _STEP_BYTES)) is None:
            return None
        records, _ = found
        if not records:
            finished = self._finish(place, run)
            return None if finished is None else (len(finished.entries), finished.end)
        assembler = place.assembler.copied()
        count = sum(assembler.skim(record, source) for record in records)
        end = Place(place.epoch, records[-1].end_position, assembler, 0, place.last_seq)
        return count, end

    def near_end(
        self, place: Place, run: Run, source: LogSource | None, lines: int
    ) -> tuple[Place, bool]:
        """Return a place after which not many more than `lines` follow; whether more do."""
        marks: deque[tuple[Place, int]] = deque()
        following = 0
        for _ in range(STEPS_MAX):
            if (step := self.skim(place, run, source)) is None:
                break
            count, end = step
            marks.append((place, count))
            place = end
            following += count
            while following - marks[0][1] > lines:
                following -= marks.popleft()[1]
        return marks[0][0] if marks else place, following > lines

    def _next(self, place: Place, run: Run, limit_bytes: int) -> tuple[list[Record], int] | None:
        """Return the next records, without those bytes of the first that were taken before,
        and how many these are. No records when this journal is over, None when it may grow."""
        is_last = place.epoch >= run.journal
        records = self._records(place, run.vm_id if is_last else None, limit_bytes)
        if not records and is_last and run.state is not RunState.ENDED:
            return None
        taken = place.inner
        if not records or not taken or records[0].position != place.position:
            return records, 0  # A ring may have passed what is left of the record.
        first = records[0]
        rest = first._replace(offset=first.offset + taken, payload=first.payload[taken:])
        return [rest, *records[1:]], taken

    def _finish(self, place: Place, run: Run) -> Stretch | None:
        """Return the last lines of a journal that is over, and go on to the next if there is one."""
        assembler = place.assembler.copied()
        entries = assembler.finish(place.position)
        last_seq = entries[-1].seq if entries else place.last_seq
        if place.epoch < run.journal:
            epoch = place.epoch + 1
            return Stretch(entries, Place(epoch, 0, Assembler(epoch), 0, last_seq))
        if not entries:
            return None
        return Stretch(entries, dataclasses.replace(place, assembler=assembler, last_seq=last_seq))

    def _records(self, place: Place, vm: VmId | None, limit_bytes: int) -> list[Record]:
        while True:
            directory = self._places.find(self._request_id, place.epoch, vm)
            if directory is None:
                return []
            limit = limit_bytes + place.inner
            records, _ = JournalReader(directory).read(place.position, limit)
            # Nothing is an answer only if the journal was not put away meanwhile.
            if records or self._places.find(self._request_id, place.epoch, vm) == directory:
                return records


def _first_lines(record: Record, lines: int) -> Record:
    """Return the record, or the beginning of it where many more than `lines` end in it."""
    payload = record.payload
    if record.kind != DATA or payload.count(b"\n") <= lines:
        return record
    cut = counted = 0
    while counted < lines or not cut:
        counted += payload.count(b"\n", cut, cut + _SLICE_BYTES)
        cut += _SLICE_BYTES
    if cut >= len(payload):
        return record
    return record._replace(
        payload=payload[:cut], end_position=record.end_position - len(payload) + cut
    )
