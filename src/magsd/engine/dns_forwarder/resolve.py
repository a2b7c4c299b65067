"""Asking the host's resolvers, and what of their answer goes to the guest."""

import asyncio
import contextlib
import os
from typing import Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
from typing_extensions import override

from magsd.engine.dns_forwarder.screen import Policy, parse_policy, parse_resolvers, refusal

_PAYLOAD_BYTES: Final = 1232
_TRY_S: Final = 2.0
# A guest's resolver gives up after 5 s: before that it is told.
_ANSWER_S: Final = 4.5

_TRY_ANOTHER: Final = {dns.rcode.SERVFAIL, dns.rcode.REFUSED}


class _Exchange(asyncio.DatagramProtocol):
    """One question to one resolver by UDP."""

    def __init__(self, request: dns.message.Message) -> None:
        self._request = request
        self.response: asyncio.Future[dns.message.Message] = (
            asyncio.get_running_loop().create_future()
        )

    @override
    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Take the first answer that fits; anything else is not from our resolver."""
        with contextlib.suppress(dns.exception.DNSException, ValueError):
            response = dns.message.from_wire(data, ignore_trailing=True)
            if self._request.is_response(response) and not self.response.done():
                self.response.set_result(response)

    @override
    def error_received(self, exc: Exception) -> None:
        """Nobody listens there."""
        if not self.response.done():
            self.response.set_exception(exc)


async def _ask_by_udp(request: dns.message.Message, server: str) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    transport, exchange = await loop.create_datagram_endpoint(
        lambda: _Exchange(request), remote_addr=(server, 53)
    )
    try:
        transport.sendto(request.to_wire())
        return await exchange.response
    finally:
        transport.close()


async def _ask_by_tcp(request: dns.message.Message, server: str) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(server, 53)
    try:
        writer.write(request.to_wire(prepend_length=True))
        length = int.from_bytes(await reader.readexactly(2), "big")
        response = dns.message.from_wire(await reader.readexactly(length))
    finally:
        writer.close()
    if not request.is_response(response):
        raise dns.exception.FormError
    return response


async def _ask(
    request: dns.message.Message, server: str, *, by_tcp: bool
) -> dns.message.Message | None:
    """Return what a resolver says; None: nothing, or nothing that can be read."""
    try:
        async with asyncio.timeout(_TRY_S):
            response = await _ask_by_udp(request, server)
            if by_tcp and response.flags & dns.flags.TC:
                response = await _ask_by_tcp(request, server)
            return response
    except (OSError, EOFError, TimeoutError, dns.exception.DNSException, ValueError):
        return None


class Forwarder:
    """Answers queries: what to refuse, whom to ask, what to take out."""

    def __init__(self, *, policy_fd: int, resolv_conf: str, own: str) -> None:
        self._policy_fd = policy_fd
        self._resolv_conf = resolv_conf
        self._own = own
        self._policy = Policy()
        self._policy_seen = self._resolvers_seen = -1
        self._resolvers: tuple[str, ...] = ("127.0.0.1",)

    def reload(self) -> None:
        """Read again what has changed: the policy, the host's resolvers."""
        if (seen := os.fstat(self._policy_fd).st_mtime_ns) != self._policy_seen:
            # Half written: the old one counts until the next query.
            with contextlib.suppress(ValueError, KeyError):
                self._policy = parse_policy(os.pread(self._policy_fd, 1 << 20, 0).decode())
                self._policy_seen = seen
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (seen := os.stat(self._resolv_conf).st_mtime_ns) != self._resolvers_seen:
                with open(self._resolv_conf, encoding="utf-8") as file:
                    self._resolvers = parse_resolvers(file.read(), self._own)
                self._resolvers_seen = seen

    async def answer(self, wire: bytes, *, by_tcp: bool) -> bytes | None:
        """Return the answer to a query; None: it deserves none."""
        self.reload()
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            return None
        if query.flags & dns.flags.QR:
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        if (code := refusal(query, self._policy)) is not None:
            reply.set_rcode(code)
        elif (response := await self._resolve(query, by_tcp=by_tcp)) is None:
            reply.set_rcode(dns.rcode.SERVFAIL)
        else:
            self._policy.screen(response)
            reply.set_rcode(response.rcode())
            reply.flags |= response.flags & (dns.flags.TC | dns.flags.AD)
            reply.sections[1:] = response.sections[1:]
        most = 65535 if by_tcp else min(max(query.payload, 512), _PAYLOAD_BYTES)
        return reply.to_wire(max_size=most, prefer_truncation=True)

    async def _resolve(
        self, query: dns.message.Message, *, by_tcp: bool
    ) -> dns.message.Message | None:
        question = query.question[0]
        request = dns.message.make_query(
            question.name,
            question.rdtype,
            use_edns=0,
            payload=_PAYLOAD_BYTES,
            want_dnssec=bool(query.ednsflags & dns.flags.DO),
        )
        last: dns.message.Message | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                for server in (*self._resolvers, *self._resolvers):
                    last = await _ask(request, server, by_tcp=by_tcp) or last
                    if last is not None and last.rcode() not in _TRY_ANOTHER:
                        break
        return last
