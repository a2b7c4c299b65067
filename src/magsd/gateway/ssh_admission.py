"""Which SSH connections there are, and which may come in beside them. No I/O."""

import ipaddress
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from magsd.gateway.ssh_settings import SshSettings

_IPV6_NETWORK_BITS: Final = 64


@dataclass(eq=False, slots=True)
class Visitor:
    """One connection, as the limits see it."""

    peer: str
    is_known: bool = field(default=False)
    """It has shown a key that opens something."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection that may come in, and the one that has to go for it."""

    visitor: Visitor
    makes_way: Visitor | None


class Admission:
    """Counts connections and decides about new ones."""

    def __init__(self, settings: SshSettings) -> None:
        self._settings = settings
        self._peers: Counter[str] = Counter()
        self._strangers: dict[Visitor, None] = {}
        self._strangers_of: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many connections there are."""
        return self._peers.total()

    def admit(self, address: str) -> Admitted | None:
        """Count a new connection from an address, or return None: it is one too many.

        Nobody can keep others out by many slow handshakes: past the limit the
        oldest goes of whoever has most of them.
        """
        visitor = Visitor(peer_of(address))
        limits = self._settings
        if self.count >= limits.connections_max:
            return None
        if self._peers[visitor.peer] >= limits.connections_per_peer_max:
            return None
        makes_way = None
        if len(self._strangers) >= limits.handshakes_max:
            [(most, _)] = self._strangers_of.most_common(1)
            makes_way = next(each for each in self._strangers if each.peer == most)
            self._know(makes_way)
        self._peers[visitor.peer] += 1
        self._strangers[visitor] = None
        self._strangers_of[visitor.peer] += 1
        return Admitted(visitor, makes_way)

    def recognise(self, visitor: Visitor) -> None:
        """Note that a connection has shown its key."""
        visitor.is_known = True
        self._know(visitor)

    def leave(self, visitor: Visitor) -> None:
        """Forget a connection that has ended."""
        self._know(visitor)
        self._take(self._peers, visitor.peer)

    def _know(self, visitor: Visitor) -> None:
        if visitor in self._strangers:
            del self._strangers[visitor]
            self._take(self._strangers_of, visitor.peer)

    @staticmethod
    def _take(counts: Counter[str], peer: str) -> None:
        counts[peer] -= 1
        if not counts[peer]:
            del counts[peer]


def peer_of(address: str) -> str:
    """Return whom an address belongs to: whoever has one of IPv6 has 2⁶⁴ of them."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, _IPV6_NETWORK_BITS), strict=False))
