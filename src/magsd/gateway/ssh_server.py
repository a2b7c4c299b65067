"""What an SSH client asks for, each answered by the part that does it."""

from collections.abc import Awaitable
from typing import Final

import asyncssh
from typing_extensions import override

from magsd.gateway import ssh_login as login
from magsd.gateway.base import KeyTarget
from magsd.gateway.ssh_channels import SessionChannel, TcpChannel
from magsd.gateway.ssh_connection import SshConnection
from magsd.gateway.ssh_forward import GuestListener, forward
from magsd.gateway.ssh_session import Session
from magsd.gateway.ssh_visit import Visit
from magsd.model.errors import MagsError

_KEY_KIND: Final = b"ssh-ed25519"
"""All keys are made by the service, and of this kind. Others are not looked up."""
_WRONG_USER: Final = "There is one user here: log in as root, `ssh root@<host>`.\r\n"


class SshServer(asyncssh.SSHServer):
    """The callbacks of one connection; `asyncssh` has the words for each."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._asked: KeyTarget | None = None
        self._connection: SshConnection
        self._listeners = 0

    @override
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """See `asyncssh`."""
        assert isinstance(conn, SshConnection)
        self._connection = conn

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncssh`."""
        self._visit.close()

    # --- the login --------------------------------------------------------------

    @override
    def begin_auth(self, username: str) -> bool:
        """See `asyncssh`."""
        if username != login.USER:
            self._connection.send_auth_banner(_WRONG_USER)
        return True

    @override
    def public_key_auth_supported(self) -> bool:
        """See `asyncssh`."""
        return True

    @override
    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """See `asyncssh`: the proof follows, and then `auth_completed` without any wait."""
        self._asked = None
        if username != login.USER or key.algorithm != _KEY_KIND:
            return False
        try:
            found = await self._visit.node.find_key(key.get_fingerprint())
        except MagsError as error:
            raise asyncssh.DisconnectError(
                asyncssh.DISC_SERVICE_NOT_AVAILABLE, error.message
            ) from None
        self._asked = found
        return found is not None

    @override
    def auth_completed(self) -> None:
        """See `asyncssh`."""
        assert self._asked is not None
        self._visit.open_to(self._asked)

    # --- channels ---------------------------------------------------------------

    @override
    def session_requested(self) -> tuple[SessionChannel, Session]:
        """See `asyncssh`."""
        self._check_room()
        channel = SessionChannel(self._connection, self._visit.settings.window_bytes)
        return channel, Session(self._visit)

    @override
    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> tuple[TcpChannel, Awaitable[asyncssh.SSHTCPSession[bytes]]]:
        """See `asyncssh`."""
        self._check_room()
        channel = TcpChannel(self._connection, self._visit.settings.window_bytes)
        return channel, forward(self._visit, dest_host, dest_port)

    @override
    async def server_requested(
        self, listen_host: str, listen_port: int
    ) -> asyncssh.SSHListener | bool:
        """See `asyncssh`."""
        if self._listeners >= self._visit.settings.listeners_per_connection_max:
            return False
        self._listeners += 1
        listener = await GuestListener.open(
            self._visit, self._connection, listen_host, listen_port, self._close_listener
        )
        if listener is None:
            self._close_listener()
        return listener or False

    def _close_listener(self) -> None:
        self._listeners -= 1

    def _check_room(self) -> None:
        most = self._visit.settings.channels_per_connection_max
        if self._connection.channel_count >= most:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE,
                f"{most} channels are open in this connection: close one, or connect again",
            )
