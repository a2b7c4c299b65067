"""The frame that daemon, shim and agent exchange, and the fields in a payload.

Owns the layout and what makes a frame a frame; does no I/O. What a kind means
for a stream is decided by `link`, `shim` and `transient`. The C twin is
`guest/wire`; `docs/reference/wire.md` says it in words.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1
HEADER_BYTES: Final = 24
PAYLOAD_MAX: Final = 64 * 1024
WINDOW_BYTES: Final = 256 * 1024
"""The credit that every channel begins with."""
STREAMS_MAX: Final = 256
"""Open at once in one VM."""
SCOPED_STREAMS_MAX: Final = 192
"""Of these, on connections that may open streams and nothing else: the rest is the daemon's."""
DURABLE_ID_MAX: Final = 0x7FFF
"""Durable streams have the ids from 1 to this one."""
TRANSIENT_ID_MIN: Final = 0x10000
RESIZE: Final = 1
"""The upper half of a SIGNAL's value that is a terminal's size; columns and rows are the lower."""
MAGIC: Final = b"\xffMags\xfejoin\xfd\x1a\n\0\xfc\x01"
"""Sent before every JOIN; the agent drops everything up to it."""

_HEADER: Final = struct.Struct("<IIBBHIQ")
_NUMBER_DIGITS_MAX: Final = 20


class Kind(IntEnum):
    """What a frame is."""

    JOIN = 1
    OPEN = 2
    DATA = 3
    EOF = 4
    CREDIT = 5
    EXIT = 6
    SIGNAL = 7
    RESET = 8
    REQUEST = 9
    REPLY = 10


class Channel(IntEnum):
    """One of the byte sequences of a stream, as the guest's process sees them."""

    IN = 0
    OUT = 1
    ERR = 2


_KINDS: Final = {int(kind): kind for kind in Kind}


class WireError(Exception):
    """What was received breaks the protocol; the connection is of no use any more."""


class Frame(NamedTuple):
    """One frame. What `value` means depends on `kind`."""

    kind: Kind
    stream: int
    channel: int = 0
    value: int = 0
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Return the bytes of `frame`. Raises `ValueError` when it cannot be sent as one."""
    length = len(frame.payload)
    if length > PAYLOAD_MAX:
        raise ValueError(f"a payload of {length} bytes is over the limit of {PAYLOAD_MAX}")
    try:
        header = _HEADER.pack(length, frame.stream, frame.kind, frame.channel, 0, 0, frame.value)
    except struct.error as error:
        raise ValueError(f"no frame: {error}") from error
    return header + frame.payload


class FrameReader:
    """Cuts a byte sequence into frames, wherever its pieces begin and end."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_broken = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes.

        Raises `WireError` as soon as something is not a frame, and on every
        call after that: where the next one would begin is not known.
        """
        if self._is_broken:
            raise WireError("the sequence was broken before")
        if self._rest:
            data = self._rest + data
        frames: list[Frame] = []
        at = 0
        while len(data) - at >= HEADER_BYTES:
            length, stream, kind, channel, zero, zeros, value = _HEADER.unpack_from(data, at)
            known = _KINDS.get(kind)
            if known is None or length > PAYLOAD_MAX or channel > Channel.ERR or zero or zeros:
                self._is_broken = True
                self._rest = b""
                raise WireError(f"not a frame: {data[at : at + HEADER_BYTES].hex()}")
            end = at + HEADER_BYTES + length
            if end > len(data):
                break
            payload = data[at + HEADER_BYTES : end]
            frames.append(Frame(known, stream, channel, value, payload))
            at = end
        self._rest = data[at:]
        return frames


def pack_fields(words: str | Iterable[str], pairs: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return the payload of `words` followed by `key=value` for each of `pairs`.

    An empty word is left out. Raises `ValueError` for what would be read as
    something else: a NUL anywhere, a `=` in a word or a key, an empty key.
    """
    fields = [word for word in ((words,) if isinstance(words, str) else words) if word]
    if any("=" in word for word in fields):
        raise ValueError("a word of a payload cannot hold '='")
    for key, value in pairs:
        if not key or "=" in key:
            raise ValueError(f"not the name of a field: {key!r}")
        fields.append(f"{key}={value}")
    if any("\0" in text for text in fields):
        raise ValueError("a field cannot hold a NUL character")
    # Names of files that are not UTF-8 pass through as they are.
    return "".join(f"{text}\0" for text in fields).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Fields:
    """What a payload says: bare words, and values by key."""

    words: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def word(self) -> str:
        """The first bare word, which says what is meant; empty when there is none."""
        return self.words[0] if self.words else ""

    def get(self, key: str, default: str = "") -> str:
        """Return the first value of `key`."""
        return next((value for name, value in self.pairs if name == key), default)

    def all(self, key: str) -> list[str]:
        """Return every value of `key`, in order."""
        return [value for name, value in self.pairs if name == key]

    def number(self, key: str, default: int = 0) -> int:
        """Return the first value of `key` as a number. Raises `WireError` when it is none."""
        text = self.get(key)
        return parse_number(text) if text else default


def parse_number(text: str) -> int:
    """Return a decimal number without sign. Raises `WireError` when `text` is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS_MAX):
        raise WireError(f"not a number: {text[:40]!r}")
    return int(text)


def parse_fields(payload: bytes) -> Fields:
    """Read a payload; what is not UTF-8 is replaced, so that it may be logged and stored.

    Raises `WireError` when the last field is not ended.
    """
    if not payload:
        return Fields()
    if payload[-1] != 0:
        raise WireError("the last field is not ended by NUL")
    words: list[str] = []
    pairs: list[tuple[str, str]] = []
    for text in payload[:-1].decode("utf-8", "replace").split("\0"):
        key, equals, value = text.partition("=")
        if equals:
            pairs.append((key, value))
        else:
            words.append(text)
    return Fields(tuple(words), tuple(pairs))
