"""Bodies of HTTP/1.1 messages: where they end, and chunks. No I/O.

A reader is fed with what comes and gives back the content; what is behind the
body's end it leaves in `rest`. Neither of the parsers that could be used tells
strictly where a chunked body ends: httptools does not say at which byte, h11
takes lines that end with LF alone.
"""

import re
from typing import Final, Protocol

from typing_extensions import override

from magsd.gateway.http_flow import AnswerError, Body, Field, Framing

_LINE_MAX: Final = 4096
_TRAILERS_MAX_BYTES: Final = 16 * 1024
_EXTENSIONS_MAX_BYTES: Final = 16 * 1024
"""Of all chunks of a body together: they are dropped here, and cost time."""
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;[\t -~\x80-\xff]*)?)")
_FIELD_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


class BodyError(Exception):
    """A body is not framed as its head says."""


class BodyReader(Protocol):
    """The body of one message, as it comes."""

    is_done: bool
    """All of it has come."""
    rest: bytes
    """What came behind it."""
    trailers: list[Field]

    def feed(self, data: bytes) -> bytes:
        """Return the content in `data`, which is not empty; it may be nothing yet.

        Raises `BodyError`. Not called any more when the body is done.
        """

    def end(self) -> None:
        """Note that nothing more comes. Raises `BodyError` when the body is not whole."""


def reader_of(body: Body) -> BodyReader:
    """Return what reads a body framed so."""
    match body.framing:
        case Framing.CHUNKED:
            return ChunkedReader()
        case Framing.UNTIL_END:
            return EndReader()
        case Framing.NONE | Framing.LENGTH:
            return LengthReader(body.length)


class LengthReader:
    """A body of so many bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_done = length == 0
        self.rest = b""
        self.trailers: list[Field] = []

    def feed(self, data: bytes) -> bytes:
        """See `BodyReader`."""
        content = data
        if len(data) > self._left:
            content, self.rest = data[: self._left], data[self._left :]
        self._left -= len(content)
        self.is_done = self._left == 0
        return content

    def end(self) -> None:
        """See `BodyReader`."""
        if not self.is_done:
            raise BodyError(f"the body ended {self._left} bytes before its end")


class EndReader(LengthReader):
    """A body that the connection's end ends."""

    def __init__(self) -> None:
        super().__init__(0)
        self.is_done = False

    @override
    def feed(self, data: bytes) -> bytes:
        """See `BodyReader`."""
        return data

    @override
    def end(self) -> None:
        """See `BodyReader`."""
        self.is_done = True


class ChunkedReader:
    """A body in chunks, and its trailers. Extensions of chunks are dropped."""

    def __init__(self) -> None:
        self.is_done = False
        self.rest = b""
        self.trailers: list[Field] = []
        self._held = b""
        """The beginning of a line."""
        self._left = 0
        """Bytes of the chunk that have not come."""
        self._step = self._size_line
        self._extensions = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """See `BodyReader`."""
        data = self._held + data if self._held else data
        self._held = b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.is_done:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            end = self._line_end(data, at)
            if end is None:
                self._held = data[at:]
                break
            self._step(data[at:end])
            at = end + 2
        if self.is_done:
            self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        """See `BodyReader`."""
        if not self.is_done:
            raise BodyError("the body ended before its last chunk")

    def _line_end(self, data: bytes, at: int) -> int | None:
        """Return where the line ends that begins `at`; None when that has not come."""
        end = data.find(b"\n", at, at + _LINE_MAX + 2)
        if end < 0:
            if self._step == self._chunk_end and data[at] != 0x0D:
                raise BodyError("a chunk is longer than it says")
            if len(data) - at > _LINE_MAX + 1:
                raise BodyError(f"a line between chunks is over {_LINE_MAX} bytes")
            return None
        if end == at or data[end - 1] != 0x0D:
            raise BodyError("a line between chunks does not end with CR LF")
        return end - 1

    def _size_line(self, line: bytes) -> None:
        parts = _SIZE_LINE.fullmatch(line)
        if parts is None:
            raise BodyError("a chunk does not begin with its size")
        self._extensions += len(parts[2])
        if self._extensions > _EXTENSIONS_MAX_BYTES:
            raise BodyError(f"extensions of chunks are over {_EXTENSIONS_MAX_BYTES} bytes")
        self._left = int(parts[1], 16)
        self._step = self._chunk_end if self._left else self._trailer_line

    def _chunk_end(self, line: bytes) -> None:
        if line:
            raise BodyError("a chunk is longer than it says")
        self._step = self._size_line

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self.is_done = True
            return
        parts = _FIELD_LINE.fullmatch(line)
        if parts is None:
            raise BodyError("a trailer is no header field")
        self._trailer_bytes += len(line)
        if self._trailer_bytes > _TRAILERS_MAX_BYTES:
            raise BodyError(f"trailers are over {_TRAILERS_MAX_BYTES} bytes")
        self.trailers.append((parts[1], parts[2]))


def chunk(content: bytes) -> bytes:
    """Return content, of at least a byte, as a chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def last_chunk(trailers: list[Field]) -> bytes:
    """Return what ends a body in chunks."""
    lines = [b"%b: %b\r\n" % field for field in trailers]
    return b"0\r\n%b\r\n" % b"".join(lines)


def whole(reader: BodyReader, what: str) -> None:
    """Note that a server's connection has ended. Raises `AnswerError` if its body has not."""
    try:
        reader.end()
    except BodyError as error:
        raise AnswerError(f"{what}: {error}") from error
