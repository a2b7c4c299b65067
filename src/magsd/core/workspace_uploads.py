"""Versions that only this node has, on their way to the object store.

One task for each workspace that has some, oldest version first. Which there
are is asked of the database: what a crash or a store that is away has left is
found at the next start, and tried until it is done.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import structlog

from magsd.aio import Clock, Tasks, backoff_s, finish
from magsd.db import workspaces
from magsd.db.database import Database
from magsd.model.errors import CapacityError, MagsError
from magsd.model.layers import Layer
from magsd.model.names import AccountId, WorkspaceId
from magsd.model.records import Version, VersionState
from magsd.storage.layers import DamagedLayerError, LayerStore

IMAGES: Final = AccountId("images")
"""Whom the layers of images belong to: all who use them."""
_RETRY_MOST_S: Final = 15.0
_SENT_MAX: Final = 1000

_log = structlog.get_logger()


class WorkspaceUploads:
    """The uploads of one node."""

    def __init__(
        self, database: Database, layers: LayerStore, clock: Clock, *, node: str, keep: int
    ) -> None:
        self._database = database
        self._layers = layers
        self._clock = clock
        self._node = node
        self._keep = keep
        self._tasks = Tasks(_report)
        self._working: dict[WorkspaceId, asyncio.Task[None]] = {}
        self._wanted: set[WorkspaceId] = set()
        self._images: set[str] = set()
        self._damaged: dict[tuple[WorkspaceId, int], DamagedLayerError] = {}
        self._sent_bytes: OrderedDict[tuple[WorkspaceId, int], int] = OrderedDict()
        self.has_changed = asyncio.Event()
        """Set when a version was stored or a workspace deleted: chains of layers may be longer
        than they should, or layers needed no more."""
        self.trouble: str | None = None
        """Why a version could not be stored when that was tried last; None when it could."""

    async def start(self) -> None:
        """Go on with what an earlier daemon left."""
        found = await self._database.read(lambda tx: workspaces.pending(tx, self._node))
        for workspace_id in found:
            self.want(workspace_id)

    def want(self, workspace_id: WorkspaceId) -> None:
        """Take note that a workspace has a new version, after that was committed."""
        self._wanted.add(workspace_id)
        if workspace_id not in self._working:
            work = self._store_all(workspace_id)
            self._working[workspace_id] = self._tasks.spawn(f"store {workspace_id}", work)

    def want_image(self, layers: Sequence[Layer]) -> None:
        """See to it that the object store has an image's layers, before a version needs them."""
        missing = [layer for layer in layers if layer.sha256 not in self._images]
        if missing:
            self._images |= {layer.sha256 for layer in missing}
            self._tasks.spawn("store an image", self._store_image(missing))

    async def _store_image(self, layers: Sequence[Layer]) -> None:
        try:
            await self._send(IMAGES, layers)
        except MagsError as error:
            # Whoever needs them stores them, and tells.
            self._images -= {layer.sha256 for layer in layers}
            _log.info("image_not_stored", why=error.message, detail=error.detail)

    async def stored(self, version: Version) -> tuple[VersionState, int]:
        """Return what became of a version once the object store has it, and how many bytes were
        sent for it. Never gives up: the caller sets the deadline.

        Raises `DamagedLayerError` when it cannot be stored, and a later one takes its place.
        """
        key = version.workspace_id, version.version
        while True:
            found = await self._database.read(lambda tx: workspaces.get(tx, *key))
            if found is None:
                return VersionState.ASIDE, 0
            if (error := self._damaged.pop(key, None)) is not None:
                raise error
            if found.state is not VersionState.PENDING:
                return found.state, self._sent_bytes.pop(key, 0)
            self.want(version.workspace_id)
            await asyncio.wait([self._working[version.workspace_id]])
            if self._tasks.is_closed:
                raise CapacityError("the service is stopping: what was captured is stored later")

    async def aclose(self) -> None:
        """Stop; what is not stored stays pending."""
        await self._tasks.aclose()

    async def _store_all(self, workspace_id: WorkspaceId) -> None:
        attempt = 0
        try:
            # What is wanted while the last look is under way may not be seen by it.
            while workspace_id in self._wanted:
                self._wanted.discard(workspace_id)
                try:
                    await self._store_pending(workspace_id)
                    attempt, self.trouble = 0, None
                    continue
                except MagsError as error:
                    self.trouble, detail = error.message, error.detail
                    why = error.message
                    _log.warning(
                        "version_must_wait", workspace=workspace_id, why=why, detail=detail
                    )
                except Exception:  # noqa: BLE001 - tried again, and each failure told
                    self.trouble = "it could not be stored, see the service's log"
                    _log.exception("version_not_stored", workspace=workspace_id)
                self._wanted.add(workspace_id)
                await self._clock.sleep(backoff_s(attempt, most_s=_RETRY_MOST_S))
                attempt += 1
        finally:
            del self._working[workspace_id]

    async def _store_pending(self, workspace_id: WorkspaceId) -> None:
        """Store all versions of a workspace that are pending, the oldest first."""
        find = partial(workspaces.next_pending, node=self._node, workspace_id=workspace_id)
        while (version := await self._database.read(find)) is not None:
            try:
                await self._store(version)
            except DamagedLayerError as error:
                if not await self._passed_over(version):
                    raise
                self._damaged[workspace_id, version.version] = error
                _log.error(
                    "version_damaged",
                    workspace=workspace_id,
                    version=version.version,
                    why=error.message,
                )

    async def _passed_over(self, version: Version) -> bool:
        """Give up a damaged version if there is a later one, so that this can be stored."""
        return await finish(self._database.write(lambda tx: workspaces.pass_over(tx, version)))

    async def _store(self, version: Version) -> None:
        manifest = version.manifest
        await self._send(IMAGES, manifest.image_layers)
        sent_bytes = await self._send(version.account_id, manifest.own_layers)
        now = self._clock.now()
        is_head = await finish(
            self._database.write(lambda tx: workspaces.move_head(tx, version, now))
        )
        self._sent_bytes[(version.workspace_id, version.version)] = sent_bytes
        if len(self._sent_bytes) > _SENT_MAX:  # Nobody waited for the oldest.
            self._sent_bytes.popitem(last=False)
        self.has_changed.set()
        if not is_head:
            _log.warning(
                "version_set_aside", workspace=version.workspace_id, version=version.version
            )
        await self._database.write(lambda tx: workspaces.trim(tx, version.workspace_id, self._keep))

    async def _send(self, account_id: AccountId, layers: Iterable[Layer]) -> int:
        return sum([await self._layers.upload(account_id, layer) for layer in layers])


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)
