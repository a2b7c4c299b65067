"""One client's connection: its requests, one after the other, each on its own."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from magsd.gateway.client_socket import ClientSocket, GoneError
from magsd.gateway.exchange import Exchange, Gateway
from magsd.gateway.http_flow import FlowError, RequestHead, head_end, parse_request
from magsd.gateway.pages import Refusal, refusal_answer

_EMPTY_LINE: Final = b"\r\n"


class ClientConnection:
    """What a client may ask for on one connection."""

    def __init__(
        self,
        gateway: Gateway,
        client: ClientSocket,
        on_waiting: "Callable[[ClientConnection], None]",
    ) -> None:
        """`on_waiting` is called each time that a request is over and another may follow."""
        self._gateway = gateway
        self._client = client
        self._on_waiting = on_waiting
        self._is_first = True
        self._is_sending = True
        """The client may be: of what it has announced something has not come."""
        self.is_waiting = True
        """It has no request under way: it may be ended without harm."""

    async def serve(self) -> None:
        """Answer requests until the connection ends, which it has on return."""
        try:
            while (head := await self._next_request()) is not None:
                self.is_waiting = False
                may_go_on = await self._exchanged(head)
                self.is_waiting = True
                if not may_go_on:
                    break
                self._is_first = False
                self._on_waiting(self)
            await self._client.aclose(is_sending=self._is_sending)
        finally:
            if self.is_waiting:
                self._client.close()
            self._client.reset()

    async def _exchanged(self, head: RequestHead) -> bool:
        """Carry a request out; return whether another may follow."""
        task = asyncio.current_task()
        assert task is not None
        if self._client.is_ended:
            return False  # Nobody is there to read an answer.
        exchange = Exchange(self._gateway, self._client, head)
        self._client.on_gone = partial(_cancel, task)
        try:
            return await exchange.run()
        finally:
            self._is_sending = not exchange.is_body_read
            self._client.on_gone = None

    async def _next_request(self) -> RequestHead | None:
        """Return the head of the next request; None when there is none, or none that is valid."""
        try:
            head = await self._next_head()
            return None if head is None else parse_request(head)
        except FlowError as error:
            self._is_sending = True
            refusal = Refusal(error.status, error.message)
            with suppress(GoneError):
                self._client.write(refusal_answer(refusal, is_html=False, is_last=True))
            return None

    @property
    def _wait_s(self) -> float:
        settings = self._gateway.settings
        return settings.head_s if self._is_first else settings.keep_alive_s

    async def _next_head(self) -> bytes | None:
        """Return the next head. Raises `FlowError` when it is not whole in time."""
        settings = self._gateway.settings
        if not self._client.is_readable:
            try:
                async with asyncio.timeout(self._wait_s):
                    first = await self._client.read()
            except TimeoutError:
                return None
            self._client.push_back(first)
        try:
            async with asyncio.timeout(settings.head_s):
                return await self._cut_head(settings.head_max_bytes)
        except TimeoutError:
            raise FlowError(408, "the head of the request did not come in time") from None

    async def _cut_head(self, most: int) -> bytes | None:
        buffer = bytearray()
        searched = 0
        while True:
            data = await self._client.read()
            if not data:
                return None
            buffer += data
            if buffer.startswith(_EMPTY_LINE) and not searched:
                del buffer[: len(_EMPTY_LINE)]  # Some send one after a body.
            end = head_end(buffer, searched)
            if (end or len(buffer)) > most:
                raise FlowError(431, f"the head of the request is over {most >> 10} KiB")
            if end is not None:
                self._client.push_back(bytes(buffer[end:]))
                return bytes(buffer[:end])
            searched = len(buffer)


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
