"""A job's log: its lines as they are now, and as they come.

The journals are the log; a job has one for each VM that was tried for it, and
reads them one after the other. Lines are put together by `log_lines`. A reader
that goes on where an earlier one stopped need not read what lies before: the
unfinished lines of that place are remembered for a while.
"""

import asyncio
import dataclasses
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from typing import Final

from magsd.core.jobs import Jobs
from magsd.core.log_lines import Assembler, Entry
from magsd.core.log_places import LogPlaces
from magsd.core.node import Node
from magsd.core.supervisor import Supervisor
from magsd.guest.journal import JournalReader, Record
from magsd.model.lifecycle import RunState
from magsd.model.names import RequestId, VmId
from magsd.model.records import LogLine, LogPage, LogSource, Principal, Run

LINES_MAX: Final = 50_000
_STEP_BYTES: Final = 256 * 1024
_STEPS_MAX: Final = 400
_PLACES_REMEMBERED: Final = 256
_HELD_MAX: Final = 16 * 1024
"""Bytes of unfinished lines of a place that is remembered."""


@dataclasses.dataclass(slots=True)
class _Place:
    """How far a log has been read."""

    epoch: int
    position: int
    assembler: Assembler
    last_seq: int = 0
    """Of the last line that ended before here."""

    def copied(self) -> "_Place":
        return dataclasses.replace(self, assembler=self.assembler.copied())


class _Cursor:
    """Reads the log of one job from a place on. Its calls block."""

    def __init__(self, places: LogPlaces, request_id: RequestId, start: _Place | None) -> None:
        self._places = places
        self._request_id = request_id
        self.place = start or _Place(1, 0, Assembler(1))

    def read(self, run: Run) -> Sequence[Entry] | None:
        """Return the lines that end in the next stretch; None when there is nothing more now.

        `run` must have been known before the call: what it says is there, is read.
        """
        if (records := self._next(run)) is None:
            return None
        place = self.place
        if records:
            entries: Sequence[Entry] = [
                entry for record in records for entry in place.assembler.feed(record)
            ]
        else:
            entries = self._finished(run)
        if entries:
            self.place.last_seq = entries[-1].seq
        return entries if entries or records or place is not self.place else None

    def skim(self, run: Run, source: LogSource | None) -> int | None:
        """Go past the next stretch and return how many lines of `source` end in it."""
        if (records := self._next(run)) is None:
            return None
        place = self.place
        if records:
            return sum(place.assembler.skim(record, source) for record in records)
        entries = self._finished(run)
        return len(entries) if entries or place is not self.place else None

    def _next(self, run: Run) -> list[Record] | None:
        """Return the next records; none of them when this journal is over."""
        place = self.place
        is_last = place.epoch >= run.epoch
        records, place.position = self._records(place, run.vm_id if is_last else None)
        if not records and is_last and run.state is not RunState.ENDED:
            return None
        return records

    def _finished(self, run: Run) -> Sequence[Entry]:
        """Return the last lines of a journal that is over, and go on to the next if there is one."""
        place = self.place
        if place.epoch < run.epoch:
            self.place = _Place(place.epoch + 1, 0, Assembler(place.epoch + 1), place.last_seq)
        return place.assembler.finish(place.position)

    def unfinished(self) -> Sequence[Entry]:
        """Return the lines that have been begun, as far as they go."""
        return self.place.assembler.copied().finish(self.place.position)

    def _records(self, place: _Place, vm: VmId | None) -> tuple[list[Record], int]:
        while True:
            directory = self._places.find(self._request_id, place.epoch, vm)
            if directory is None:
                return [], place.position
            records, position = JournalReader(directory).read(place.position, _STEP_BYTES)
            # Nothing is an answer only if the journal was not put away meanwhile.
            if records or self._places.find(self._request_id, place.epoch, vm) == directory:
                return records, position


class Logs:
    """The logs of a node's jobs."""

    def __init__(self, node: Node, jobs: Jobs, supervisor: Supervisor) -> None:
        self._node = node
        self._jobs = jobs
        self._supervisor = supervisor
        self._remembered: OrderedDict[RequestId, _Place] = OrderedDict()

    async def page(
        self,
        principal: Principal,
        ref: str,
        *,
        source: LogSource | None = None,
        after: int | None = None,
    ) -> LogPage:
        """Return a job's lines: the newest, or with `after` the first ones that follow it.

        `LINES_MAX` at most. Without `after` the line that a script has begun and
        not ended is there too. Raises `NotFoundError`.
        """
        _, run = await self._jobs.load(principal, ref)
        cursor = self._cursor(run.request_id, after or 0)
        if after is None:
            page = await asyncio.to_thread(_newest_page, cursor, run, source)
        else:
            page = await asyncio.to_thread(_page, cursor, run, source, after)
        self._remember(run.request_id, cursor)
        return page

    async def follow(
        self,
        principal: Principal,
        ref: str,
        *,
        after: int = 0,
        source: LogSource | None = None,
    ) -> AsyncIterator[Sequence[LogLine]]:
        """Yield the lines that follow `after`, as they come, until the job has ended.

        Raises `NotFoundError` at the first step.
        """
        job, _ = await self._jobs.load(principal, ref)
        request_id = job.request_id
        cursor = self._cursor(request_id, after)
        with self._node.log_pulses.listen(request_id) as pulse:
            try:
                while True:
                    # Both are asked before the read, so that nothing falls between.
                    seen, run = pulse.count, await self._run(principal, request_id)
                    entries = await asyncio.to_thread(cursor.read, run)
                    if entries is None and run.state is RunState.ENDED:
                        return
                    if entries is None:
                        await pulse.changed(seen)
                    elif chosen := _chosen(entries, source, after):
                        yield [entry.line() for entry in chosen]
            finally:
                self._remember(request_id, cursor)

    async def _run(self, principal: Principal, request_id: RequestId) -> Run:
        if (run := self._supervisor.run_of(request_id)) is not None:
            return run
        return (await self._jobs.load(principal, request_id))[1]

    def _cursor(self, request_id: RequestId, after: int) -> _Cursor:
        place = self._remembered.get(request_id)
        start = place.copied() if place is not None and place.last_seq <= after else None
        return _Cursor(self._node.places, request_id, start)

    def _remember(self, request_id: RequestId, cursor: _Cursor) -> None:
        if cursor.place.assembler.held_bytes > _HELD_MAX:
            return
        self._remembered[request_id] = cursor.place.copied()
        self._remembered.move_to_end(request_id)
        if len(self._remembered) > _PLACES_REMEMBERED:
            self._remembered.popitem(last=False)


def _page(cursor: _Cursor, run: Run, source: LogSource | None, after: int) -> LogPage:
    """Return the first lines after `after`."""
    kept: list[Entry] = []
    for _ in range(_STEPS_MAX):  # A script may print faster than it is read.
        entries = cursor.read(run)
        if entries is None or len(kept) > LINES_MAX:
            break
        kept += _chosen(entries, source, after)
    return LogPage([entry.line() for entry in kept[:LINES_MAX]], len(kept) > LINES_MAX)


def _newest_page(cursor: _Cursor, run: Run, source: LogSource | None) -> LogPage:
    """Return the last lines, the unfinished ones too."""
    is_truncated = _go_near_end(cursor, run, source)
    kept: list[Entry] = []
    for _ in range(_STEPS_MAX):
        entries = cursor.read(run)
        if entries is None:
            kept += _chosen(cursor.unfinished(), source, 0)
            break
        kept += _chosen(entries, source, 0)
    lines = [entry.line() for entry in kept[-LINES_MAX:]]
    return LogPage(lines, is_truncated or len(kept) > LINES_MAX)


def _go_near_end(cursor: _Cursor, run: Run, source: LogSource | None) -> bool:
    """Put a cursor where not many more than `LINES_MAX` lines follow; say whether more do."""
    marks: deque[tuple[_Place, int]] = deque()
    following = 0
    for _ in range(_STEPS_MAX):
        place = cursor.place.copied()
        if (lines := cursor.skim(run, source)) is None:
            break
        marks.append((place, lines))
        following += lines
        while following - marks[0][1] > LINES_MAX:
            following -= marks.popleft()[1]
    if marks:
        cursor.place = marks[0][0]
    return following > LINES_MAX


def _chosen(entries: Sequence[Entry], source: LogSource | None, after: int) -> list[Entry]:
    return [
        entry
        for entry in entries
        if entry.seq > after and (source is None or entry.source is source)
    ]
