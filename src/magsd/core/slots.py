"""A limited number of slots, given out in turn to whoever asks for many of them.

Accounts that wait get one each, round and round; within an account the first
to ask is the first to get one.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable


class Slots:
    """`count` slots, fewer of them free. Not for threads."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def is_free(self) -> bool:
        """Whether who asks now gets a slot at once."""
        return self._free > 0 and not self._waiting

    def occupy(self) -> None:
        """Take a slot even if there is none: for what has it already, whatever the limit says."""
        self._free -= 1

    async def acquire(self, who: Hashable) -> None:
        """Take a slot in `who`'s turn. Whoever takes one gives it back with `release`."""
        if self.is_free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            else:
                self._forget(who, turn)
            raise

    def release(self) -> None:
        """Give a slot back; the next in turn has it at once."""
        self._free += 1
        while self._free > 0 and self._waiting:
            who, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[who] = turns
            if not turn.done():
                self._free -= 1
                turn.set_result(None)

    def _forget(self, who: Hashable, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(who)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[who]
