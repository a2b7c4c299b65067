"""What the HTTP gateway is told."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSettings:
    """Limits of the HTTP gateway, and whom it believes. Times in seconds."""

    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Whose word on where a request comes from counts."""
    certificate: bytes | None = field(default=None, repr=False)
    """PEM, with the chain; with it, connections are TLS. `key` belongs to it."""
    key: bytes | None = field(default=None, repr=False)
    """PEM, not encrypted."""

    connections_max: int = 2048
    """Of clients, at once; one more takes the place of the one that has waited longest."""
    streams_per_vm: int = 128
    """Connections to servers inside one VM, at once, by one process; what has none waits for its
    turn. A shim grants 192 to all gateways together."""
    waiting_per_vm: int = 2048
    """Requests that may wait for that."""
    head_max_bytes: int = 64 * 1024
    """Of a request and of an answer."""

    head_s: float = 15
    """For the head of a request, from its first byte or from the connection's beginning."""
    keep_alive_s: float = 75
    """That a connection may wait for its next request."""
    stall_s: float = 60
    """That a client may neither send what it has announced nor take what it is sent."""
    turn_s: float = 30
    """That a request may wait for a connection to its VM."""
    answer_s: float = 600
    """That a server inside may take until it begins to answer."""
    upstream_idle_s: float = 2
    """That a connection to a server inside is kept for the next request."""
    upgrade_idle_s: float = 30
    """After which a connection that has been upgraded, and moves nothing, keeps no VM awake."""
    startup_s: float = 3
    """For a port to open in a VM that was not reached before: it may just have been woken."""
    drain_s: float = 3
    """For requests under way, when the gateway is to end."""
