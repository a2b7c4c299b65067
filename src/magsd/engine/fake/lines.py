"""The link between the engine and the host of its VMs: JSON objects, a line each, both ways.

Owns their way and nothing of what they mean; both ends use it.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final, cast

from typing_extensions import override

SOCKET_NAME: Final = "fake.sock"
"""In the folder of the run directories."""

Message = dict[str, Any]


class LineLink(asyncio.Protocol):
    """One end of a link. What is no message ends it."""

    def __init__(
        self,
        on_message: Callable[[Message], None],
        on_lost: Callable[[], None],
        greeting: Callable[[], Message] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._greeting = greeting
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self.is_lost = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # Not asserted: uvloop's transports are no instances of it.
        self._transport = cast("asyncio.Transport", transport)
        if self._greeting is not None:
            self.send(self._greeting())

    @override
    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                self.close()
                return
            self._on_message(message)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_lost = True
        self._on_lost()

    def send(self, message: Message) -> None:
        """Send a message; nothing happens when the link has ended."""
        if self._transport is not None and not self.is_lost:
            self._transport.write(json.dumps(message).encode() + b"\n")

    def close(self) -> bool:
        """End the link when all that was sent is out. Idempotent. False: it never began."""
        if self._transport is not None:
            self._transport.close()
        return self._transport is not None
