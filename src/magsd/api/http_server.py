"""The HTTP server: uvicorn, told what this project wants of it.

Adds to it a limit on the size of a request's head, refusals in our own form
where a request is no HTTP, and a stop that does not wait for held requests.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from magsd.api.errors import error_response
from magsd.api.waits import Waits
from magsd.model.errors import ErrorCode

HEAD_MAX_BYTES: Final = 64 * 1024
_KEEP_ALIVE_S: Final = 75
_GRACE_S: Final = 5
_OFFER: Final = re.compile(rb"\r\nupgrade:[ \t]*h2c[^\r\n]*", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _is_in_head = False
    _is_in_request = False

    @override
    def data_received(self, data: bytes) -> None:
        """Parse what came; end a connection whose request begins without end."""
        if not self._is_in_request and b"h2c" in data:
            data = without_offer(data)
        was_in_head = self._is_in_head
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        # What came before a head in the same piece belonged to another request.
        self._head_bytes += len(data) if was_in_head else 0
        if self._head_bytes > HEAD_MAX_BYTES:
            self.send_400_response(f"the head of the request is over {HEAD_MAX_BYTES >> 10} KiB")

    @override
    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._is_in_head = self._is_in_request = True
        self._head_bytes = 0
        super().on_message_begin()

    @override
    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._is_in_head = False
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        """Note that what follows is another request."""
        self._is_in_request = False
        super().on_message_complete()

    @override
    def send_400_response(self, msg: str) -> None:
        """Refuse in the form that all our errors have."""
        reply = error_response(ErrorCode.INVALID, msg)
        headers = [*reply.raw_headers, (b"connection", b"close")]
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(reply.body))
        self.transport.close()


def without_offer(data: bytes) -> bytes:
    """Return the beginning of a request without its offer to go on in HTTP/2.

    The parser takes everything behind such an offer for the other protocol,
    and so loses the body. Java's client makes it with each first request.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _OFFER.sub(b"", head) + end + rest


class HttpServer(uvicorn.Server):
    """An app behind a listening socket."""

    def __init__(self, app: ASGIApp, waits: Waits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._waits = waits

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until `stop`; then finish what is under way, for a few seconds at most."""
        await self.serve(sockets=[listener])

    def stop(self) -> None:
        """Let `run_on` return; asked a second time, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @override
    async def shutdown(self, sockets: Any = None) -> None:
        """Answer what is held, then everything else."""
        self._waits.stop()
        await super().shutdown(sockets)

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever owns the process."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
