"""What a VM leaves behind: given back to the host, its journal put away and indexed.

Done for every run when it has ended, and again at the start of the daemon for
those that a crash kept from it. What no run knows goes with the engine's sweep.
"""

import asyncio
from functools import partial

import structlog

from magsd.aio import backoff_s, finish
from magsd.core.node import Node
from magsd.db import log_index
from magsd.engine.base import Handle
from magsd.model.names import AccountId
from magsd.model.records import Run

_RETRY_MOST_S = 60.0

_log = structlog.get_logger()


def handle_of(node: Node, run: Run) -> Handle | None:
    """Return where the VM of a run is, or was, found; None when it has none."""
    if run.vm_id is None:
        return None
    return Handle(run.vm_id, run.epoch, node.places.run_directory(run.vm_id).resolve())


async def give_back(node: Node, run: Run, account_id: AccountId) -> None:
    """End what is left of a run's VM and put its journal away.

    May be asked again, and is, after a failure at any step; whoever asks
    meanwhile waits for the same.
    """
    if (handle := handle_of(node, run)) is not None:
        begin = partial(_give_back, node, run, handle, account_id)
        await finish(node.given_back.do(handle.vm, begin))


async def _give_back(node: Node, run: Run, handle: Handle, account_id: AccountId) -> None:
    await node.snapshots.drop(handle.vm)
    # Without its engine, which an operator may have taken away, only files are left.
    if (engine := node.engines.get(run.engine)) is not None:
        await engine.stop(handle)
    size_bytes = await asyncio.to_thread(node.places.size_bytes, handle.vm)
    if not size_bytes:
        await asyncio.to_thread(node.places.remove, handle.vm)
        node.archive.want()  # It may have been put away before something failed.
        return
    # The row comes first: a log without one would be kept for ever.
    await node.database.write(
        lambda tx: log_index.add(
            tx,
            request_id=run.request_id,
            epoch=run.journal,
            account_id=account_id,
            node=node.settings.node,
            size_bytes=size_bytes,
            at=node.clock.now(),
        )
    )
    await asyncio.to_thread(node.places.put_away, run.request_id, run.journal, handle.vm)
    node.archive.want()


async def give_back_at_last(node: Node, run: Run, account_id: AccountId) -> None:
    """Try to give back until it is done: a host's resources are never forgotten."""
    attempt = 0
    while True:
        try:
            await give_back(node, run, account_id)
            return
        except Exception:  # noqa: BLE001 - tried again, and each failure told
            _log.exception("give_back_failed", run_id=run.run_id, vm=run.vm_id)
        await node.clock.sleep(backoff_s(attempt, most_s=_RETRY_MOST_S))
        attempt += 1
