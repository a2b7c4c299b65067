"""A run's VM, as the actor of the run holds it: where it is, the connection, the log's last lines.

Belongs to one actor. How a VM is reached and how it ended is `vm_link`'s part.
"""

import asyncio
from contextlib import suppress

import structlog

from magsd.aio import finish
from magsd.core.node import Node
from magsd.core.remains import handle_of
from magsd.core.run_row import RunRow
from magsd.core.vm_link import VmLink
from magsd.engine.base import Engine, Handle
from magsd.guest.shim import ShimError

_log = structlog.get_logger()


class VmHold:
    """The VM that a run has, if it has one."""

    def __init__(self, node: Node, row: RunRow) -> None:
        self._node = node
        self._row = row
        self.link: VmLink | None = None
        """None: nobody here has a connection to it."""

    @property
    def engine(self) -> Engine:
        """The engine of the run."""
        return self._node.engines[self._row.run.engine]

    @property
    def handle(self) -> Handle:
        """Where the VM of a run that has one is."""
        handle = handle_of(self._node, self._row.run)
        assert handle is not None
        return handle

    @property
    def attached(self) -> VmLink:
        """The connection, where there is one."""
        assert self.link is not None
        return self.link

    def attach(self, link: VmLink) -> None:
        """Hold a VM by `link`; whoever reads its log learns of new lines from now on."""
        self.link = link
        beat = self._node.log_pulses.beat
        link.on_journal(lambda _: beat(self._row.request_id))

    async def detach(self) -> None:
        """Let go of it without harming it. Idempotent."""
        link, self.link = self.link, None
        if link is not None:
            await finish(link.aclose())

    async def note(self, text: str) -> None:
        """Try to append a line to the log of a VM that goes on; its end is not worth more."""
        if self.link is not None and not await self._has_told(text):
            with suppress(ShimError):
                await self.link.note(text)

    async def tell_end(self, text: str) -> None:
        """Append the last line of the log, unless it is there: whoever writes the journal now,
        and whoever did when this was tried before, here or in an earlier daemon."""
        if self._row.run.vm_id is None or await self._has_told(text):
            return
        if self.link is not None:
            try:
                await self.link.note(text)
                return
            except ShimError as error:
                _log.debug("note_refused", request_id=self._row.request_id, error=str(error))
            # Only when the shim is gone may anybody else write; the VM is of no use by now.
            await self.detach()
            await self.engine.stop(self.handle, keep_changes=self._row.job.is_kept)
            if await self._has_told(text):
                return
        self._node.run_log.append(self._row.run, text)

    async def _has_told(self, text: str) -> bool:
        return await asyncio.to_thread(self._node.run_log.ends_with, self._row.run, text)
