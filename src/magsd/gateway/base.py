"""What a gateway asks of the node that has the VMs."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from magsd.guest.shim import ShimConnection
from magsd.model.names import RequestId, VmId


@dataclass(frozen=True, slots=True)
class UrlTarget:
    """What a host name leads to."""

    request_id: RequestId
    port: int
    """Where the server inside listens, on the VM's loopback."""


@dataclass(frozen=True, slots=True)
class KeyTarget:
    """What an SSH key opens."""

    request_id: RequestId
    environment: dict[str, str]
    """Of everything that is started by it, complete."""


class Lease(Protocol):
    """The use of an awake VM inside a `with` block."""

    @property
    def vm(self) -> VmId:
        """Which VM it is."""

    @property
    def epoch(self) -> int:
        """Which life of its run that is: a VM that was woken cold is another one."""

    async def connection(self) -> ShimConnection:
        """Return a connection that can open streams and nothing else.

        All leases of one VM in this process share it: it is not the caller's
        to close, and streams are closed by whoever opened them. Raises
        `ShimError` when the VM has ended.
        """


class Node(Protocol):
    """Answers for the VMs of a machine. Every method raises `CapacityError` when it is away."""

    async def find_url(self, host: str) -> UrlTarget | None:
        """Return what a host name (lower case, no port, no trailing dot) was granted to reach.

        None for what is unknown, revoked or deleted. Wakes nothing.
        """

    async def find_key(self, fingerprint: str) -> KeyTarget | None:
        """Return what the key with an OpenSSH fingerprint (`SHA256:…`) opens, None if nothing.

        Each time a key is found its time begins anew. Wakes nothing.
        """

    def lease(self, request_id: RequestId) -> AbstractAsyncContextManager[Lease]:
        """Use the VM of a job inside the block; one that sleeps is woken, once for all who wait.

        Raises `NotFoundError` when the job is gone, `ConflictError` when it
        has no VM that could be used, `CapacityError` when it could not be
        woken in time.
        """
