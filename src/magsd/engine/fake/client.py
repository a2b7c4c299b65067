"""One connection to a pretended VM's shim: what its frames may be and lead to. No I/O.

Owns the connection's transient streams. What a verb does is `verbs`' part,
the way of frames `link`'s.
"""

from typing import Final, Protocol

from magsd.engine.fake.shim import Shim
from magsd.engine.fake.transient import Transient
from magsd.engine.fake.verbs import answer
from magsd.guest.wire import (
    DURABLE_ID_MAX,
    STREAMS_MAX,
    TRANSIENT_ID_MIN,
    Channel,
    Frame,
    Kind,
    WireError,
    pack_fields,
)

_DURABLE: Final = 1
"""In the field `channel` of an OPEN."""


class Carrier(Protocol):
    """What takes frames to the far end of a connection."""

    @property
    def is_full(self) -> bool:
        """So much is unsent that who sends more has to wait."""

    def send(self, frame: Frame) -> None:
        """Send a frame after those sent before; nothing happens when the connection has ended."""

    async def writable(self) -> None:
        """Return when it is not full, or has ended."""

    def finish(self) -> None:
        """End the connection when all that was sent is out."""


class Client:
    """A connection, from its begin to its end."""

    __slots__ = ("_carrier", "_streams", "has_hello", "is_scoped", "journal_told", "shim")

    def __init__(self, shim: Shim, carrier: Carrier) -> None:
        self.shim = shim
        self.has_hello = False
        self.is_scoped = False
        self.journal_told = 0
        self._carrier = carrier
        self._streams: dict[int, Transient] = {}

    # --- what is received ------------------------------------------------------------

    def take(self, frame: Frame) -> None:
        """Receive a frame. Raises `WireError` when a daemon may not send it."""
        stream = frame.stream
        is_durable = 1 <= stream <= DURABLE_ID_MAX and not self.is_scoped
        match frame.kind:
            case Kind.REQUEST if stream == 0:
                answer(self, frame.value, frame.payload)
            case Kind.OPEN if is_durable and frame.channel == _DURABLE:
                self.shim.open_durable(self, stream, frame.value, frame.payload)
            case Kind.SIGNAL if is_durable:
                self.shim.signal(stream, frame.value)
            case Kind.OPEN if stream >= TRANSIENT_ID_MIN and frame.channel == Channel.IN:
                self._open(stream, frame.payload)
            case kind if stream >= TRANSIENT_ID_MIN and kind is not Kind.OPEN:
                self._take_transient(frame)
            case _:
                raise WireError(f"{frame.kind.name} cannot come on stream {stream}")

    def lost(self) -> None:
        """Note that the connection has ended."""
        for stream in list(self._streams.values()):
            stream.reset()
        self.shim.disconnected(self)

    def _open(self, number: int, payload: bytes) -> None:
        if number in self._streams:
            raise WireError("a stream is opened twice")
        stream = Transient(self, number, self.shim.machine)
        self._streams[number] = stream
        self.shim.open_streams += 1
        if self.shim.open_streams > STREAMS_MAX:
            stream.refuse("too many streams are open in this VM")
        else:
            self.shim.machine.do(stream, lambda: stream.begin(payload))

    def _take_transient(self, frame: Frame) -> None:
        if (stream := self._streams.get(frame.stream)) is not None:
            stream.take(frame)
            return
        # It may have crossed the stream's end; a wrong kind has no excuse.
        is_input = frame.kind in (Kind.DATA, Kind.EOF) and frame.channel == Channel.IN
        is_credit = frame.kind is Kind.CREDIT and frame.channel != Channel.IN
        if not (is_input or is_credit or frame.kind in (Kind.SIGNAL, Kind.RESET)):
            raise WireError(f"{frame.kind.name} cannot come on a stream")

    # --- what is sent ------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """So much is unsent that who sends more has to wait."""
        return self._carrier.is_full

    async def writable(self) -> None:
        """Return when it is not full."""
        await self._carrier.writable()

    def send(self, frame: Frame) -> None:
        """Send a frame."""
        self._carrier.send(frame)

    def reply(self, number: int, *fields: tuple[str, str]) -> None:
        """Answer a request."""
        self.send(Frame(Kind.REPLY, 0, value=number, payload=pack_fields("ok", fields)))

    def reply_error(self, number: int, text: str) -> None:
        """Refuse a request."""
        payload = pack_fields("", [("error", text.replace("\0", ""))])
        self.send(Frame(Kind.REPLY, 0, value=number, payload=payload))

    def tell_journal(self) -> None:
        """Tell how far the journal reaches, if that was not told."""
        if self.has_hello and self.journal_told != self.shim.journal_end:
            self.journal_told = self.shim.journal_end
            self.send(Frame(Kind.DATA, 0, value=self.journal_told))

    def finish(self) -> None:
        """End the connection when all that was sent is out."""
        self._carrier.finish()

    def forget(self, stream: Transient) -> None:
        """Note that a stream is over. Idempotent."""
        if self._streams.pop(stream.id, None) is not None:
            self.shim.open_streams -= 1
