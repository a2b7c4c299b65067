"""One request and its answer: to whom, by which connection, and what when that fails.

An answer that has begun is never ended as if it were whole when it is not:
the client's connection is cut then.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from magsd.aio import Clock
from magsd.gateway import forwarding
from magsd.gateway.base import Node
from magsd.gateway.client_socket import ClientSocket, GoneError, StalledError
from magsd.gateway.hold import Hold
from magsd.gateway.http_body import BodyError, BodyReader, chunk, last_chunk, reader_of, whole
from magsd.gateway.http_flow import (
    SWITCHING,
    AnswerError,
    AnswerHead,
    Framing,
    RequestHead,
    parse_answer,
)
from magsd.gateway.ingress_settings import IngressSettings
from magsd.gateway.pages import Refusal, refusal_answer
from magsd.gateway.upgraded import carry
from magsd.gateway.upstreams import Upstream, Upstreams
from magsd.guest.shim import ShimError
from magsd.model.errors import CapacityError, ConflictError, NotFoundError

_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
_IDLE_MAX_S: Final = 1.0
"""How long a connection may have waited that gets a request which cannot be sent twice: servers
keep theirs for longer, so that it does not meet the end of one."""
_INTERIM_MAX: Final = 16
_WAKING_RETRY_S: Final = 3


class _StaleError(Exception):
    """The server has ended a connection that had waited, before it had a request of it."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What all exchanges share."""

    node: Node
    upstreams: Upstreams
    settings: IngressSettings
    clock: Clock
    is_encrypted: bool
    is_ending: Callable[[], bool]
    """No connection is to be kept for another request."""


class Exchange:
    """One request of a client, whose head has been read."""

    def __init__(self, gateway: Gateway, client: ClientSocket, head: RequestHead) -> None:
        self._gateway = gateway
        self._client = client
        self._head = head
        self.is_body_read = head.body.is_empty
        """All of the request has come, and was passed on."""
        self._has_begun = False
        """The head of the final answer is on its way to the client."""
        self._patience: asyncio.Timeout | None = None

    async def run(self) -> bool:
        """Carry it out; return whether the client's connection can have another one."""
        try:
            try:
                return await self._answered()
            except Refusal as refusal:
                return self._refuse(refusal)
        except (GoneError, StalledError):
            self._client.reset()
            return False

    async def _answered(self) -> bool:
        """Return as `run` does; what fails is a `Refusal`."""
        try:
            return await self._routed()
        except BodyError as error:
            raise Refusal(400, f"the request is not valid: {error}") from error
        except AnswerError as error:
            raise Refusal(502, f"the server inside the VM answered wrongly: {error}") from error
        except ShimError as error:
            raise Refusal(502, "the VM ended while it had the request: try again") from error
        except NotFoundError as error:
            raise Refusal(404, error.message) from error
        except (ConflictError, CapacityError) as error:
            raise Refusal(503, error.message, retry_after_s=_WAKING_RETRY_S) from error

    def _refuse(self, refusal: Refusal) -> bool:
        if self._has_begun:
            self._client.reset()
            return False
        is_last = self._is_last()
        self._client.write(
            refusal_answer(
                refusal,
                is_html=self._head.reads_html,
                has_body=self._head.method != b"HEAD",
                is_last=is_last,
            )
        )
        return not is_last

    def _is_last(self) -> bool:
        is_kept = self._head.keeps_alive and self.is_body_read
        return not is_kept or self._gateway.is_ending()

    # --- the way to the server -------------------------------------------------

    async def _routed(self) -> bool:
        target = await self._gateway.node.find_url(self._head.host)
        if target is None:
            raise Refusal(
                404, "nothing is published under this name: ask for access to a port first"
            )
        async with Hold(self._gateway.node, target.request_id) as hold:
            idle_max_s = _IDLE_MAX_S
            if self._head.method in _IDEMPOTENT and self.is_body_read:
                try:
                    longest_s = self._gateway.settings.upstream_idle_s
                    return await self._by_connection(hold, target.port, longest_s)
                except _StaleError:
                    idle_max_s = 0
            try:
                return await self._by_connection(hold, target.port, idle_max_s)
            except _StaleError:
                raise AnswerError("it closed the connection without an answer") from None

    async def _by_connection(self, hold: Hold, port: int, idle_max_s: float) -> bool:
        """Return whether the client's connection can have another request."""
        upstreams, lease = self._gateway.upstreams, hold.lease
        upstream = await upstreams.take(lease, port, idle_max_s=idle_max_s)
        is_reusable = False
        try:
            await self._send_head(upstream)
            if self.is_body_read:
                is_kept, is_reusable = await self._answer(upstream, hold)
            else:
                is_kept, is_reusable = await self._answer_beside_body(upstream, hold)
        finally:
            await upstreams.give(lease, upstream, is_reusable=is_reusable)
        return is_kept

    async def _send_head(self, upstream: Upstream) -> None:
        settings = self._gateway.settings
        source = forwarding.origin(
            self._head,
            self._client.peer,
            is_encrypted=self._gateway.is_encrypted,
            trusted=settings.trusted_proxies,
        )
        try:
            await upstream.stream.write(forwarding.request_head(self._head, source))
        except ShimError as error:
            raise _broken(upstream, error) from error

    async def _answer_beside_body(self, upstream: Upstream, hold: Hold) -> tuple[bool, bool]:
        """Send the body while the answer may come already; return as `_answer` does."""
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send_body(upstream), name="request-body")
                outcome = await self._answer(upstream, hold)
                sending.cancel()
                return outcome
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _send_body(self, upstream: Upstream) -> None:
        reader = reader_of(self._head.body)
        is_chunked = self._head.body.framing is Framing.CHUNKED
        try:
            while not reader.is_done:
                content = await self._next_content(reader)
                if content:
                    await upstream.stream.write(chunk(content) if is_chunked else content)
                if upstream.stream.is_over:
                    return
                self._be_patient()
            if is_chunked:
                await upstream.stream.write(last_chunk(forwarding.trailers(reader.trailers)))
        except ShimError:
            return  # What the server has said before that is its answer; else reading tells.
        self._client.push_back(reader.rest)
        self.is_body_read = True

    async def _next_content(self, reader: BodyReader) -> bytes:
        """Return content of the client's body, or nothing. Raises `Refusal`, `BodyError`."""
        try:
            data = await self._client.read_soon()
        except StalledError:
            raise Refusal(408, "the body of the request did not come: send it again") from None
        if data:
            return reader.feed(data)
        reader.end()
        return b""

    # --- the way back ----------------------------------------------------------

    async def _answer(self, upstream: Upstream, hold: Hold) -> tuple[bool, bool]:
        """Pass the answer to the client.

        Return whether its connection, and whether the server's, can have another request.
        """
        answer = await self._next_answer(upstream)
        for _ in range(_INTERIM_MAX):
            if not answer.is_interim:
                break
            if self._head.is_newest:
                self._client.write(forwarding.answer_head(answer, self._head, is_last=False))
            answer = await self._next_answer(upstream)
        else:
            raise AnswerError(f"more than {_INTERIM_MAX} interim answers")
        if answer.status == SWITCHING:
            await self._switch(answer, upstream, hold)
            return False, False
        return await self._pass_back(answer, upstream)

    async def _next_answer(self, upstream: Upstream) -> AnswerHead:
        settings = self._gateway.settings
        try:
            async with asyncio.timeout(settings.answer_s) as self._patience:
                head = await upstream.head(settings.head_max_bytes)
        except TimeoutError:
            text = f"the server on port {upstream.port} did not answer in {settings.answer_s:g} s"
            raise Refusal(504, text) from None
        except ShimError as error:
            raise _broken(upstream, error) from error
        finally:
            self._patience = None
        if head is None:
            raise _closed(upstream)
        return parse_answer(head, self._head.method)

    def _be_patient(self) -> None:
        """Count the time for an answer anew: the server has just had a part of the body."""
        if self._patience is not None and not self._patience.expired():
            later = asyncio.get_running_loop().time() + self._gateway.settings.answer_s
            self._patience.reschedule(later)

    async def _pass_back(self, answer: AnswerHead, upstream: Upstream) -> tuple[bool, bool]:
        framing = forwarding.answer_body(answer, self._head).framing
        is_last = self._is_last() or framing is Framing.UNTIL_END
        reader = reader_of(answer.body)
        self._has_begun = True
        self._client.write(forwarding.answer_head(answer, self._head, is_last=is_last))
        data = upstream.take_rest()
        while not reader.is_done:
            if data and (content := _content(reader, data)):
                self._client.write(chunk(content) if framing is Framing.CHUNKED else content)
                await self._client.drained()
            if not reader.is_done:
                data = await upstream.stream.read()
                if not data:
                    whole(reader, "the answer is not whole")
        has_more = bool(reader.rest or (data and answer.body.is_empty))
        if framing is Framing.CHUNKED:
            self._client.write(last_chunk(forwarding.trailers(reader.trailers)))
        is_reusable = not has_more and answer.keeps_alive and self.is_body_read
        return not is_last, is_reusable

    async def _switch(self, answer: AnswerHead, upstream: Upstream, hold: Hold) -> None:
        """Go on as the server and the client have agreed, until they end it."""
        if self._head.upgrade is None:
            raise AnswerError("it switches to another protocol, which nobody asked for")
        self._has_begun = True
        self._client.on_gone = None  # An end of one direction is passed on.
        self._client.write(forwarding.answer_head(answer, self._head, is_last=False))
        await carry(self._client, upstream, hold, self._gateway.settings, self._gateway.clock)


def _content(reader: BodyReader, data: bytes) -> bytes:
    try:
        return reader.feed(data)
    except BodyError as error:
        raise AnswerError(str(error)) from error


def _broken(upstream: Upstream, error: ShimError) -> Exception:
    return _StaleError() if upstream.requests else error


def _closed(upstream: Upstream) -> Exception:
    if upstream.requests:
        return _StaleError()
    return AnswerError("it closed the connection without an answer")
