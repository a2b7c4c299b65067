"""What a guest may ask, what it may be told, and how much of it. No I/O."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import dns.exception
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

_IN_FLIGHT: Final = 256
_IN_FLIGHT_PER_SOURCE: Final = 48
_RATE_PER_S: Final = 100.0
_BURST: Final = 200.0
_SOURCES: Final = 16384
_NAT64: Final = IPv6Network("64:ff9b::/96")
_TRANSFERS: Final = {dns.rdatatype.AXFR, dns.rdatatype.IXFR}
_ADDRESSES: Final = {dns.rdatatype.A, dns.rdatatype.AAAA}
_SERVICES: Final = {dns.rdatatype.SVCB, dns.rdatatype.HTTPS}
_HINTS: Final = (4, 6)


@dataclass(frozen=True)
class Policy:
    """Which addresses an answer may name."""

    denied: tuple[IPv4Network, ...] = ()
    allowed: tuple[IPv4Network, ...] = ()

    def permits(self, text: str) -> bool:
        """Tell whether a guest may be told this address."""
        address = ip_address(text)
        if isinstance(address, IPv6Address):
            inside = _embedded(address)
            return address.is_global if inside is None else self.permits(str(inside))
        if any(address in network for network in self.allowed):
            return True
        return not any(address in network for network in self.denied)

    def permits_record(self, record: Any) -> bool:
        """Tell whether a guest may see this record."""
        if record.rdtype in _ADDRESSES:
            return self.permits(record.address)
        if record.rdtype in _SERVICES:
            hints = [record.params[key].addresses for key in _HINTS if key in record.params]
            return all(self.permits(address) for addresses in hints for address in addresses)
        return True

    def screen(self, response: dns.message.Message) -> None:
        """Take out of a response what a guest may not see.

        Refuses it as a whole when no address is left of those it was to bring.
        """
        was_address = any(rrset.rdtype in _ADDRESSES for rrset in response.answer)
        for section in response.sections[1:]:
            section[:] = list(self._screened(section))
        if was_address and not any(rrset.rdtype in _ADDRESSES for rrset in response.answer):
            for section in response.sections[1:]:
                section.clear()
            response.set_rcode(dns.rcode.REFUSED)

    def _screened(self, section: list[dns.rrset.RRset]) -> Iterator[dns.rrset.RRset]:
        for rrset in section:
            kept = [record for record in rrset if self.permits_record(record)]
            if kept:
                yield dns.rrset.from_rdata_list(rrset.name, rrset.ttl, kept)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def parse_policy(text: str) -> Policy:
    """Read the policy file. Raises `ValueError`, also for one that is half written."""
    known = json.loads(text)
    return Policy(
        denied=tuple(map(IPv4Network, known["denied"])),
        allowed=tuple(map(IPv4Network, known["allowed"])),
    )


def parse_resolvers(text: str, own: str) -> tuple[str, ...]:
    """Return the nameservers of a resolv.conf, without this forwarder itself."""
    found = [
        words[1]
        for words in map(str.split, text.splitlines())
        if len(words) > 1 and words[0] == "nameserver" and words[1] != own
    ]
    return tuple(found[:3]) or ("127.0.0.1",)


def refusal(query: dns.message.Message, policy: Policy) -> dns.rcode.Rcode | None:
    """Return what to answer at once; None: the query is to be forwarded."""
    if query.opcode() != dns.opcode.QUERY:
        return dns.rcode.NOTIMP
    if len(query.question) != 1 or query.question[0].rdclass != dns.rdataclass.IN:
        return dns.rcode.REFUSED
    question = query.question[0]
    if question.rdtype in _TRANSFERS:
        return dns.rcode.REFUSED
    with contextlib.suppress(dns.exception.DNSException, ValueError):
        if not policy.permits(dns.reversename.to_address(question.name)):
            return dns.rcode.NXDOMAIN
    return None


class Limits:
    """How much one guest may ask, so that the others are served."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[float, float]] = {}
        self._in_flight: Counter[str] = Counter()

    def admits(self, source: str, now: float) -> bool:
        """Count a query of `source` that comes at `now` (seconds). False: drop it."""
        if self._in_flight[source] >= _IN_FLIGHT_PER_SOURCE or (
            self._in_flight.total() >= _IN_FLIGHT
        ):
            return False
        tokens, since = self._tokens.get(source, (_BURST, now))
        tokens = min(_BURST, tokens + (now - since) * _RATE_PER_S)
        admitted = tokens >= 1
        if source not in self._tokens and len(self._tokens) >= _SOURCES:
            self._tokens.clear()
        self._tokens[source] = (tokens - admitted, now)
        return admitted

    @contextlib.contextmanager
    def in_flight(self, source: str) -> Iterator[None]:
        """Hold a place while a query of `source` is worked on."""
        self._in_flight[source] += 1
        try:
            yield
        finally:
            self._in_flight[source] -= 1
            if not self._in_flight[source]:
                del self._in_flight[source]
