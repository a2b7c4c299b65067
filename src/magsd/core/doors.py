"""The ways from outside into the VMs of a node: what is granted, and what a gateway may ask.

The gateways run in processes that strangers' bytes reach. They find a job by a
name or a key, hold a lease of its VM, and get a connection that opens streams;
a job that nothing was granted of they cannot touch.
"""

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress

from magsd.core import environment
from magsd.core.access import Access
from magsd.core.aliases import Aliases
from magsd.core.entries import Entries
from magsd.core.grants import Grants
from magsd.core.jobs import Jobs
from magsd.core.leases import Lease, Leases
from magsd.core.node import Node
from magsd.guest.scoped import open_scoped
from magsd.model.errors import CapacityError, NotFoundError
from magsd.model.grants import PUBLISHED_DOMAIN
from magsd.model.names import RequestId


class Doors:
    """Grants and aliases, and what they open."""

    def __init__(self, node: Node, access: Access, jobs: Jobs, leases: Leases) -> None:
        self._node = node
        self._leases = leases
        domains = (node.settings.apps_domain.lower(), PUBLISHED_DOMAIN)
        self._entries = Entries(node.events, node.clock, domains)
        self.grants = Grants(node, access, jobs, leases, self._entries)
        self.aliases = Aliases(node, self._entries)
        self.trouble: Callable[[], str | None] = lambda: None
        """Says why what is granted cannot be reached; set by who runs the gateways."""

    @property
    def domain(self) -> str:
        """The domain below which jobs and aliases have names."""
        return self._node.settings.apps_domain

    def url_of(self, subdomain: str) -> str:
        """Return the URL of a job or alias."""
        return self._node.settings.url_of(subdomain)

    async def load(self) -> None:
        """Read what is granted, once the jobs that live are known."""
        await self.grants.load()
        await self.aliases.load()

    async def aclose(self) -> None:
        """Write down what is known of keys that were used."""
        with suppress(CapacityError):
            await self.grants.tidy()

    def find_url(self, host: str) -> tuple[RequestId, int] | None:
        """Return the job and the port that a host name (lower case) leads to. Wakes nothing."""
        return self._entries.find_url(host)

    async def find_key(self, fingerprint: str) -> tuple[RequestId, Mapping[str, str]] | None:
        """Return the job that a key opens, and the variables of what is run there. Wakes nothing."""
        request_id = self._entries.use_key(fingerprint)
        if request_id is None:
            return None
        try:
            return request_id, await environment.of_job(self._node.database, request_id)
        except NotFoundError:
            return None

    def lease(self, request_id: RequestId) -> AbstractAsyncContextManager[Lease]:
        """Use the VM of a job that something was granted of. See `Leases.hold`.

        Raises `NotFoundError` at once for any other job.
        """
        status = self._node.events.get(request_id)
        if status is None or status.is_final or not self._entries.may_enter(status):
            raise NotFoundError("there is no such job, or nothing opens it")
        return self._leases.hold(status)

    async def connect(self, lease: Lease) -> socket.socket:
        """Return a connection to a leased VM that opens streams and can do no more.

        Raises `ShimError` when the VM has ended.
        """
        return await open_scoped(lease.handle.run_directory)
