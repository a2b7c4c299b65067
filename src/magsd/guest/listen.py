"""Servers of a caller's on the loopback of a VM: who connects there becomes a stream here."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

from magsd.guest.dial import connected
from magsd.guest.link import ShimError
from magsd.guest.shim import ShimConnection
from magsd.guest.transient import Stream
from magsd.guest.wire import WireError, pack_fields, parse_number

_LINE_MAX_BYTES: Final = 256


class Listener:
    """A port inside a VM. It ends with `aclose`, best by `async with`.

    Connections that were accepted go on when it ends.
    """

    def __init__(self, connection: ShimConnection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._rest = b""
        self.port = 0
        """Where it listens."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def accept(self) -> tuple[Stream, str, int]:
        """Wait for the next connection; return it, and its peer's address and port.

        The stream is as `dial` returns one. Of those who wait to be accepted
        there are 16 at most, for 10 s each. Raises `ShimError` when the
        listener or the VM has ended. One caller at a time.
        """
        while True:
            number, host, port = await self._peer()
            payload = pack_fields("accept", [("id", str(number))])
            try:
                stream = await connected(self._connection, payload, f"{host}:{port}")
            except ShimError:
                # It was not there any more. Had the VM ended, there is no next one either.
                continue
            return stream, host, port

    async def aclose(self) -> None:
        """Stop listening; who was not accepted is hung up on. Idempotent."""
        await self._stream.aclose()

    async def read_port(self) -> None:
        """Learn where it listens. Raises `ShimError` when it does not."""
        line = await self._line()
        if line is None:
            ended = await self._stream.exit()
            ended.check("listen")
            raise ShimError("listen: it has ended")
        self.port = _number(line)

    async def _peer(self) -> tuple[int, str, int]:
        line = await self._line()
        if line is None:
            raise ShimError("the listener has ended")
        number, _, peer = line.partition(" ")
        host, _, port = peer.partition(" ")
        return _number(number), host, _number(port)

    async def _line(self) -> str | None:
        """Return the next line; None when there is none."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LINE_MAX_BYTES:
                raise ShimError("the guest's list of connections is none")
            piece = await self._stream.read()
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("ascii", "replace")


async def listen(connection: ShimConnection, host: str, port: int) -> Listener:
    """Listen inside the VM, on an address of its loopback; port 0 is any that is free.

    Raises `ShimError` with the system's reason when that cannot be,
    `ValueError` for what is no host or port.
    """
    if not host or "\0" in host or not 0 <= port <= 65535:
        raise ValueError(f"not a place to listen at: {host!r}, port {port}")
    payload = pack_fields("listen", [("host", host), ("port", str(port))])
    async with AsyncExitStack() as undo:
        stream = await undo.enter_async_context(await connection.open_stream(payload))
        listener = Listener(connection, stream)
        await listener.read_port()
        undo.pop_all()
    return listener


def _number(text: str) -> int:
    try:
        return parse_number(text)
    except WireError as error:
        raise ShimError(f"the guest's list of connections is none: {error}") from error
