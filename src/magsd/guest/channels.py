"""What a channel of a stream holds and may hold: offsets, credit, ends. No I/O.

The far end is a guest that may send anything: every offset and limit is
checked here, and what breaks the rules raises `WireError`.
"""

from typing import Final

from magsd.guest.wire import WINDOW_BYTES, WireError

_GRANT_AFTER: Final = WINDOW_BYTES // 2
"""Credit is given again when so much has been read: twice a window, not once a frame."""


class Inbound:
    """A channel that is received: what has come and was not read yet, at most one window."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._received = 0
        self._granted = WINDOW_BYTES
        self.is_ended = False
        """The far end has said that nothing follows; what is held can still be read."""

    def __bool__(self) -> bool:
        """Whether something can be read."""
        return bool(self._buffer)

    def take(self, offset: int, data: bytes) -> None:
        """Add what was received. Raises `WireError` when it does not follow or is too much."""
        if self.is_ended:
            raise WireError("DATA after the end of its channel")
        if offset != self._received:
            raise WireError(f"DATA at {offset}, expected at {self._received}")
        if offset + len(data) > self._granted:
            raise WireError(f"DATA up to {offset + len(data)}, granted {self._granted}")
        self._received += len(data)
        self._buffer += data

    def take_end(self, length: int) -> None:
        """Note the end of the channel. Raises `WireError` when bytes are missing."""
        if self.is_ended:
            raise WireError("a second end of a channel")
        if length != self._received:
            raise WireError(f"a channel of {length} bytes ended after {self._received}")
        self.is_ended = True

    def read(self) -> bytes:
        """Return what is held, and hold it no more."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def grant(self) -> int | None:
        """Return the limit to tell the far end now, if it is time to tell it one."""
        limit = self._received - len(self._buffer) + WINDOW_BYTES
        if self.is_ended or limit - self._granted < _GRANT_AFTER:
            return None
        self._granted = limit
        return limit


class Outbound:
    """A channel that is sent: how far it has come and may go."""

    def __init__(self) -> None:
        self.sent = 0
        self._limit = WINDOW_BYTES
        self.is_ended = False
        """Nothing more may be sent."""

    @property
    def room(self) -> int:
        """How many bytes may be sent now."""
        return self._limit - self.sent

    def take_credit(self, limit: int) -> None:
        """Note a limit. Raises `WireError` when it takes back what was granted before."""
        if limit < self._limit:
            raise WireError(f"CREDIT up to {limit} after one up to {self._limit}")
        self._limit = limit
