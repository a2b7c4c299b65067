"""The last published status of every job that matters now, and a way to wait for the next.

Owns the in-memory picture that status polls are answered from: all jobs that
are alive, and as many ended ones as fit. It is told, after the rows are
committed, by whoever owns a run; it reads nothing itself.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from magsd.model.names import AccountId, RequestId
from magsd.model.records import JobStatus


class Events:
    """Published statuses by job."""

    def __init__(self, ended_max: int) -> None:
        self._live: dict[RequestId, JobStatus] = {}
        self._ended: OrderedDict[RequestId, JobStatus] = OrderedDict()
        self._ended_max = ended_max
        self._waiting: dict[RequestId, set[asyncio.Future[None]]] = {}
        self._of_workspace: dict[tuple[AccountId, str], RequestId] = {}
        self.on_end: Callable[[RequestId], object] | None = None
        """Told of each job that has ended."""

    def publish(self, status: JobStatus) -> None:
        """Show `status` from now on and wake everyone who waits for the job."""
        request_id = status.request_id
        if status.is_final:
            self._live.pop(request_id, None)
            self._leave_workspace(status)
            self.remember(status)
            if self.on_end is not None:
                self.on_end(request_id)
        else:
            self._live[request_id] = status
            self._take_workspace(status)
        for waiter in self._waiting.pop(request_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def remember(self, status: JobStatus) -> None:
        """Keep the status of an ended job in memory, at the expense of the one unused longest."""
        self._ended[status.request_id] = status
        self._ended.move_to_end(status.request_id)
        if len(self._ended) > self._ended_max:
            self._ended.popitem(last=False)

    def forget(self, request_id: RequestId) -> None:
        """Take note that an ended job is no more."""
        self._ended.pop(request_id, None)

    def get(self, request_id: RequestId) -> JobStatus | None:
        """Return what was published last, if it is still in memory."""
        return self._live.get(request_id) or self._ended.get(request_id)

    def holder_of(self, account_id: AccountId, workspace: str) -> JobStatus | None:
        """Return the job that has a workspace, by the workspace's name, if any does."""
        request_id = self._of_workspace.get((account_id, workspace))
        return None if request_id is None else self._live.get(request_id)

    async def changed(self, request_id: RequestId, after_generation: int) -> JobStatus | None:
        """Return the status once it is newer than `after_generation` or final.

        None when the job is not in memory, so that nothing will be published.
        Never gives up: the caller sets the deadline.
        """
        while (status := self.get(request_id)) is not None:
            if status.generation > after_generation or status.is_final:
                return status
            waiter = asyncio.get_running_loop().create_future()
            waiters = self._waiting.setdefault(request_id, set())
            waiters.add(waiter)
            try:
                await waiter
            finally:
                self._forget(request_id, waiter)
        return None

    def _take_workspace(self, status: JobStatus) -> None:
        if status.workspace_id is None:
            return
        held = self.holder_of(status.account_id, status.workspace_id)
        # One that is being stopped may still be there, and speak.
        if held is None or held.created_at <= status.created_at:
            self._of_workspace[status.account_id, status.workspace_id] = status.request_id

    def _leave_workspace(self, status: JobStatus) -> None:
        key = (status.account_id, status.workspace_id or "")
        if self._of_workspace.get(key) == status.request_id:
            del self._of_workspace[key]

    def _forget(self, request_id: RequestId, waiter: asyncio.Future[None]) -> None:
        if waiters := self._waiting.get(request_id):
            waiters.discard(waiter)
            if not waiters:
                del self._waiting[request_id]
