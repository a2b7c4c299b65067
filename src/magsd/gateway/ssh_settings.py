"""What the SSH gateway is told: its host key, and its limits."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SshSettings:
    """Of one SSH gateway. Times are in seconds, sizes in bytes."""

    host_key: bytes = field(repr=False)
    """A private key in OpenSSH's form. Clients know the service by it: it must stay the same."""
    connections_max: int = 1000
    connections_per_peer_max: int = 300
    """A peer is an IPv4 address or an IPv6 network of 64 bits."""
    handshakes_max: int = 200
    """Connections at once that have not shown a key yet. The longest of the peer that has
    most makes way for a new one."""
    channels_per_connection_max: int = 64
    """Sessions and forwarded connections at once."""
    listeners_per_connection_max: int = 32
    """Ports inside that are forwarded to the client."""
    window_bytes: int = 512 * 1024
    """So much may be on its way to the VM in one channel, and no more is held."""
    tries_max: int = 20
    """Keys and other ways to log in that a connection may try in vain."""
    login_grace_s: float = 30.0
    keepalive_s: float = 60.0
    """A client that has sent nothing for so long is asked whether it is there; the fourth
    time it is gone."""
    farewell_s: float = 3.0
    """A client whose sandbox has ended may take so long to go by itself."""
