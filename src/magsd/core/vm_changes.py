"""What a run's root filesystem begins from, and what becomes of what the run changes in it.

Belongs to the run's actor. Which layers there are is the database's knowledge,
a consistent moment of a VM the engine's, a layer's file the store's.
"""

import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core import outcome
from magsd.core.node import Node
from magsd.core.run_row import RunRow
from magsd.core.workspace_uploads import IMAGES
from magsd.db import jobs, runs, workspaces
from magsd.db.workspaces import NewVersion
from magsd.engine.base import Engine, Handle
from magsd.model.errors import CapacityError, ConflictError, JobCode, LaunchError
from magsd.model.layers import Layer, Manifest
from magsd.model.records import Job, Synced, Version, VersionState
from magsd.storage.images import Image
from magsd.storage.layers import DamagedLayerError, TarLimits

LAST: Final = 0
"""Number of the capture at a run's end."""
STORED_S: Final = 20.0
"""How long the end of a job waits for the object store."""
_TURN_LOOK_S: Final = 1.0
_LAYERS_MAX: Final = 12
"""Own layers of a VM: with its image's they must fit an overlay and the devices of a machine."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of keeping what a run changed."""

    version: int
    is_synced: bool
    is_aside: bool = False
    """Another version became the head before it could."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last capture of a live VM found."""

    stamp: str
    layer: Layer | None


class VmChanges:
    """The changes of one run."""

    def __init__(self, node: Node, row: RunRow) -> None:
        self._node = node
        self._row = row
        self._capturing = asyncio.Lock()
        self._seen: _Seen | None = None
        self._log = _log.bind(request_id=row.request_id)

    @property
    def has_layers(self) -> bool:
        """Whether the run begins from more than an image."""
        job = self._row.job
        return job.workspace_id is not None or job.base_workspace_id is not None

    async def begin(self, image: Image) -> Manifest:
        """Return what the run's root filesystem is made of, when it is this job's turn.

        A job that is being stopped may have the workspace still. Raises `LaunchError`.
        """
        await self._turn()
        job = self._row.job
        # Read and named in one: what it consists of may be exchanged and deleted between.
        async with self._node.layer_names:
            manifest, version = await self._node.database.read(partial(_start_of, job=job))
            if manifest is None:
                if job.base_workspace_id is not None:
                    text = f"the base workspace {job.base_workspace_id!r} was deleted meanwhile"
                    raise LaunchError(text, "", JobCode.STATE_LOST)
                manifest = await asyncio.to_thread(_of_image, image)
            await self._row.begin_from(manifest, version)
        if len(manifest.own_layers) > _LAYERS_MAX:
            manifest = await self._shortened(manifest)
            async with self._node.layer_names:
                await self._row.begin_from(manifest, version)
        if job.is_kept:
            # While the script runs: the end has to wait for what is not stored by then.
            self._node.uploads.want_image(manifest.image_layers)
        return manifest

    async def _shortened(self, manifest: Manifest) -> Manifest:
        """Return a manifest that a VM can have, where upkeep has not come to it yet."""
        await self.bring(manifest)
        merged = await self._node.layers.merge(manifest.own_layers)
        return dataclasses.replace(manifest, own_layers=(merged,))

    async def bring(self, manifest: Manifest) -> Sequence[Path]:
        """Return the files of all layers, lowest first, when they lie here whole.

        Raises `LaunchError` for one that is damaged, `CapacityError` while the store is away.
        """
        account_id, layers = self._row.job.account_id, self._node.layers
        try:
            images = [await layers.ensure(IMAGES, layer) for layer in manifest.image_layers]
            own = [await layers.ensure(account_id, layer) for layer in manifest.own_layers]
        except DamagedLayerError as error:
            text = f"{error.message}; restore an earlier version of the workspace"
            raise LaunchError(text, error.detail, JobCode.WORKSPACE_DAMAGED) from error
        return [*images, *own]

    async def sync(self, handle: Handle) -> Synced:
        """Make a version of what a live VM has changed so far; return when it is stored.

        Never gives up on the store: the caller sets the deadline. Raises
        `ConflictError` when another version became the newest before it
        could, `MagsError` when it cannot be made, or was damaged before it
        was stored.
        """
        async with self._capturing:
            number = await self._node.database.read(
                lambda tx: workspaces.next_capture(tx, self._row.run.run_id)
            )
            version = await self._captured(handle, number)
        name = self._row.job.workspace_id
        assert name is not None
        return await self._stored(name, version)

    async def _stored(self, name: str, version: Version) -> Synced:
        state, sent_bytes = await self._node.uploads.stored(version)
        if state is VersionState.ASIDE:
            raise ConflictError(outcome.of_version_aside(version.version))
        return Synced(name, version.version, version.manifest.size_bytes, sent_bytes)

    async def keep_asleep(self, handle: Handle) -> Kept:
        """Make a version of a VM that was stopped to sleep; wait for the store for a while.

        Raises as `keep`. Cancelled, it has let go of the disk.
        """
        async with self._capturing:
            number = await self._node.database.read(
                lambda tx: workspaces.next_capture(tx, self._row.run.run_id)
            )
            version = await self._captured(handle, number)
        return await self._kept(version)

    async def asleep(self, number: int) -> Synced:
        """Return the version that a VM that sleeps has become, when it is stored.

        The caller sets the deadline. Raises `ConflictError` when another became the newest first.
        """
        name = self._row.job.workspace_id
        assert name is not None
        version = await self._numbered(number)
        if version is None:
            raise ConflictError(outcome.of_version_aside(number))
        return await self._stored(name, version)

    async def keep(self, handle: Handle) -> Kept:
        """Make the last version, of a VM that is stopped here; wait for the store for a while.

        One that slept may have it already.

        May be asked again, and is after a crash. Raises `LookupError` when the
        disk is gone, `InvalidError` and `TooLargeError` for what cannot be
        kept, `LaunchError` and `CapacityError` when it cannot be now.
        """
        slept_version = self._row.run.slept_version
        version = None if slept_version is None else await self._numbered(slept_version)
        if version is None:
            async with self._capturing:
                await self._engine.stop(handle, keep_changes=True)
                version = await self._captured(handle, LAST)
        return await self._kept(version)

    async def _numbered(self, number: int) -> Version | None:
        """Return a version of the job's workspace; None when it was deleted since."""
        job = self._row.job

        def find(tx: Connection) -> Version | None:
            assert job.workspace_id is not None
            workspace_id = workspaces.find(tx, job.account_id, job.workspace_id)
            return None if workspace_id is None else workspaces.get(tx, workspace_id, number)

        return await self._node.database.read(find)

    async def _kept(self, version: Version) -> Kept:
        try:
            async with asyncio.timeout(STORED_S):
                state, _ = await self._node.uploads.stored(version)
        except TimeoutError:
            return Kept(version.version, is_synced=False)
        is_live = state is VersionState.LIVE
        return Kept(version.version, is_synced=is_live, is_aside=not is_live)

    async def _captured(self, handle: Handle, number: int) -> Version:
        node, job, run = self._node, self._row.job, self._row.run
        read = node.database.read
        known = await read(lambda tx: workspaces.captured(tx, run.run_id, number))
        if known is not None:
            return known
        manifest = await read(lambda tx: runs.manifest(tx, run.run_id))
        assert manifest is not None
        assert job.workspace_id is not None
        layer = await self._packed(handle)
        manifest = manifest.with_layer(layer)
        name = job.workspace_id
        last = await read(lambda tx: workspaces.last_of(tx, run, name, job.account_id))
        if last is not None and last.manifest.layers == manifest.layers:
            return last
        new = NewVersion(
            account_id=job.account_id,
            name=job.workspace_id,
            node=node.settings.node,
            parent=run.base_version if last is None else last.version,
            manifest=manifest,
            run_id=run.run_id,
            capture=number,
            at=node.clock.now(),
        )
        async with node.layer_names:
            if layer is not None and not node.layers.path(layer.sha256).exists():
                # The same was in another workspace, which was deleted at this moment; or here, and
                # it was made before.
                self._seen = None
                raise CapacityError("the workspace cannot be saved at this moment: try again")
            version = await finish(node.database.write(lambda tx: workspaces.add(tx, new)))
        node.uploads.want(version.workspace_id)
        return version

    async def _packed(self, handle: Handle) -> Layer | None:
        layers = self._node.layers
        seen, self._seen = self._seen, None
        async with self._engine.still(handle, "" if seen is None else seen.stamp) as capture:
            if capture.is_unchanged:
                assert seen is not None
                layer = seen.layer
            elif capture.directory is not None:
                layer = await layers.pack_directory(
                    capture.directory, account_id=self._row.job.account_id
                )
            else:
                assert capture.tar is not None
                layer = await layers.pack_tar(capture.tar, await self._limits())
        if capture.stamp:
            self._seen = _Seen(capture.stamp, layer)
        return layer

    async def _limits(self) -> TarLimits:
        """Return how much a guest may give: no more than fits its disk."""
        request_id = self._row.request_id
        spec = await self._node.database.read(lambda tx: jobs.spec(tx, request_id))
        return TarLimits(content_bytes=spec.disk_gb << 30)

    async def _turn(self) -> None:
        job, events = self._row.job, self._node.events
        if (name := job.workspace_id) is None:
            return
        while True:
            earlier = await self._node.database.read(
                lambda tx: workspaces.ending(tx, job.account_id, name, job.request_id)
            )
            if earlier is None:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN_LOOK_S):
                    if await events.changed(earlier, sys.maxsize) is None:
                        await self._node.clock.sleep(_TURN_LOOK_S)

    @property
    def _engine(self) -> Engine:
        return self._node.engines[self._row.run.engine]


def _start_of(tx: Connection, job: Job) -> tuple[Manifest | None, int | None]:
    """Return what a job starts from, and which version of its own workspace that is."""
    if job.workspace_id is not None:
        own = workspaces.newest(tx, job.account_id, job.workspace_id)
        if own is not None:
            return own.manifest, own.version
    if job.base_workspace_id is not None:
        base = workspaces.newest(tx, job.account_id, job.base_workspace_id)
        return None if base is None else base.manifest, None
    return None, None


def _of_image(image: Image) -> Manifest:
    layers = tuple(Layer(path.stem, path.stat().st_size) for path in image.layers)
    return Manifest(image.name, layers)
