"""Which copies of logs lie on a node, and which of them to drop. Pure."""

import asyncio
from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from magsd.model.names import RequestId

IDLE_S: Final = 300.0
"""A copy that nobody read for so long is dropped."""
GRACE_S: Final = 2.0
"""One that was read just now stays, however many there are: its reader may go on."""
ENTRIES_MAX: Final = 10_000
_AT_ONCE: Final = 50


class LogKey(NamedTuple):
    """The log of one life of a job."""

    request_id: RequestId
    epoch: int


@dataclass(slots=True)
class _Copy:
    size_bytes: int
    used_at: float


class Copies:
    """The copies that may be dropped, the one unused longest first."""

    def __init__(self, limit_bytes: int) -> None:
        self.is_over = asyncio.Event()
        """Set when there are more than there should be."""
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._by_key: OrderedDict[LogKey, _Copy] = OrderedDict()

    def add(self, key: LogKey, size_bytes: int, now: float) -> None:
        """Take note of a copy."""
        self.forget(key)
        self._by_key[key] = _Copy(size_bytes, now)
        self._size_bytes += size_bytes
        if self._has_too_many:
            self.is_over.set()

    def use(self, key: LogKey, now: float) -> None:
        """Take note that a copy, if it is one, was read."""
        if (copy := self._by_key.get(key)) is not None:
            copy.used_at = now
            self._by_key.move_to_end(key)

    def forget(self, key: LogKey) -> None:
        """Take note that a copy is gone."""
        if (copy := self._by_key.pop(key, None)) is not None:
            self._size_bytes -= copy.size_bytes

    def choose(self, now: float, held: Container[LogKey]) -> Sequence[LogKey]:
        """Forget some copies, none that is `held`, and return them: they are to be dropped.

        Where there are more, `is_over` is set again.
        """
        chosen: list[LogKey] = []
        for key, copy in list(self._by_key.items()):
            enough_s = GRACE_S if self._has_too_many else IDLE_S
            if len(chosen) == _AT_ONCE or copy.used_at + enough_s > now:
                break
            if key not in held:
                self.forget(key)
                chosen.append(key)
        if len(chosen) == _AT_ONCE:
            self.is_over.set()
        return chosen

    def look_again_s(self) -> float:
        """Return after how many seconds to choose again if nothing happens meanwhile."""
        return GRACE_S if self._has_too_many else IDLE_S / 10

    @property
    def _has_too_many(self) -> bool:
        return self._size_bytes > self._limit_bytes or len(self._by_key) > ENTRIES_MAX
