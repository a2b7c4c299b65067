"""Workspaces that leave as archives other tools read, and come as such.

What an archive may be and how it becomes a layer is `storage`'s knowledge. An
imported root filesystem is a workspace without layers of an image: its first
own layer is all there is.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core.node import Node
from magsd.core.workspace_uploads import IMAGES
from magsd.core.workspaces import check_new, found_version
from magsd.db import workspaces
from magsd.model.errors import CapacityError, InvalidError, QuotaError, TooLargeError
from magsd.model.layers import Layer, Manifest
from magsd.model.names import AccountId, check_workspace_name
from magsd.model.records import Principal, Version
from magsd.storage import root_exports
from magsd.storage.layers import TarLimits, disk_errors

IMPORTED: Final = "imported"
"""What stands in the place of an image's name."""
_AT_ONCE: Final = 2
"""Archives that are packed or unpacked: each takes a processor."""
_ACCOUNT_MAX: Final = 4
"""Archives of one account that come or go: each takes room on the disk meanwhile."""
_WRITE_BYTES: Final = 1 << 20
_LOOK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Export:
    """An archive on its way out. Whoever has it closes it."""

    file_name: str
    size_bytes: int | None
    """None when nobody knows before the end."""
    pieces: AsyncGenerator[bytes]
    _undo: AsyncExitStack

    async def aclose(self) -> None:
        """Let go of what it is made of. Idempotent."""
        await finish(self._undo.aclose())


class WorkspaceArchives:
    """The archives of a node's workspaces, as accounts see them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._moving: Counter[AccountId] = Counter()

    async def export(
        self, principal: Principal, name: str, form: str, version: int | None
    ) -> Export:
        """Return a version, by default the newest, as an OCI image (`oci`) or a plain `tar`.

        Raises `NotFoundError`, `InvalidError` for what cannot be in an image,
        `CapacityError` while the object store is away or the disk is full,
        `QuotaError` for too many at once.
        """
        account_id = principal.account_id
        chosen = await self._node.database.read(
            lambda tx: found_version(tx, account_id, name, version)
        )
        async with AsyncExitStack() as undo:
            undo.enter_context(self._counted(account_id))
            files = await undo.enter_async_context(
                self._node.layers.lent(
                    [
                        *((IMAGES, layer) for layer in chosen.manifest.image_layers),
                        *((account_id, layer) for layer in chosen.manifest.own_layers),
                    ]
                )
            )
            folder = undo.enter_context(self._node.layers.folder())
            mount_point = folder / "mount"
            with disk_errors():
                mount_point.mkdir()
            file_name = f"{name}-v{chosen.version}.{'oci.tar' if form == 'oci' else 'tar'}"
            size_bytes = None
            if form == "oci":
                self._check_disk()
                called = root_exports.ImageName(name, str(chosen.version), chosen.created_at)
                async with self._turn:
                    image = await root_exports.image(files, mount_point, folder, called)
                pieces, size_bytes = image.pieces(), image.size_bytes
            else:
                pieces = await _begun(root_exports.root(files, mount_point))
            undo.push_async_callback(pieces.aclose)
            return Export(file_name, size_bytes, pieces, undo.pop_all())

    async def import_(
        self, principal: Principal, name: str, form: str, content: AsyncIterator[bytes]
    ) -> Version:
        """Make a new workspace of the root filesystem in an archive.

        `form`: one of `root_import.FORMS`. Raises `ConflictError` when there
        is one of that name, `InvalidError` for an archive that may not be, and
        `TooLargeError` for one over the settings; both name the entry. Else as `export`.
        """
        check_workspace_name("workspace_id", name)
        account_id = principal.account_id
        await self._node.database.read(lambda tx: check_new(tx, account_id, name))
        with self._counted(account_id), self._node.layers.folder() as folder:
            archive = folder / "archive"
            await self._receive(content, archive)
            async with self._turn:
                layer = await self._node.layers.pack_root(archive, self._limits(), form)
        if layer is None:
            raise InvalidError("the archive cannot be imported: there is nothing in it")
        return await self._add(principal, name, layer)

    @contextmanager
    def _counted(self, account_id: AccountId) -> Iterator[None]:
        """Count an archive of an account inside the block. Raises `QuotaError`."""
        if self._moving[account_id] >= _ACCOUNT_MAX:
            raise QuotaError(
                f"this account moves {_ACCOUNT_MAX} archives already: wait until one is done"
            )
        self._moving[account_id] += 1
        try:
            yield
        finally:
            self._moving[account_id] -= 1
            if not self._moving[account_id]:
                del self._moving[account_id]

    async def _add(self, principal: Principal, name: str, layer: Layer) -> Version:
        node, account_id = self._node, principal.account_id
        new = workspaces.NewVersion(
            account_id=account_id,
            name=name,
            node=node.settings.node,
            parent=None,
            manifest=Manifest(IMPORTED, (), (layer,)),
            run_id=None,
            capture=None,
            at=node.clock.now(),
        )

        def work(tx: Connection) -> Version:
            check_new(tx, account_id, name)
            return workspaces.add(tx, new)

        async with node.layer_names:
            if not node.layers.path(layer.sha256).exists():
                # The same was in another workspace, which was deleted at this moment.
                raise CapacityError("the archive cannot be imported at this moment: try again")
            version = await finish(node.database.write(work))
        node.uploads.want(version.workspace_id)
        return version

    async def _receive(self, content: AsyncIterator[bytes], archive: Path) -> None:
        """Write what comes to a file. Raises `TooLargeError`, `CapacityError` for a full disk."""
        most, size_bytes, looked_at = self._node.settings.import_bytes, 0, -_LOOK_BYTES
        buffer = bytearray()
        with disk_errors(), archive.open("wb", buffering=0) as file:
            async for piece in content:
                buffer += piece
                size_bytes += len(piece)
                if size_bytes > most:
                    raise TooLargeError(
                        f"the archive is larger than the {most >> 30} GiB that may be imported"
                    )
                if size_bytes - looked_at >= _LOOK_BYTES:
                    looked_at = size_bytes
                    self._check_disk()
                if len(buffer) >= _WRITE_BYTES:
                    await asyncio.to_thread(_write_all, file, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(_write_all, file, bytes(buffer))

    def _check_disk(self) -> None:
        found = os.statvfs(self._node.settings.data_directory)
        if found.f_bavail * found.f_frsize < self._node.settings.disk_free_min_bytes:
            raise CapacityError("the host's disk is nearly full: its operator must free some space")

    def _limits(self) -> TarLimits:
        settings = self._node.settings
        return TarLimits(
            content_bytes=settings.import_bytes,
            apparent_bytes=settings.import_bytes,
            entries=settings.import_entries,
        )


async def _begun(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Return the same when its first piece is there: what fails at once can be told."""
    try:
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise
    return _chained(first, pieces)


async def _chained(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()


def _write_all(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
