"""What is old goes: every hour, logs, ended jobs and uploads that are past their time.

A log goes from the store, then from this node, then its row; a job after its
logs. So whatever breaks between is found again by the row. Nothing that runs,
is read at the moment, or is referred to goes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, Protocol

import structlog

from magsd.core.log_archive import LogArchive
from magsd.core.log_copies import LogKey
from magsd.core.node import Node
from magsd.core.old_files import OldFiles
from magsd.db import log_index, retention
from magsd.db.log_index import LogRecord
from magsd.db.retention import EndedJob
from magsd.model.errors import CapacityError
from magsd.model.names import RequestId

EVERY_S: Final = 3600.0
_BATCH: Final = 100
_PASSED_MAX: Final = 1000
"""Where so many things in a row cannot go, the rest waits for the next time."""

_log = structlog.get_logger()


class _Old(Protocol):
    @property
    def request_id(self) -> RequestId: ...


class Retention:
    """The task that removes what is past its time."""

    def __init__(self, node: Node, archive: LogArchive) -> None:
        self._node = node
        self._archive = archive

    async def run(self) -> None:
        """Sweep now and every hour, until cancelled."""
        while True:
            try:
                await self.sweep()
            except CapacityError as error:
                _log.warning("retention_must_wait", why=error.message, detail=error.detail)
            except Exception:  # noqa: BLE001 - tried again, and each failure told
                _log.exception("retention_failed")
            await self._node.clock.sleep(EVERY_S)

    async def sweep(self) -> None:
        """Remove everything that is past its time. Raises `CapacityError`."""
        settings = self._node.settings
        logs = await self._sweep(
            settings.retention_logs_days, retention.old_logs, self._remove_logs
        )
        jobs = await self._sweep(
            settings.retention_jobs_days, retention.old_jobs, self._remove_jobs
        )
        files = await OldFiles(self._node).sweep()
        left = await self._sweep_files()
        if logs or jobs or files or left:
            _log.info("retention", logs=logs, jobs=jobs, files=files, left_over=left)

    async def _sweep(
        self,
        days: int,
        find: Callable[..., Sequence[_Old]],
        remove: Callable[[Sequence[Any]], Awaitable[Collection[RequestId]]],
    ) -> int:
        """Remove what `find` finds older than that, a batch at a time; return how much went."""
        if not days:
            return 0
        before = self._node.clock.now() - timedelta(days=days)
        removed, passed = 0, set[RequestId]()
        while len(passed) < _PASSED_MAX:
            found = await self._node.database.read(
                partial(
                    find,
                    node=self._node.settings.node,
                    before=before,
                    passed=passed,
                    limit=_BATCH,
                )
            )
            gone = await remove(found)
            removed += sum(each.request_id in gone for each in found)
            passed |= {each.request_id for each in found if each.request_id not in gone}
            if len(found) < _BATCH:
                break
        return removed

    async def _remove_logs(self, logs: Sequence[LogRecord]) -> Collection[RequestId]:
        gone = [log for log in logs if await self._archive.remove(log)]
        if gone:
            await self._node.database.write(lambda tx: log_index.remove(tx, gone))
        return {log.request_id for log in gone}

    async def _remove_jobs(self, found: Sequence[EndedJob]) -> Collection[RequestId]:
        places = self._node.places
        # While its VM is being given back a job's log is yet to come.
        jobs = [
            job.request_id
            for job in found
            if job.vm is None or not places.run_directory(job.vm).exists()
        ]
        for request_id in jobs:
            logs = await self._node.database.read(partial(log_index.of_job, request_id=request_id))
            await self._remove_logs(list(logs.values()))
        gone = await self._node.database.write(lambda tx: retention.remove_jobs(tx, jobs))
        for request_id in gone:
            self._node.events.forget(request_id)
        return gone

    async def _sweep_files(self) -> int:
        """Remove what lies here of logs that nobody knows any more. A row is there before its files."""
        found = await asyncio.to_thread(lambda: list(self._node.places.put_away_ones()))
        left = 0
        for start in range(0, len(found), _BATCH):
            part = found[start : start + _BATCH]
            known = await self._node.database.read(partial(log_index.known, places=part))
            for place in part:
                if place not in known:
                    left += await self._archive.remove_here(LogKey(*place))
        return left
