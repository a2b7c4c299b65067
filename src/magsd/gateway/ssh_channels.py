"""The channels of an SSH connection, each with what it holds bounded and awaitable.

A channel here is read and written by a task, as a stream to a guest is; what
asyncssh would hold for it packet by packet is held as bytes, one window at
most, and a window is given back when its bytes were read.
"""

import asyncio
from typing import Any, Final

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.misc import MaybeAwait
from asyncssh.packet import SSHPacket, UInt32
from asyncssh.session import SSHSession
from typing_extensions import override

from magsd.gateway import ssh_login as login
from magsd.gateway.ssh_connection import SshConnection

PACKET_MAX: Final = 32 * 1024
_PACKET_MIN: Final = 1024
"""No client takes less, but for one that wants what it is sent to cost much."""
STDERR: Final = asyncssh.EXTENDED_DATA_STDERR


class _Channel(SSHChannel[bytes]):
    """What both kinds share."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._held = bytearray()
        self._has_input = asyncio.Event()
        self._is_ended = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        # Told as soon as a byte waits for the client's window, and when none does any more.
        self.set_write_buffer_limits(high=0, low=0)

    async def read(self) -> bytes:
        """Return what the client has sent, at least a byte; nothing at its end."""
        await self._has_input.wait()
        data = bytes(self._held)
        self._held.clear()
        if not self._is_ended:
            self._has_input.clear()
            self._grant()
        return data

    async def send(self, data: bytes, datatype: int | None = None) -> None:
        """Send to the client, as fast as it takes it. Raises `OSError` when the channel is closed.

        What was sent before has left when this returns; these bytes are on their way.
        """
        connection = self.get_connection()
        assert isinstance(connection, SshConnection)
        while not self._may_write.is_set() or connection.is_full:
            await self._may_write.wait()
            await connection.writable()
        self.write(data, datatype)

    async def drained(self) -> None:
        """Wait until the client's window has taken all that was sent."""
        await self._may_write.wait()

    # --- for the session --------------------------------------------------------

    def end_input(self) -> None:
        """Note that the client sends nothing more."""
        self._is_ended = True
        self._has_input.set()

    def pause(self) -> None:
        """Note that bytes wait for the client's window."""
        self._may_write.clear()

    def resume(self) -> None:
        """Note that none do."""
        self._may_write.set()

    # --- for asyncssh -----------------------------------------------------------

    @override
    def process_open(
        self,
        send_chan: int,
        send_window: int,
        send_pktsize: int,
        session: MaybeAwait[SSHSession[bytes]],
    ) -> None:
        """See `asyncssh`."""
        super().process_open(send_chan, send_window, max(send_pktsize, _PACKET_MIN), session)

    @override
    def process_open_confirmation(
        self, send_chan: int, send_window: int, send_pktsize: int, packet: SSHPacket
    ) -> None:
        """See `asyncssh`."""
        super().process_open_confirmation(
            send_chan, send_window, max(send_pktsize, _PACKET_MIN), packet
        )

    @override
    def _accept_data(self, data: bytes, datatype: int | None = None) -> None:
        if data and self._send_state not in {"close_pending", "closed"}:
            self._recv_window -= len(data)
            self._held += data
            self._has_input.set()

    def _grant(self) -> None:
        spent = self._init_recv_window - self._recv_window
        if spent >= self._init_recv_window // 2:
            self._recv_window += spent
            self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(spent))


class SessionChannel(_Channel, asyncssh.SSHServerChannel[bytes]):
    """A channel for a shell, a command or SFTP."""

    def __init__(self, connection: SshConnection, window: int) -> None:
        loop = asyncio.get_running_loop()
        editor = (False, False, 0, 0)  # Lines are the guest's affair.
        super().__init__(connection, loop, True, *editor, None, "strict", window, PACKET_MAX)
        self.variables: dict[str, str] = {}
        """What the client has set."""

    # Requests are found by their names. These are answered at once: asyncssh makes a
    # task of each of the first two, and lets all that follow wait without limit.

    @override
    def _process_x11_req_request(self, packet: SSHPacket) -> bool:
        return False

    @override
    def _process_auth_agent_req_at_openssh_dot_com_request(  # type: ignore[override]
        self, packet: SSHPacket
    ) -> bool:
        return False

    @override
    def _process_env_request(self, packet: SSHPacket) -> bool:
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        if not login.may_set(name, value, len(self.variables)):
            return False
        self.variables[name.decode("utf-8", "surrogateescape")] = value.decode(
            "utf-8", "surrogateescape"
        )
        return True

    @override
    def _process_exec_request(self, packet: SSHPacket) -> bool:
        # Names of files need not be UTF-8.
        command = packet.get_string().decode("utf-8", "surrogateescape")
        packet.check_end()
        return self._start_session(command=command)


class TcpChannel(_Channel, asyncssh.SSHTCPChannel[bytes]):
    """A channel for a forwarded connection."""

    def __init__(self, connection: SshConnection, window: int) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(connection, loop, None, "strict", window, PACKET_MAX)


class ChannelEnd:
    """What asyncssh tells of a channel; `asyncssh` has the words for each call."""

    channel: _Channel

    def pause_writing(self) -> None:
        """See `asyncssh`."""
        self.channel.pause()

    def resume_writing(self) -> None:
        """See `asyncssh`."""
        self.channel.resume()

    def eof_received(self) -> bool:
        """See `asyncssh`. The other direction stays open."""
        self.channel.end_input()
        return True
