"""TCP connections that begin inside a VM: to its own servers, and to all else that it reaches."""

import asyncio
import errno
import os
from contextlib import AsyncExitStack
from typing import Final

from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.transient import Exit, Stream
from magsd.guest.wire import Channel, pack_fields

_PATIENCE_S: Final = 12.0
"""A little longer than the agent's own: one that does not answer holds nobody."""
_ERRNO_MAX: Final = 4096


class DialError(ShimError):
    """No connection came about; `errno` says why (`ECONNREFUSED`, `ETIMEDOUT`, …)."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


async def dial(connection: ShimConnection, host: str, port: int) -> Stream:
    """Connect to a TCP server from inside the VM; return the connection as a stream.

    `host` is an address or a name that the guest resolves; `localhost` is
    127.0.0.1, and ::1 where nothing listens there. What the server sends is
    read from channel out, which ends when the server has no more; `write_eof`
    ends what it receives. To close a stream without that resets the
    connection. One that breaks raises `ShimError` where it is read.

    Raises `DialError` when the server cannot be reached within 10 s,
    `ShimError` when agent or shim refuse or the VM ends, `ValueError` for what
    is no host or port.
    """
    if not host or "\0" in host or not 1 <= port <= 65535:
        raise ValueError(f"not a place to connect to: {host!r}, port {port}")
    return await connected(
        connection, pack_fields("dial", [("host", host), ("port", str(port))]), f"{host}:{port}"
    )


async def connected(connection: ShimConnection, payload: bytes, what: str) -> Stream:
    """Open a stream that becomes a connection; return it when it has.

    Raises as `dial` does; `what` names it.
    """
    async with AsyncExitStack() as undo:
        stream = await undo.enter_async_context(await connection.open_stream(payload))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                # Channel err carries nothing: its end says that the connection stands.
                while await stream.read(Channel.ERR):
                    pass
                ended = await stream.exit() if stream.is_over else None
        except TimeoutError:
            raise DialError(f"{what}: the VM does not answer", errno.ETIMEDOUT) from None
        if ended is not None and ended.value != 0:
            raise _failure(ended, what)
        undo.pop_all()
    return stream


def _failure(ended: Exit, what: str) -> DialError:
    number = ended.value if ended.value < _ERRNO_MAX else errno.EIO
    text = ended.fields.get("error", os.strerror(number))
    return DialError(f"{what}: {text[:200]}", number)
