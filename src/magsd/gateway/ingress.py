"""The HTTP gateway: requests from anywhere to servers inside VMs.

Owns the listening side: who is connected, how many, and for how long they may
do nothing. Each request is framed, authorised and routed on its own
(`exchange`): one connection of a client may lead to many VMs, one connection
into a VM serves that VM.
"""

import asyncio
import os
import socket
import ssl
from contextlib import AsyncExitStack
from typing import Final

import structlog

from magsd.aio import Clock, SystemClock, Tasks
from magsd.gateway.base import Node
from magsd.gateway.client_connection import ClientConnection
from magsd.gateway.client_socket import ClientSocket
from magsd.gateway.exchange import Gateway
from magsd.gateway.ingress_settings import IngressSettings
from magsd.gateway.upstreams import Upstreams
from magsd.model.errors import InvalidError

_BACKLOG: Final = 2048
_log = structlog.get_logger()


class Ingress:
    """The gateway of one process."""

    def __init__(self, node: Node, settings: IngressSettings, clock: Clock | None = None) -> None:
        """Raises `InvalidError` when the certificate of the settings is none."""
        self._settings = settings
        self._clock = clock or SystemClock()
        self._tls = _tls_of(settings)
        self._upstreams = Upstreams(settings, self._clock)
        self._gateway = Gateway(
            node=node,
            upstreams=self._upstreams,
            settings=settings,
            clock=self._clock,
            is_encrypted=self._tls is not None,
            is_ending=lambda: self._is_ending,
        )
        self._is_ending = False
        self._tasks = Tasks(_report)
        self._connections: dict[ClientConnection, asyncio.Task[None]] = {}
        """In the order in which they came, or began to wait."""
        self._ended = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Serve on a listening socket, which is closed then, until cancelled.

        What is under way then has a few seconds to end.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._upstreams.aclose)
            undo.push_async_callback(self._tasks.aclose)
            self._tasks.spawn("ingress-sweep", self._upstreams.sweep())
            server = await loop.create_server(
                self._protocol,
                sock=listener,
                ssl=self._tls,
                backlog=_BACKLOG,
                ssl_handshake_timeout=self._settings.head_s if self._tls else None,
            )
            undo.push_async_callback(self._drain)
            undo.callback(server.close)
            await asyncio.Event().wait()

    # --- connections -----------------------------------------------------------

    def _protocol(self) -> ClientSocket:
        return ClientSocket(self._begin, self._settings.stall_s)

    def _begin(self, client: ClientSocket) -> None:
        if self._is_ending or not self._has_room():
            client.reset()
            return
        connection = ClientConnection(self._gateway, client, self._note_waiting)
        task = self._tasks.spawn("ingress-connection", connection.serve())
        self._connections[connection] = task
        task.add_done_callback(lambda _: self._forget(connection))

    def _note_waiting(self, connection: ClientConnection) -> None:
        """Put a connection behind those that have waited longer."""
        if (task := self._connections.pop(connection, None)) is not None:
            self._connections[connection] = task

    def _forget(self, connection: ClientConnection) -> None:
        self._connections.pop(connection, None)
        if not self._connections:
            self._ended.set()

    def _has_room(self) -> bool:
        """Make room for a connection by ending the one that has waited longest for a request."""
        if len(self._connections) < self._settings.connections_max:
            return True
        for connection, task in self._connections.items():
            if connection.is_waiting:
                del self._connections[connection]
                task.cancel()
                return True
        return False

    async def _drain(self) -> None:
        """Let requests that are under way end, for a while; no other begins."""
        self._is_ending = True
        for connection, task in list(self._connections.items()):
            if connection.is_waiting:
                task.cancel()
        if self._connections:
            self._ended.clear()
            try:
                async with asyncio.timeout(self._settings.drain_s):
                    await self._ended.wait()
            except TimeoutError:
                _log.info("requests were cut", count=len(self._connections))


def _tls_of(settings: IngressSettings) -> ssl.SSLContext | None:
    """Return how connections are encrypted; None: they are not."""
    if settings.certificate is None or settings.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # The library reads files only: these are in memory, and nobody else can open them.
    certificate, key = _file_of(settings.certificate), _file_of(settings.key)
    try:
        context.load_cert_chain(_path_of(certificate), _path_of(key))
    except (ssl.SSLError, OSError) as error:
        message = "the certificate for HTTPS and its key are not a pair in PEM"
        raise InvalidError(message, str(error)) from error
    finally:
        os.close(certificate)
        os.close(key)
    return context


def _file_of(content: bytes) -> int:
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _report(name: str, error: BaseException) -> None:
    _log.error("a task of the gateway failed", task=name, exc_info=error)
