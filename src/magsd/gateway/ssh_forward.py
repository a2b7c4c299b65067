"""Forwarded connections: from the client to what listens inside, and the other way round."""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncssh
import structlog
from typing_extensions import override

from magsd.gateway.ssh_channels import ChannelEnd, TcpChannel
from magsd.gateway.ssh_connection import SshConnection
from magsd.gateway.ssh_visit import Visit
from magsd.guest.dial import dial
from magsd.guest.listen import Listener, listen
from magsd.guest.shim import ShimError
from magsd.guest.transient import Stream
from magsd.model.errors import MagsError

_LOOPBACK: Final = "127.0.0.1"
_HOST_MAX: Final = 255
_PORT_MAX: Final = 65535

_log = structlog.get_logger()


class Forward(ChannelEnd, asyncssh.SSHTCPSession[bytes]):
    """A connection inside that a channel of the client's is joined to."""

    channel: TcpChannel

    def __init__(self, visit: Visit, stream: Stream) -> None:
        self._visit = visit
        self._stream = stream
        self._task: asyncio.Task[None] | None = None

    @override
    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """See `asyncssh`."""
        assert isinstance(chan, TcpChannel)
        self.channel = chan

    @override
    def session_started(self) -> None:
        """See `asyncssh`."""
        self._task = self._visit.spawn("ssh-forward", self._run())

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncssh`."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async with self._stream as stream, self._visit.beside(self._upload()):
                while data := await stream.read():
                    await self.channel.send(data)
                await self.channel.drained()
                self.channel.write_eof()
                # The server inside may still read, until the client has said all.
                await stream.exit()
        except (ShimError, OSError) as error:
            _log.debug("ssh_forward_broke", error=str(error))
        if not self._visit.has_lost_vm:
            self.channel.close()  # Else it ends with the connection, which says why.

    async def _upload(self) -> None:
        while data := await self.channel.read():
            await self._stream.write(data)
        await self._stream.write_eof()


async def forward(visit: Visit, host: str, port: int) -> Forward:
    """Connect to a port inside, or to where the VM may go from inside.

    Raises `ChannelOpenError` with the reason when that fails.
    """
    if not is_address(host, port):
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "no such address")
    # By a task of the connection's: a client that leaves does not leave this behind.
    task: asyncio.Task[Forward] = visit.spawn("ssh-dial", _dialled(visit, host, port))
    return await task


async def _dialled(visit: Visit, host: str, port: int) -> Forward:
    try:
        return Forward(visit, await dial(await visit.shim(), host, port))
    except (MagsError, ShimError, ValueError) as error:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, visit.why(error)) from None


class GuestListener(asyncssh.SSHListener):
    """A port inside, whose connections are forwarded to the client."""

    def __init__(
        self, visit: Visit, connection: SshConnection, port: int, on_closed: Callable[[], None]
    ) -> None:
        super().__init__()
        self._visit = visit
        self._connection = connection
        self._port = port
        self._on_closed = on_closed
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        visit: Visit,
        connection: SshConnection,
        host: str,
        port: int,
        on_closed: Callable[[], None],
    ) -> "GuestListener | None":
        """Listen on a port of the VM's loopback, 0 for any; None when that is not possible.

        On the loopback whatever `host` says, as OpenSSH's server does unless it
        is told otherwise: what listens in a VM is reached by its URLs.
        """
        if not 0 <= port <= _PORT_MAX:
            return None
        opening = cls._opened(visit, connection, (host, port), on_closed)
        task: asyncio.Task[GuestListener | None] = visit.spawn("ssh-listen", opening)
        return await task

    @classmethod
    async def _opened(
        cls,
        visit: Visit,
        connection: SshConnection,
        asked: tuple[str, int],
        on_closed: Callable[[], None],
    ) -> "GuestListener | None":
        host, port = asked
        try:
            listener = await listen(await visit.shim(), _LOOPBACK, port)
        except (MagsError, ShimError) as error:
            _log.debug("ssh_listen_failed", port=port, error=str(error))
            return None
        self = cls(visit, connection, listener.port, on_closed)
        self._task = visit.spawn("ssh-accept", self._accept(listener, host))
        return self

    @override
    def get_port(self) -> int:
        """See `asyncssh`."""
        return self._port

    @override
    def close(self) -> None:
        """See `asyncssh`. Connections that were forwarded go on."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self._on_closed()

    @override
    async def wait_closed(self) -> None:
        """See `asyncssh`: closing takes no time."""

    async def _accept(self, listener: Listener, host: str) -> None:
        try:
            while True:
                stream, peer, peer_port = await listener.accept()
                if self._has_room:
                    self._visit.spawn("ssh-accepted", self._offer(stream, host, (peer, peer_port)))
                else:
                    await stream.aclose()
        except ShimError as error:
            _log.debug("ssh_listener_ended", port=self._port, error=str(error))
        finally:
            await listener.aclose()

    @property
    def _has_room(self) -> bool:
        most = self._visit.settings.channels_per_connection_max
        return self._connection.channel_count < most

    async def _offer(self, stream: Stream, host: str, peer: tuple[str, int]) -> None:
        """Offer a connection to the client; it is closed when the client does not want it."""
        try:
            channel = TcpChannel(self._connection, self._visit.settings.window_bytes)
            await channel.accept(lambda *_: Forward(self._visit, stream), host, self._port, *peer)
        except BaseException as error:
            await stream.aclose()
            if not isinstance(error, asyncssh.Error):
                raise
            _log.debug("ssh_connection_unwanted", error=str(error))


def is_address(host: str, port: int) -> bool:
    """Say whether a client's words can be an address that is dialled."""
    is_named = 0 < len(host) <= _HOST_MAX and host.isprintable()
    return is_named and 0 < port <= _PORT_MAX
