"""Logs of ended lives in the object store, and the copies of them on this node.

Owns the way of a log from where it was put away to its object
`logs/<account>/<request>/<epoch>`, and back when somebody reads it. Which logs
are not stored yet is asked of the database, never remembered: so nothing is
forgotten by a crash, and a store that is away costs no memory. What the store
has is a copy here, dropped when nobody read it for a while or when the copies
take too much room.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock, SingleFlight, Tasks, backoff_s, finish, unless
from magsd.core import log_packing
from magsd.core.log_copies import Copies, LogKey
from magsd.core.log_places import LogPlaces, folder_bytes
from magsd.core.settings import CoreSettings
from magsd.db import log_index
from magsd.db.database import Database
from magsd.db.log_index import LogObject, LogRecord
from magsd.model.errors import CapacityError, MagsError, NotFoundError
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId, RequestId
from magsd.model.records import Run
from magsd.storage.objects import ObjectStore

_PAGE: Final = 64
_AT_ONCE: Final = 4
_RESTORED_AT_ONCE: Final = 4
_LOOK_S: Final = 60.0
_GATHER_S: Final = 0.5
"""Logs of jobs that end one after the other are stored together, and scripts that begin
meanwhile go first."""
_PROBE_S: Final = 15.0
_RETRY_MOST_S: Final = 15.0

_log = structlog.get_logger()


class LogArchive:
    """The logs of a node that are over."""

    def __init__(
        self,
        *,
        database: Database,
        objects: ObjectStore,
        places: LogPlaces,
        settings: CoreSettings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._objects = objects
        self._places = places
        self._node = settings.node
        self._clock = clock
        self._copies = Copies(settings.logs_cache_mb << 20)
        self._held: Counter[LogKey] = Counter()
        self._restores = SingleFlight()
        self._restoring = asyncio.Semaphore(_RESTORED_AT_ONCE)
        self._news = asyncio.Event()
        self._tasks = Tasks(_report)

    @property
    def trouble(self) -> str | None:
        """Why the object store cannot be used, for an operator; None when it can."""
        return self._objects.trouble

    def start(self) -> None:
        """Try the store, find what is here, and begin to work. The store may be away."""
        self._tasks.spawn("archive logs", self._archive())
        self._tasks.spawn("drop copies of logs", self._drop_copies())
        self._tasks.spawn("probe the object store", self._probe())

    def want(self) -> None:
        """Take note that a log was put away."""
        self._news.set()

    async def aclose(self) -> None:
        """End; what is not stored is found again."""
        await self._tasks.aclose()

    @asynccontextmanager
    async def hold(self, run: Run) -> AsyncIterator[None]:
        """Have the logs of all lives of a run on this node inside the block.

        Raises `CapacityError` when the store is away and they are nowhere else,
        `MagsError` when the store has something else than was put there.
        """
        keys = [LogKey(run.request_id, epoch) for epoch in range(1, run.journal + 1)]
        # Held before they are looked for, so that nothing is dropped between.
        self._held.update(keys)
        try:
            if away := [key for key in keys if self._is_away(key, run)]:
                await self._restore(run.request_id, away)
            yield
        finally:
            for key in keys:
                self._held[key] -= 1
                if not self._held[key]:
                    del self._held[key]
                self._copies.use(key, self._clock.monotonic())

    async def remove(self, log: LogRecord) -> bool:
        """Remove a log from the store and from here. False: somebody reads it now.

        Raises `CapacityError` while the store is away.
        """
        key = LogKey(log.request_id, log.epoch)
        if self._held[key]:
            return False
        await self._objects.delete(_object_key(log.account_id, key))
        return await self.remove_here(key)

    async def remove_here(self, key: LogKey) -> bool:
        """Remove what lies on this node of a log. False: somebody reads it now."""
        if self._held[key]:
            return False
        self._copies.forget(key)
        if (taken := self._places.take_out(*key)) is not None:
            await finish(asyncio.to_thread(shutil.rmtree, taken, ignore_errors=True))
        return True

    # --- to the store ------------------------------------------------------------

    async def _archive(self) -> None:
        attempt = 0
        while True:
            self._news.clear()
            try:
                await self._store_all()
            except CapacityError as error:
                if attempt == 0:
                    _log.warning("logs_not_stored", why=error.message, detail=error.detail)
                await self._clock.sleep(backoff_s(attempt, most_s=_RETRY_MOST_S))
                attempt += 1
            except Exception:  # noqa: BLE001 - tried again, and each failure told
                _log.exception("logs_not_stored")
                await self._clock.sleep(backoff_s(attempt, first_s=1, most_s=_RETRY_MOST_S))
                attempt += 1
            else:
                attempt = 0
                await unless(self._news, self._clock.sleep(_LOOK_S))
                await self._clock.sleep(_GATHER_S)

    async def _store_all(self) -> None:
        last: LogRecord | None = None
        while True:
            page = await self._database.read(
                partial(log_index.unstored, node=self._node, after=last, limit=_PAGE)
            )
            for start in range(0, len(page), _AT_ONCE):
                await self._store_some(page[start : start + _AT_ONCE])
            if len(page) < _PAGE:
                return
            last = page[-1]

    async def _store_some(self, logs: Sequence[LogRecord]) -> None:
        results = await asyncio.gather(*map(self._store, logs), return_exceptions=True)
        stored = [
            (log.request_id, log.epoch, result)
            for log, result in zip(logs, results, strict=True)
            if isinstance(result, LogObject)
        ]
        if stored:
            at = self._clock.now()
            await self._database.write(lambda tx: log_index.store(tx, stored, at))
            for request_id, epoch, _ in stored:
                await self._add_copy(LogKey(request_id, epoch))
        for log, result in zip(logs, results, strict=True):
            if isinstance(result, OSError):  # One that cannot be read must not keep the others.
                _log.error("log_not_stored", request_id=log.request_id, error=str(result))
            elif isinstance(result, BaseException):
                raise result

    async def _store(self, log: LogRecord) -> LogObject | None:
        """Store a log; None when it is not here, because it is about to be put away."""
        directory = self._places.archive(log.request_id, log.epoch)
        packed = await asyncio.to_thread(log_packing.pack, directory)
        if packed is None:
            return None
        key = LogKey(log.request_id, log.epoch)
        await self._objects.put(_object_key(log.account_id, key), packed.content)
        return LogObject(len(packed.content), packed.sha256)

    async def _probe(self) -> None:
        """Try the store at the start, and find out that trouble is over when nothing is stored."""
        await self._objects.probe()
        if (trouble := self.trouble) is not None:
            _log.warning("object_store_away", why=trouble, then="logs stay here until it is back")
        while True:
            await self._clock.sleep(_PROBE_S)
            if self.trouble is not None:
                await self._objects.probe()

    # --- and back ----------------------------------------------------------------

    def _is_away(self, key: LogKey, run: Run) -> bool:
        is_last = key.epoch == run.journal
        if is_last and run.state is not RunState.ENDED:
            return False
        return self._places.find(*key, run.vm_id if is_last else None) is None

    async def _restore(self, request_id: RequestId, keys: Sequence[LogKey]) -> None:
        logs = await self._database.read(lambda tx: log_index.of_job(tx, request_id))
        for key in keys:
            log = logs.get(key.epoch)
            if log is not None and log.stored is not None:
                await self._restores.do(key, partial(self._restore_one, log))

    async def _restore_one(self, log: LogRecord) -> None:
        key, stored = LogKey(log.request_id, log.epoch), log.stored
        if stored is None or self._places.archive(*key).is_dir():
            return
        name = _object_key(log.account_id, key)
        async with self._restoring:
            packed, directory = self._places.temporary(), self._places.temporary()
            try:
                try:
                    found = await self._objects.get(name, packed, limit_bytes=stored.size_bytes)
                except NotFoundError:
                    raise _damaged(log, name, "it is gone from the object store") from None
                if (found.size_bytes, found.sha256) != (stored.size_bytes, stored.sha256):
                    raise _damaged(log, name, "the object store has something else in its place")
                await asyncio.to_thread(log_packing.unpack, packed, directory)
                self._places.put_back(directory, *key)
            finally:
                await finish(asyncio.to_thread(_remove, packed, directory))
        await self._add_copy(key)

    async def _add_copy(self, key: LogKey) -> None:
        with suppress(FileNotFoundError):
            size_bytes = await asyncio.to_thread(folder_bytes, self._places.archive(*key))
            self._copies.add(key, size_bytes, self._clock.monotonic())

    async def _drop_copies(self) -> None:
        await self._find_copies()
        while True:
            self._copies.is_over.clear()
            for key in self._copies.choose(self._clock.monotonic(), self._held):
                if not await self.remove_here(key):
                    await self._add_copy(key)
            await unless(self._copies.is_over, self._clock.sleep(self._copies.look_again_s()))

    async def _find_copies(self) -> None:
        """Take note of the copies that an earlier daemon left."""
        found = await asyncio.to_thread(lambda: list(self._places.put_away_ones()))
        for start in range(0, len(found), _PAGE):
            part = found[start : start + _PAGE]
            known = await self._database.read(partial(log_index.known, places=part))
            for key, log in known.items():
                if log.stored is not None:
                    await self._add_copy(LogKey(*key))


def _object_key(account_id: AccountId, key: LogKey) -> str:
    return f"logs/{account_id}/{key.request_id}/{key.epoch}"


def _damaged(log: LogRecord, name: str, why: str) -> MagsError:
    _log.error("log_damaged", object=name, why=why)
    return MagsError(f"the log of job {log.request_id} cannot be read: {why}", f"object {name}")


def _remove(packed: Path, directory: Path) -> None:
    packed.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
