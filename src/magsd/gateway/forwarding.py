"""What is passed on of a head, in either direction, and who a client is. No I/O.

Of what a client says about itself and its way here (`X-Forwarded-*`,
`Forwarded`, `X-Real-IP`) only that counts which a trusted proxy says. Fields
that are about one connection end here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from magsd.gateway.http_flow import SWITCHING, AnswerHead, Body, Field, Framing, RequestHead

Network = IPv4Network | IPv6Network

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"content-length",  # Written anew, as what was read.
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
_ABOUT_CLIENTS: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-real-ip",
    }
)
_NEVER_TRAILERS: Final = (
    _HOP_BY_HOP
    | _ABOUT_CLIENTS
    | {b"authorization", b"cookie", b"set-cookie", b"trailer", b"content-encoding"}
    | {b"content-type", b"content-range", b"cache-control"}
)
_PROTOCOLS: Final = frozenset({b"http", b"https"})
_CHAIN_MAX: Final = 32
_FORWARDED_FOR: Final = re.compile(
    rb"""(?:^|[;,])[ \t]*[Ff][Oo][Rr]=(?:"\[?([^"\]]*)\]?[^"]*"|([^;,"\s]+))"""
)
_NAMED_HOST: Final = re.compile(rb"[A-Za-z0-9._:\[\]-]{1,262}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as the server inside is told."""

    chain: tuple[bytes, ...]
    """Addresses of the client and of the proxies behind it, as `X-Forwarded-For` has them."""
    client: bytes
    """The last of them that is no trusted proxy's."""
    protocol: bytes
    host: bytes


def origin(
    head: RequestHead, peer: str, *, is_encrypted: bool, trusted: Sequence[Network]
) -> Origin:
    """Return where a request comes from. `peer`: the address of the connection's other end."""
    address = _address(peer)
    here = peer.encode("ascii", "replace")
    protocol = b"https" if is_encrypted else b"http"
    if address is None or not _is_in(address, trusted):
        return Origin((here,), here, protocol, head.authority)
    told = _told(head)
    chain = (*told, here)[-_CHAIN_MAX:]
    protocols = _values(head, b"x-forwarded-proto")
    hosts = _values(head, b"x-forwarded-host")
    if len(protocols) == 1 and protocols[0].lower() in _PROTOCOLS:
        protocol = protocols[0].lower()
    host = hosts[0] if len(hosts) == 1 and _NAMED_HOST.fullmatch(hosts[0]) else head.authority
    return Origin(chain, _client(chain, trusted), protocol, host)


def request_head(head: RequestHead, source: Origin) -> bytes:
    """Return the head that the server inside gets."""
    lines = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (head.method, head.target, head.authority)]
    lines += [
        b"%b: %b\r\n" % field
        for field in head.fields
        if (name := field[0].lower()) not in _HOP_BY_HOP
        and name not in head.lists
        # A server that takes `_` for `-` would take these for ours.
        and name.replace(b"_", b"-") not in _ABOUT_CLIENTS
    ]
    lines += _about(source)
    lines.append(_framing(head.body))
    if any(name.lower() == b"te" and b"trailers" in value.lower() for name, value in head.fields):
        lines.append(b"TE: trailers\r\n")
    if head.awaits_continue:
        lines.append(b"Expect: 100-continue\r\n")
    if head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    lines.append(b"\r\n")
    return b"".join(lines)


def answer_body(answer: AnswerHead, request: RequestHead) -> Body:
    """Return how the body of an answer is framed for the client."""
    if answer.body.framing in (Framing.NONE, Framing.LENGTH):
        return answer.body
    return Body(Framing.CHUNKED if request.is_newest else Framing.UNTIL_END)


def answer_head(answer: AnswerHead, request: RequestHead, *, is_last: bool) -> bytes:
    """Return the head that the client gets. `is_last`: its connection ends with this answer."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, answer.reason)]
    lines += [
        b"%b: %b\r\n" % field
        for field in answer.fields
        if (name := field[0].lower()) not in _HOP_BY_HOP and name not in answer.lists
    ]
    if answer.status == SWITCHING:
        lines += [b"Upgrade: %b\r\n" % value for name, value in answer.fields if _is_upgrade(name)]
        lines.append(b"Connection: Upgrade\r\n")
    elif not answer.is_interim:
        lines.append(_answer_framing(answer, request))
        if is_last:
            lines.append(b"Connection: close\r\n")
        elif not request.is_newest:
            lines.append(b"Connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def trailers(fields: list[Field]) -> list[Field]:
    """Return those trailers that may be passed on: none that would change what a head has said."""
    return [
        field for field in fields if field[0].lower().replace(b"_", b"-") not in _NEVER_TRAILERS
    ]


def _answer_framing(answer: AnswerHead, request: RequestHead) -> bytes:
    if answer.body.framing is not Framing.NONE:
        return _framing(answer_body(answer, request))
    # Of a body that does not come, such as that of an answer to HEAD: told, not meant.
    lengths = [value for name, value in answer.fields if name.lower() == b"content-length"]
    if len(lengths) == 1 and lengths[0].isdigit() and answer.status != 204:
        return b"Content-Length: %b\r\n" % lengths[0]
    return b""


def _framing(body: Body) -> bytes:
    match body.framing:
        case Framing.LENGTH:
            return b"Content-Length: %d\r\n" % body.length
        case Framing.CHUNKED:
            return b"Transfer-Encoding: chunked\r\n"
        case Framing.NONE | Framing.UNTIL_END:
            return b""


def _is_upgrade(name: bytes) -> bool:
    return name.lower() == b"upgrade"


def _about(source: Origin) -> list[bytes]:
    elements = [b"for=%b" % _node(address) for address in source.chain]
    elements[-1] += b';host="%b";proto=%b' % (source.host, source.protocol)
    return [
        b"X-Forwarded-For: %b\r\n" % b", ".join(source.chain),
        b"X-Forwarded-Proto: %b\r\n" % source.protocol,
        b"X-Forwarded-Host: %b\r\n" % source.host,
        b"X-Real-IP: %b\r\n" % source.client,
        b"Forwarded: %b\r\n" % b", ".join(elements),
    ]


def _node(address: bytes) -> bytes:
    return b'"[%b]"' % address if b":" in address else address


def _told(head: RequestHead) -> list[bytes]:
    """Return the addresses that a trusted proxy tells: what is none is left out."""
    told = [
        part.strip() for value in _values(head, b"x-forwarded-for") for part in value.split(b",")
    ]
    if not told:
        told = [
            quoted or plain
            for value in _values(head, b"forwarded")
            for quoted, plain in _FORWARDED_FOR.findall(value)
        ]
    found = (_address(part.decode("latin-1")) for part in told[-_CHAIN_MAX:])
    return [str(address).encode() for address in found if address is not None]


def _client(chain: Sequence[bytes], trusted: Sequence[Network]) -> bytes:
    for text in reversed(chain):
        address = _address(text.decode("latin-1"))
        if address is None or not _is_in(address, trusted):
            return text
    return chain[0]


def _values(head: RequestHead, name: bytes) -> list[bytes]:
    return [value for given, value in head.fields if given.lower() == name]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address, without zone and port; None when it is none."""
    host, colon, port = text.partition(":")
    if colon and port.isdigit() and "." in host:
        text = host
    elif text.startswith("["):
        text = text[1:].partition("]")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)
