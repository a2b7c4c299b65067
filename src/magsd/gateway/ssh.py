"""The SSH gateway: one port for all VMs, where the key says which one is meant.

It accepts connections and sees each to its end. No server runs in a guest:
what a client asks for goes through the VM's agent, as everything else does.
"""

import asyncio
import errno
import logging
import socket
from typing import Any, Final

import asyncssh
import structlog

from magsd.aio import SystemClock, Tasks, finish
from magsd.gateway.base import Node
from magsd.gateway.ssh_admission import Admission, Visitor
from magsd.gateway.ssh_connection import SshConnection
from magsd.gateway.ssh_server import SshServer
from magsd.gateway.ssh_settings import SshSettings
from magsd.gateway.ssh_visit import Visit

_SCARCE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SCARCE_S: Final = 0.1
_FULL: Final = b"mags: too many connections, try again later\r\n"
"""Lines before the protocol are allowed, and clients show them when asked for details."""

_log = structlog.get_logger()


class SshGateway:
    """Serves SSH for the VMs of a node."""

    def __init__(self, node: Node, settings: SshSettings) -> None:
        self._node = node
        self._settings = settings
        self._options = _options(settings)
        self._admission = Admission(settings)
        self._connections: dict[Visitor, SshConnection] = {}
        # It tells of every connection, with names that clients have chosen.
        logging.getLogger("asyncssh").setLevel(logging.WARNING)

    @property
    def connection_count(self) -> int:
        """How many connections there are."""
        return self._admission.count

    async def serve(self, listener: socket.socket) -> None:
        """Serve those who connect to a listening socket, until cancelled.

        The socket stays open. Connections end with the call, each with a word about why.
        """
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        tasks = Tasks(self._failed)
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(listener)
                except OSError as error:
                    await self._not_accepted(error)
                else:
                    self._begin(tasks, sock, str(address[0]))
        finally:
            await finish(tasks.aclose())

    async def _not_accepted(self, error: OSError) -> None:
        """Go on after a client that left at once; wait when the process lacks something."""
        if error.errno in _SCARCE:
            _log.warning("ssh_not_accepted", error=str(error))
            await SystemClock().sleep(_SCARCE_S)
        elif error.errno != errno.ECONNABORTED:
            raise error

    def _begin(self, tasks: Tasks, sock: socket.socket, address: str) -> None:
        admitted = self._admission.admit(address)
        if admitted is None:
            _log.info("ssh_full", peer=address, connections=self._admission.count)
            _refuse(sock)
            return
        if admitted.makes_way is not None:
            self._connections[admitted.makes_way].abort()
        visitor = admitted.visitor
        visit = Visit(
            self._node, self._settings, address, lambda: self._admission.recognise(visitor)
        )
        server = SshServer(visit)
        connection = SshConnection(self._options, server, self._settings.tries_max)
        self._connections[visitor] = connection
        task = tasks.spawn("ssh-connection", _visited(visit, connection, sock))
        task.add_done_callback(lambda _: self._leave(visitor))

    def _leave(self, visitor: Visitor) -> None:
        del self._connections[visitor]
        self._admission.leave(visitor)

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("ssh_connection_failed", task=name, exc_info=error)


async def _visited(visit: Visit, connection: SshConnection, sock: socket.socket) -> None:
    """Serve one connection to its end."""
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(lambda: connection, sock)
    except OSError as error:  # It has left already.
        sock.close()
        _log.debug("ssh_not_begun", error=str(error))
    else:
        await visit.run(connection)


def _refuse(sock: socket.socket) -> None:
    with sock:
        try:
            sock.setblocking(False)
            sock.send(_FULL)
        except OSError as error:
            _log.debug("ssh_not_told", error=str(error))


def _options(settings: SshSettings) -> asyncssh.SSHServerConnectionOptions:
    """Return what all connections share. Raises `KeyImportError` for what is no host key."""
    algorithms: dict[str, Any] = {
        "kex_algs": [
            "mlkem768x25519-sha256",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "ecdh-sha2-nistp256",
        ],
        # AES first, but it is the client that chooses.
        "encryption_algs": [
            "aes128-gcm@openssh.com",
            "aes256-gcm@openssh.com",
            "chacha20-poly1305@openssh.com",
            "aes256-ctr",
            "aes128-ctr",
        ],
        "mac_algs": ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"],
        "signature_algs": ["ssh-ed25519"],
        # None: what a client compresses takes as much memory here as it likes.
        "compression_algs": ["none"],
    }
    return asyncssh.SSHServerConnectionOptions(
        server_host_keys=[asyncssh.import_private_key(settings.host_key)],
        server_version="mags",
        login_timeout=settings.login_grace_s,
        keepalive_interval=settings.keepalive_s,
        gss_host=None,
        x11_forwarding=False,
        agent_forwarding=False,
        encoding=None,
        line_editor=False,
        **algorithms,
    )
