"""The far end of a connection: what it receives and sends is written down in the test."""

import asyncio
import contextlib
from collections import deque

from magsd.guest.wire import Frame, FrameReader, Kind, encode, pack_fields, parse_fields

_PATIENCE_S = 20


async def soon(work):
    """Wait for `work`, and not for ever."""
    return await asyncio.wait_for(work, _PATIENCE_S)


class Peer(contextlib.AbstractContextManager):
    """A socket that speaks frames and keeps no rules."""

    def __init__(self, sock):
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader()
        self._held = deque()

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._sock.close()

    async def next(self):
        """Return the next frame; None at the end."""
        while not self._held:
            data = await soon(asyncio.get_running_loop().sock_recv(self._sock, 1 << 20))
            if not data:
                return None
            self._held += self._reader.feed(data)
        return self._held.popleft()

    async def expect(self, kind):
        frame = await self.next()
        assert frame is not None, f"the connection ended, {kind.name} was expected"
        assert frame.kind is kind, frame
        return frame

    async def at_end(self):
        """Whether nothing is left but the end of the connection."""
        try:
            return await self.next() is None
        except ConnectionResetError:
            return True

    async def raw(self, data):
        await soon(asyncio.get_running_loop().sock_sendall(self._sock, data))

    async def send(self, *frames):
        await self.raw(b"".join(map(encode, frames)))

    async def reply(self, request, *pairs, word="ok"):
        await self.send(Frame(Kind.REPLY, 0, value=request.value, payload=pack_fields(word, pairs)))

    async def answer(self, verb, *pairs, word="ok"):
        """Receive a request for `verb` and reply; return its fields."""
        request = await self.expect(Kind.REQUEST)
        fields = parse_fields(request.payload)
        assert (request.stream, fields.word) == (0, verb)
        await self.reply(request, *pairs, word=word)
        return fields


def ended(stream, status=0, **fields):
    """The EXIT of a durable stream."""
    pairs = {"timed_out": 0, "out": 0, "err": 0, "ended_ns": 0} | fields
    payload = pack_fields("", [(key, str(value)) for key, value in pairs.items()])
    return Frame(Kind.EXIT, stream, value=status, payload=payload)
