"""Uploads that nobody has used for long, and those that never came whole, go."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from magsd.core.node import Node
from magsd.db import files
from magsd.model.uploads import StoredFile

_BATCH: Final = 100
_COMES_WITHIN: Final = timedelta(hours=1)
"""So long the object of an upload may take to come: much longer than the store may."""


class OldFiles:
    """The uploads that are past their time."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def sweep(self) -> int:
        """Remove them; return how many went. Raises `CapacityError`."""
        node, now = self._node, self._node.clock.now()
        days = node.settings.retention_files_days
        removed = 0
        while True:
            # Withdrawn first: a job that is submitted now gets all of its files, or none.
            found = await node.database.write(
                partial(
                    files.withdraw,
                    used_before=now - timedelta(days=days) if days else None,
                    begun_before=now - _COMES_WITHIN,
                    limit=_BATCH,
                )
            )
            await self._remove(found)
            removed += len(found)
            if len(found) < _BATCH:
                return removed

    async def _remove(self, found: Sequence[StoredFile]) -> None:
        for stored in found:
            await self._node.files.delete(stored)
        ids = [stored.file.file_id for stored in found]
        if ids:
            await self._node.database.write(lambda tx: files.remove(tx, ids))
