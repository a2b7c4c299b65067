"""A connection to a shim for somebody else: it can open streams, and nothing more.

Made by whoever may do everything, before it is handed to another process. The
shim keeps to it: of a scoped connection it takes no verb and no durable stream.
"""

import asyncio
import socket
from pathlib import Path
from typing import Final

from magsd.guest.link import ShimError
from magsd.guest.shim import connected
from magsd.guest.wire import HEADER_BYTES, Frame, FrameReader, Kind, WireError, encode, pack_fields
from magsd.guest.wire import parse_fields as fields_of

_SCOPE_S: Final = 5.0
_REQUEST: Final = 1


async def open_scoped(run_directory: Path) -> socket.socket:
    """Connect to the shim of a run directory and give all but streams up.

    Nothing else was said on the connection, so that nothing but the answers to
    its streams comes on it. Raises `ShimError`.
    """
    sock = connected(run_directory)
    try:
        async with asyncio.timeout(_SCOPE_S):
            await _scope(sock)
    except (OSError, WireError, TimeoutError) as error:
        sock.close()
        raise ShimError(f"the shim gave no connection for streams: {error!r}") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _scope(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    request = Frame(Kind.REQUEST, 0, value=_REQUEST, payload=pack_fields("scope"))
    await loop.sock_sendall(sock, encode(request))
    reader, frames = FrameReader(), list[Frame]()
    while not frames:
        # No more than is asked for: what follows the answer belongs to who gets the socket.
        data = await loop.sock_recv(sock, HEADER_BYTES)
        if not data:
            raise ShimError("the shim closed the connection")
        frames = reader.feed(data)
    (reply,) = frames
    if reply.kind is not Kind.REPLY or reply.value != _REQUEST:
        raise WireError(f"{reply.kind.name} in place of an answer")
    if error := fields_of(reply.payload).get("error"):
        raise ShimError(error)
