"""What keeps workspaces small: long chains of layers become short, layers of no use go.

A layer goes when no version and no run that has not ended names it. While that
is found out and acted on nobody may name another: see `Node.layer_names`.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from magsd.aio import unless
from magsd.core.node import Node
from magsd.db import layers, workspaces
from magsd.model.errors import CapacityError, MagsError
from magsd.model.layers import Layer
from magsd.model.names import AccountId
from magsd.model.records import Version

EVERY_S: Final = 300.0
_GATHER_S: Final = 5.0
"""What is stored meanwhile is looked at together."""
_DELETED_AT_ONCE: Final = 8
_DELETE_S: Final = 20.0

_log = structlog.get_logger()


class WorkspaceUpkeep:
    """The task that does it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def run(self) -> None:
        """Do all there is to do now, every five minutes and after each change, until cancelled."""
        stored = self._node.uploads.has_changed
        while True:
            await self._node.clock.sleep(_GATHER_S)
            stored.clear()
            for work in (self.shorten, self.delete_unneeded, self.shrink_cache):
                try:
                    await work()
                except CapacityError as error:
                    _log.warning("upkeep_must_wait", why=error.message, detail=error.detail)
                except Exception:  # noqa: BLE001 - tried again, and each failure told
                    _log.exception("upkeep_failed", work=work.__name__)
            await unless(stored, self._node.clock.sleep(EVERY_S))

    async def shorten(self) -> None:
        """Put one layer in the place of all own layers of versions that have too many.

        What the version shows is the same, so its number and whoever begins
        from it are too. Raises `CapacityError`.
        """
        most = self._node.settings.layers_max
        found = await self._node.database.read(workspaces.heads)
        for version in found:
            if len(version.manifest.own_layers) > most:
                try:
                    await self._shorten(version)
                except CapacityError:
                    raise
                except MagsError as error:
                    _log.error("chain_not_shortened", workspace=version.workspace_id,
                               version=version.version, error=error.message)  # fmt: skip

    async def _shorten(self, version: Version) -> None:
        node, account_id = self._node, version.account_id
        for layer in version.manifest.own_layers:
            await node.layers.ensure(account_id, layer)
        merged = await node.layers.merge(version.manifest.own_layers)
        shorter = replace(version.manifest, own_layers=(merged,))
        now = node.clock.now()
        # Named before it is sent; nothing else here can take it for one of no use meanwhile.
        await node.database.write(
            partial(layers.name, account_id=account_id, manifest=shorter, at=now)
        )
        await node.layers.upload(account_id, merged)
        async with node.layer_names:
            await node.database.write(lambda tx: workspaces.replace_manifest(tx, version, shorter))
        _log.info("chain_shortened", workspace=version.workspace_id, version=version.version)

    async def delete_unneeded(self) -> None:
        """Remove layers that nobody names from the object store and from here.

        Raises `CapacityError` while the store is away.
        """
        for account_id in await self._node.database.read(layers.accounts):
            await self.delete_unneeded_of(account_id)
        # What was sent of captures that failed is not in the database.
        for account_id in tuple(self._node.layers.untidy):
            await self._delete_objects(account_id, ())

    async def delete_unneeded_of(self, account_id: AccountId) -> Sequence[Layer]:
        """Remove those of one account, and return them. Raises as `delete_unneeded`."""
        deleted: list[Layer] = []
        while gone := await self._delete_some(account_id):
            _log.info("layers_deleted", account=account_id, count=len(gone))
            deleted += gone
        return deleted

    async def _delete_some(self, account_id: AccountId) -> Sequence[Layer]:
        unneeded = partial(layers.unneeded, account_id=account_id, limit=_DELETED_AT_ONCE)
        async with self._node.layer_names:
            found = await self._node.database.read(unneeded)
            if not found:
                return ()
            gone = [layer.sha256 for layer in found]
            await self._delete_objects(account_id, gone)
            await self._node.layers.discard(await self._named_by_nobody(gone))
            forget = partial(layers.forget, account_id=account_id, sha256s=gone)
            await self._node.database.write(forget)
            return found

    async def _delete_objects(self, account_id: AccountId, sha256s: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(_DELETE_S):
                await self._node.layers.delete_objects(account_id, sha256s)
        except TimeoutError as error:
            text = "the object store takes too long to delete layers"
            raise CapacityError(text) from error

    async def shrink_cache(self) -> None:
        """Remove files of layers that the object store has, until the rest is small enough."""
        async with self._node.layer_names:
            in_use = await self._node.database.read(layers.in_use)
            freed_bytes = await self._node.layers.forget_unused({*in_use, *self._of_images()})
        if freed_bytes:
            _log.info("layers_forgotten", freed_bytes=freed_bytes)

    async def _named_by_nobody(self, sha256s: Sequence[str]) -> Collection[str]:
        """Return those that no other account names either."""
        named = await self._node.database.read(layers.named)
        return set(sha256s) - named - set(self._of_images())

    def _of_images(self) -> Collection[str]:
        found = set[str]()
        for name in self._node.images.names():
            try:
                found |= {path.stem for path in self._node.images.get(name).layers}
            except MagsError:  # Whoever uses it is told.
                continue
        return found
