"""The HTTP gateway as a process of its own, as an edge runs it, in front of VMs of the bench.

python -m bench.gateway_process LISTENING_FD HOST=PORT:RUN_DIRECTORY …
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from magsd import log
from magsd.gateway.base import KeyTarget, Lease, UrlTarget
from magsd.gateway.ingress import Ingress
from magsd.gateway.ingress_settings import IngressSettings
from magsd.guest.shim import ShimConnection
from magsd.model.names import RequestId, VmId


@dataclass(frozen=True)
class _Lease:
    vm: VmId
    epoch: int
    shared: ShimConnection

    async def connection(self) -> ShimConnection:
        """See `base.Lease`."""
        return self.shared


class _Node:
    """A node that knows some VMs and asks nobody."""

    def __init__(self, targets: dict[str, UrlTarget], leases: dict[RequestId, Lease]) -> None:
        self._targets = targets
        self._leases = leases

    async def find_url(self, host: str) -> UrlTarget | None:
        """See `base.Node`."""
        return self._targets.get(host)

    async def find_key(self, fingerprint: str) -> KeyTarget | None:
        """See `base.Node`."""
        return None

    @asynccontextmanager
    async def lease(self, request_id: RequestId) -> AsyncIterator[Lease]:
        """See `base.Node`."""
        yield self._leases[request_id]


async def _main(descriptor: str, places: list[str]) -> None:
    targets: dict[str, UrlTarget] = {}
    leases: dict[RequestId, Lease] = {}
    for place in places:
        host, _, rest = place.partition("=")
        port, _, directory = rest.partition(":")
        request_id = RequestId(host)
        targets[host] = UrlTarget(request_id, int(port))
        shared = await ShimConnection.open(Path(directory))
        leases[request_id] = _Lease(VmId(host), 1, shared)
    gateway = Ingress(_Node(targets, leases), IngressSettings())
    await gateway.serve(socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    log.configure("error")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sys.argv[1], sys.argv[2:]))
