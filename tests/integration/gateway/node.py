"""A node for the gateway's tests: host names, leases that are counted, VMs that are real shims."""

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass

from magsd.gateway.base import UrlTarget
from magsd.guest.shim import ShimConnection
from magsd.model.names import RequestId, VmId


@dataclass
class StandInLease:
    """The use of a VM that a shim of the test's own has."""

    vm: VmId
    epoch: int
    shared: ShimConnection

    async def connection(self) -> ShimConnection:
        return self.shared


class StandInNode:
    """Answers as the node does, from what the test has put in."""

    def __init__(self) -> None:
        self.targets: dict[str, UrlTarget] = {}
        self.vms: dict[RequestId, StandInLease] = {}
        self.held: Counter[RequestId] = Counter()
        self.leased: Counter[RequestId] = Counter()
        """How often, in all."""
        self.refusal: Exception | None = None
        """What a lease raises."""

    def publish(self, host: str, port: int, lease: StandInLease) -> None:
        request_id = RequestId(f"job-{lease.vm}")
        self.targets[host] = UrlTarget(request_id, port)
        self.vms[request_id] = lease

    async def find_url(self, host: str) -> UrlTarget | None:
        return self.targets.get(host)

    async def find_key(self, fingerprint: str) -> None:
        raise AssertionError(f"the HTTP gateway asks for no key: {fingerprint}")

    @asynccontextmanager
    async def lease(self, request_id: RequestId):
        self.leased[request_id] += 1
        self.held[request_id] += 1
        try:
            if self.refusal is not None:
                raise self.refusal
            yield self.vms[request_id]
        finally:
            self.held[request_id] -= 1
