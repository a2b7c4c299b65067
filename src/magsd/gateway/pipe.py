"""One end of the socket between node and edge: whole messages both ways, sockets one way.

A message is its length (4 bytes, big endian) and that many bytes. With one that
goes to the edge a socket may travel; what is sent to the node carries none, and
any that comes is closed by the kernel. What messages mean is `messages`' part.
"""

import asyncio
import socket
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_LENGTH_BYTES: Final = 4
_READ_BYTES: Final = 64 * 1024
_INT_BYTES: Final = array("i").itemsize
_CONTROL_BYTES: Final = socket.CMSG_SPACE(8 * _INT_BYTES)
"""Room for descriptors; with each message comes one at the most."""
_UNSENT_MAX: Final = 4 << 20
"""Bytes that wait for the other side to read them before it is given up."""


@dataclass(slots=True)
class _Unsent:
    """Messages, and the socket that goes with the first byte of them."""

    data: bytearray
    carried: socket.socket | None


class Pipe:
    """A connected Unix stream socket. Its callbacks are called by the event loop."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[bytes], None],
        on_end: Callable[[str], None],
        message_max: int,
        takes_sockets: bool = False,
    ) -> None:
        """Take over `sock`. `message_max`: bytes of the longest message that may come.

        `on_message` ends the pipe by raising `ValueError`; `on_end` is called
        once, with the reason.
        """
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._message_max = message_max
        self._takes_sockets = takes_sockets
        self._received = bytearray()
        self._sockets: deque[socket.socket] = deque()
        self._unsent: deque[_Unsent] = deque()
        self._unsent_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.end_reason: str | None = None
        """Why it is of no use any more; None while it is."""

    def start(self) -> None:
        """Begin to receive, on the running loop."""
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, message: bytes, carried: socket.socket | None = None) -> None:
        """Send a message after those sent before, and close `carried` once it has gone.

        Never waits; when the other side reads too little the pipe ends. Does
        nothing once it has ended.
        """
        if self.end_reason is not None:
            if carried is not None:
                carried.close()
            return
        data = len(message).to_bytes(_LENGTH_BYTES, "big") + message
        is_first = not self._unsent
        if is_first or carried is not None:
            self._unsent.append(_Unsent(bytearray(data), carried))
        else:
            self._unsent[-1].data += data
        self._unsent_bytes += len(data)
        if is_first:
            self._flush()
        if self._unsent_bytes > _UNSENT_MAX:
            self.end("the other side does not read")

    def take_socket(self) -> socket.socket:
        """Return the socket that came with a message. Raises `ValueError` when none did."""
        if not self._sockets:
            raise ValueError("a message without the socket that it speaks of")
        return self._sockets.popleft()

    def end(self, reason: str) -> None:
        """Close the socket now; what is unsent is dropped. Idempotent."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for unsent in self._unsent:
            if unsent.carried is not None:
                unsent.carried.close()
        self._unsent.clear()
        while self._sockets:
            self._sockets.popleft().close()
        self._on_end(reason)

    # --- receiving -------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = self._receive()
        except BlockingIOError:
            return
        except OSError as error:
            self.end(f"it broke: {error}")
            return
        if not data:
            self.end("the other side closed it")
            return
        self._received += data
        try:
            self._deliver()
        except ValueError as error:
            self.end(f"the protocol was broken: {error}")

    def _receive(self) -> bytes:
        if not self._takes_sockets:
            # Without room for descriptors: the kernel closes those that come.
            return self._sock.recv(_READ_BYTES)
        # By hand: `socket.recv_fds` of Python 3.11 passes no flags on.
        data, control, flags, _ = self._sock.recvmsg(
            _READ_BYTES, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array("i", content[: len(content) - len(content) % _INT_BYTES])
                self._sockets.extend(socket.socket(fileno=number) for number in numbers)
        if flags & socket.MSG_CTRUNC:
            self.end("more descriptors came than there is room for")
        return data

    def _deliver(self) -> None:
        while self.end_reason is None and (message := self._next()) is not None:
            self._on_message(message)

    def _next(self) -> bytes | None:
        if len(self._received) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        if length > self._message_max:
            raise ValueError(f"a message of {length} bytes, and {self._message_max} is the limit")
        end = _LENGTH_BYTES + length
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH_BYTES:end])
        del self._received[:end]
        return message

    # --- sending ---------------------------------------------------------------

    def _flush(self) -> None:
        assert self._loop is not None
        try:
            while self._unsent:
                self._send_some(self._unsent[0])
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._flush)
            return
        except OSError as error:
            self.end(f"it broke: {error}")
            return
        self._loop.remove_writer(self._sock.fileno())

    def _send_some(self, first: _Unsent) -> None:
        if first.carried is None:
            sent = self._sock.send(first.data)
        else:
            # It goes with the first byte, however few of them are taken.
            sent = socket.send_fds(self._sock, [first.data], [first.carried.fileno()])
            first.carried.close()
            first.carried = None
        del first.data[:sent]
        self._unsent_bytes -= sent
        if not first.data:
            self._unsent.popleft()
