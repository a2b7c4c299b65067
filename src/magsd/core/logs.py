"""A job's log: its lines as they are now, and as they come.

The journals are the log; `log_reader` reads them, `log_archive` has those here
that are over. Places where readers stopped are remembered for a while: whoever
goes on there need not read what lies before, and all who wait at one place for
more read it once.
"""

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from magsd.aio import SingleFlight
from magsd.core.jobs import Jobs
from magsd.core.log_lines import Entry
from magsd.core.log_reader import STEPS_MAX, LogReader, Place, first_place
from magsd.core.node import Node
from magsd.core.supervisor import Supervisor
from magsd.model.lifecycle import RunState
from magsd.model.names import RequestId
from magsd.model.records import LogLine, LogPage, LogSource, Principal, Run

LINES_MAX: Final = 50_000
_BATCH_LINES: Final = 500
_BATCH_BYTES: Final = 64 * 1024
"""What a follower who does not read on keeps in memory is no more than one batch."""
_PLACES_REMEMBERED: Final = 256
_HELD_MAX: Final = 16 * 1024
"""Bytes of unfinished lines of a place that is remembered."""

_Line = TypeVar("_Line", Entry, LogLine)


@dataclasses.dataclass(frozen=True, slots=True)
class _Batch:
    """What followers are given, the same object to all."""

    lines: tuple[LogLine, ...]
    end: Place


class Logs:
    """The logs of a node's jobs."""

    def __init__(self, node: Node, jobs: Jobs, supervisor: Supervisor) -> None:
        self._node = node
        self._jobs = jobs
        self._supervisor = supervisor
        self._remembered: OrderedDict[RequestId, Place] = OrderedDict()
        self._beginnings: WeakValueDictionary[RequestId, Place] = WeakValueDictionary()
        self._steps = SingleFlight()

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
        not ended is there too. Raises `NotFoundError`, and what
        `LogArchive.hold` does.
        """
        _, run = await self._jobs.load(principal, ref)
        reader, start = self._reader(run.request_id), self._place(run.request_id, after or 0)
        async with self._node.archive.hold(run):
            if after is None:
                page, end = await asyncio.to_thread(_newest_page, reader, start, run, source)
            else:
                page, end = await asyncio.to_thread(_page, reader, start, run, source, after)
        self._remember(run.request_id, end)
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

        All who follow a log are given the same sequences where they can be.
        Raises `NotFoundError` at the first step, and what `LogArchive.hold` does.
        """
        _, run = await self._jobs.load(principal, ref)
        request_id = run.request_id
        place = self._place(request_id, after)
        with self._node.log_pulses.listen(request_id) as pulse:
            while True:
                # Both are asked before the read, so that nothing falls between.
                seen = pulse.count
                if run.state is not RunState.ENDED:
                    run = await self._run(principal, request_id)
                batch = await self._next(place, run, seen)
                if batch is None and run.state is RunState.ENDED:
                    return
                if batch is None:
                    await pulse.changed(seen)
                    continue
                place = batch.end
                if chosen := _chosen(batch.lines, source, after):
                    del batch  # Whoever stays away long keeps no more than it has to.
                    yield chosen

    async def _next(self, place: Place, run: Run, seen: int) -> _Batch | None:
        """Read on from `place`; whoever asks the same at the same time gets the same."""
        key = (place, run, seen)
        batch: _Batch | None = await self._steps.do(key, lambda: self._read(place, run))
        return batch

    async def _read(self, place: Place, run: Run) -> _Batch | None:
        reader = self._reader(run.request_id)
        async with self._node.archive.hold(run):
            batch = await asyncio.to_thread(_batch, reader, place, run)
        if batch is None:
            return None
        end = self._remember(run.request_id, batch.end)
        return dataclasses.replace(batch, end=end)

    async def _run(self, principal: Principal, request_id: RequestId) -> Run:
        if (run := self._supervisor.run_of(request_id)) is not None:
            return run
        return (await self._jobs.load(principal, request_id))[1]

    def _reader(self, request_id: RequestId) -> LogReader:
        return LogReader(self._node.places, request_id)

    def _place(self, request_id: RequestId, after: int) -> Place:
        """Return the place to read from whoever wants what follows `after`."""
        place = self._remembered.get(request_id)
        if place is not None and place.last_seq <= after:
            return place
        if (beginning := self._beginnings.get(request_id)) is None:
            self._beginnings[request_id] = beginning = first_place()
        return beginning

    def _remember(self, request_id: RequestId, place: Place) -> Place:
        """Remember a place, and return it or the one like it that is known already."""
        known = self._remembered.get(request_id)
        if known is not None and known.is_like(place):
            place = known
        if place.assembler.held_bytes <= _HELD_MAX:
            self._remembered[request_id] = place
            self._remembered.move_to_end(request_id)
            if len(self._remembered) > _PLACES_REMEMBERED:
                self._remembered.popitem(last=False)
        return place


def _batch(reader: LogReader, place: Place, run: Run) -> _Batch | None:
    """Read what one batch has."""
    found = reader.step(place, run, lines=_BATCH_LINES, bytes_=_BATCH_BYTES)
    return (
        None if found is None else _Batch(tuple(entry.line() for entry in found.entries), found.end)
    )


def _page(
    reader: LogReader, place: Place, run: Run, source: LogSource | None, after: int
) -> tuple[LogPage, Place]:
    """Return the first lines after `after`, and where the reading stopped."""
    kept: list[Entry] = []
    for _ in range(STEPS_MAX):
        found = reader.step(place, run)
        if found is None or len(kept) > LINES_MAX:
            break
        place = found.end
        kept += _chosen(found.entries, source, after)
    lines = [entry.line() for entry in kept[:LINES_MAX]]
    return LogPage(lines, len(kept) > LINES_MAX), place


def _newest_page(
    reader: LogReader, place: Place, run: Run, source: LogSource | None
) -> tuple[LogPage, Place]:
    """Return the last lines, the unfinished ones too, and where the reading stopped."""
    place, is_truncated = reader.near_end(place, run, source, LINES_MAX)
    kept: list[Entry] = []
    for _ in range(STEPS_MAX):
        found = reader.step(place, run)
        if found is None:
            unfinished = place.assembler.copied().finish(place.position)
            kept += _chosen(unfinished, source, 0)
            break
        place = found.end
        kept += _chosen(found.entries, source, 0)
    lines = [entry.line() for entry in kept[-LINES_MAX:]]
    return LogPage(lines, is_truncated or len(kept) > LINES_MAX), place


def _chosen(entries: Sequence[_Line], source: LogSource | None, after: int) -> Sequence[_Line]:
    """Return those after `after` of `source`: the sequence itself where these are all."""
    if source is None and entries and entries[0].seq > after:
        return entries
    return [
        entry
        for entry in entries
        if entry.seq > after and (source is None or entry.source is source)
    ]
