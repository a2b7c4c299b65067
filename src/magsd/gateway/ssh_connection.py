"""The server's end of one SSH connection, with all that a client can make it hold bounded.

Owns nothing but that. asyncssh has the protocol; it was not made for clients
who mean harm, so what it leaves open is closed here, by way of names that are
its own affair. `pyproject.toml` holds it to releases that were looked at.

- It writes to the transport whatever a client's windows allow, up to 4 GiB a
  channel, read or not: here senders ask `is_full` first, which a transport
  with much unsent is, and a connection whose keys are being exchanged.
- It answers requests of a client that reads no answers: who leaves too much
  unread is not read from either.
- It takes a packet off the front of all bytes received, which costs their
  square: it is given them in slices.
- It holds everything received while one packet is being dealt with, and every
  request that waits for an answer of ours: beyond a number the connection ends.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import asyncssh
from typing_extensions import override

from magsd.guest.link import Change

_SLICE: Final = 16 * 1024
_UNPARSED_MAX: Final = 512 * 1024
"""One packet has up to 256 KiB, and one reading of the socket as much."""
_REQUESTS_MAX: Final = 512
_UNSENT_FULL: Final = 256 * 1024
_UNSENT_MAX: Final = 1 << 20
"""Beyond it the client is not read from. Channels stop long before."""


class SshConnection(asyncssh.SSHServerConnection):
    """See the module. `server` is told what the client asks for."""

    def __init__(
        self,
        options: asyncssh.SSHServerConnectionOptions,
        server: asyncssh.SSHServer,
        tries_max: int,
    ) -> None:
        super().__init__(asyncio.get_running_loop(), options)
        self._protocol_factory: Callable[[], asyncssh.SSHServer] = lambda: server
        self._changed = Change()
        self._is_choked = False
        self._is_deaf = False
        self._tries_left = tries_max
        self._lookups_left = 2 * tries_max

    # --- what the client sends --------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # Not asserted: uvloop's transports are no instances of it.
        cast("asyncio.Transport", transport).set_write_buffer_limits(_UNSENT_FULL)
        super().connection_made(transport)

    @override
    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """See `asyncio.Protocol`."""
        for start in range(0, len(data), _SLICE):
            super().data_received(data[start : start + _SLICE])
            if self._transport is None:
                return
            self._check_held()

    def _check_held(self) -> None:
        assert self._transport is not None
        if (
            len(self._inpbuf) > _UNPARSED_MAX
            or len(self._global_request_queue) > _REQUESTS_MAX
            or len(self._deferred_packets) > _REQUESTS_MAX
        ):
            self.connection_lost(asyncssh.ProtocolError("more at once than is taken"))
        elif not self._is_deaf and self._transport.get_write_buffer_size() > _UNSENT_MAX:
            self._is_deaf = True
            self._transport.pause_reading()

    # --- what it is sent --------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether senders have to wait for `writable`."""
        return self._is_choked or not self._kex_complete

    async def writable(self) -> None:
        """Wait until the client has taken most of what was sent."""
        while self.is_full:
            await self._changed.wait()

    @override
    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_choked = True

    @override
    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_choked = False
        if self._is_deaf and self._transport is not None:
            self._is_deaf = False
            self._transport.resume_reading()
        self._changed.tell()

    @override
    def _send_deferred_packets(self) -> None:
        # Called when an exchange of keys, or the login, is through.
        super()._send_deferred_packets()
        self._changed.tell()

    # --- channels ---------------------------------------------------------------

    @property
    def channel_count(self) -> int:
        """How many channels there are, those that are being opened included."""
        return len(self._channels)

    # --- the login --------------------------------------------------------------

    @override
    async def reload_config(self) -> None:
        """Do nothing: no option depends on the user, and reading them anew takes a thread."""

    @override
    async def validate_public_key(
        self, username: str, key_data: bytes, msg: bytes, signature: bytes
    ) -> bool:
        """See `asyncssh`. Raises `DisconnectError` when a client only ever asks."""
        self._lookups_left -= 1
        if self._lookups_left < 0:
            raise _too_many_tries()
        return await super().validate_public_key(username, key_data, msg, signature)

    @override
    def send_userauth_failure(self, partial_success: bool) -> None:
        """See `asyncssh`. Raises `DisconnectError` for one try too many."""
        self._tries_left -= 1
        # A client begins by asking for the ways to log in, which fails too.
        if self._tries_left < -1:
            raise _too_many_tries()
        super().send_userauth_failure(partial_success)

    # --- the end ----------------------------------------------------------------

    def dismiss(self, why: str) -> None:
        """End the connection at once, with a word.

        Unlike `disconnect` it does not close channels before: a client whose
        last one is closed does not wait for a word.
        """
        if self._transport is not None:
            self._send_disconnect(asyncssh.DISC_BY_APPLICATION, why, "en-US")
            self.abort()

    async def ended(self) -> None:
        """End the connection at once if it has not ended, and all that it runs."""
        if self._transport is not None:
            self.abort()
        if self._owner is not None:
            await self.wait_closed()
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def _too_many_tries() -> asyncssh.DisconnectError:
    return asyncssh.DisconnectError(
        asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many tries to log in"
    )
