"""The lease of one request: taken, let go meanwhile, taken again."""

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from magsd.gateway.base import Lease, Node
from magsd.guest.shim import ShimError
from magsd.model.names import RequestId


class Hold:
    """A lease of a job's VM inside a `with` block, unless it is let go there."""

    def __init__(self, node: Node, request_id: RequestId) -> None:
        self._node = node
        self._request_id = request_id
        self._context: AbstractAsyncContextManager[Lease] | None = None
        self._lease: Lease | None = None
        self._turn = asyncio.Lock()

    @property
    def lease(self) -> Lease:
        """The lease, or what it was."""
        assert self._lease is not None
        return self._lease

    @property
    def is_held(self) -> bool:
        """Whether the VM is kept awake."""
        return self._context is not None

    async def take(self) -> None:
        """Take the lease, again where it was let go. Raises as `Node.lease` does, and `ShimError`
        when the VM is in another life than it was."""
        async with self._turn:
            if self._context is not None:
                return
            context = self._node.lease(self._request_id)
            lease = await context.__aenter__()
            self._context = context
            before, self._lease = self._lease, lease
            if before is not None and (before.vm, before.epoch) != (lease.vm, lease.epoch):
                raise ShimError("the VM has begun another life meanwhile")

    async def let_go(self) -> None:
        """Keep the VM awake no longer. Idempotent."""
        async with self._turn:
            context, self._context = self._context, None
            if context is not None:
                await context.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        await self.take()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.let_go()
