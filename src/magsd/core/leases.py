"""Leases: who holds one uses a VM, which therefore stays awake.

A lease is asked for by whoever is about to reach into the VM of a job, for as
long as it takes: a command, a session, a request. A VM that sleeps is woken
for it. It hands out where the VM is, plain data, and never the VM itself.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from magsd.core.node import Node
from magsd.core.remains import handle_of
from magsd.core.supervisor import Supervisor
from magsd.engine.base import Handle
from magsd.model.errors import ConflictError
from magsd.model.lifecycle import ASLEEP, RunState, Status
from magsd.model.records import JobStatus, Run


@dataclass(frozen=True, slots=True)
class Lease:
    """The use of a VM inside a `with` block."""

    run: Run
    """As it was when the lease began."""
    handle: Handle


class Leases:
    """The leases of a node's VMs."""

    def __init__(self, node: Node, supervisor: Supervisor) -> None:
        self._node = node
        self._supervisor = supervisor

    @asynccontextmanager
    async def hold(self, status: JobStatus) -> AsyncIterator[Lease]:
        """Use the VM of a job inside the block; one that sleeps is woken, once for all who wait.

        The caller was found to be allowed to. Raises `ConflictError` when it has no VM
        that could be used, `CapacityError` when it could not be woken in time.
        """
        request_id = status.request_id
        try:
            with self._node.uses.use(request_id):
                yield await self._awake(status)
        finally:
            if self._supervisor.run_of(request_id) is None:  # It has ended meanwhile.
                self._node.uses.forget(request_id)

    async def _awake(self, status: JobStatus) -> Lease:
        request_id = status.request_id
        run = self._supervisor.run_of(request_id)
        if run is not None and (run.state in ASLEEP or self._node.uses.is_closed(request_id)):
            await self._supervisor.wake(request_id)
            run = self._supervisor.run_of(request_id)
        if run is None or run.state is not RunState.RUNNING:
            raise ConflictError(_why_not(status))
        handle = handle_of(self._node, run)
        assert handle is not None
        return Lease(run, handle)


def _why_not(status: JobStatus) -> str:
    """Return why nothing can be done in the VM of a job that does not run."""
    if status.status is Status.PENDING:
        return "the job has no VM yet: wait until its status is `running`"
    if status.is_final:
        return f"the job is over (status: {status.status}): submit it again"
    return "the job is ending: nothing can be run in its VM any more"
