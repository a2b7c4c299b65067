"""Room on this machine, given out in turn to whoever asks for some of it.

Accounts that wait get theirs one each, round and round; within an account the
first to ask is the first. Whoever is next in turn and does not fit keeps those
behind it waiting: else a large one would wait for ever.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from magsd.model.amount import Amount


@dataclass(eq=False, slots=True)
class _Turn:
    need: Amount
    came: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Room:
    """A capacity, less of it free. Not for threads."""

    def __init__(self, capacity: Amount) -> None:
        self.capacity = capacity
        self._free = capacity
        self._waiting: OrderedDict[Hashable, deque[_Turn]] = OrderedDict()
        self._at_rest: deque[_Turn] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return sum(len(turns) for turns in self._waiting.values())

    @property
    def free(self) -> Amount:
        """What nobody has; below nothing where more was occupied than there is."""
        return self._free

    def try_acquire(self, need: Amount) -> bool:
        """Take some now, if it is there and nobody waits for any."""
        if self._waiting or need.lacking(self._free):
            return False
        self._free = self._free.minus(need)
        return True

    def occupy(self, need: Amount) -> None:
        """Take some even if there is none: for what has it already."""
        self._free = self._free.minus(need)

    async def acquire(self, who: Hashable, need: Amount) -> None:
        """Take some in `who`'s turn. Whoever takes gives it back with `release`."""
        if self.try_acquire(need):
            return
        turn = _Turn(need)
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            await turn.came
        except asyncio.CancelledError:
            if turn.came.done() and not turn.came.cancelled():
                self.release(need)
            else:
                self._forget(who, turn)
            raise

    async def acquire_at_rest(self, need: Amount) -> None:
        """Take some once it is there and nobody else waits: for work that can."""
        if not self._at_rest and self.try_acquire(need):
            return
        turn = _Turn(need)
        self._at_rest.append(turn)
        try:
            await turn.came
        except asyncio.CancelledError:
            if turn.came.done() and not turn.came.cancelled():
                self.release(need)
            elif turn in self._at_rest:
                self._at_rest.remove(turn)
            raise

    def release(self, need: Amount) -> None:
        """Give some back; who is next in turn and fits has it at once."""
        self._free = self._free.plus(need)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            who, turns = next(iter(self._waiting.items()))
            if turns[0].came.done():  # Cancelled, and not yet forgotten.
                self._drop_first(who)
            elif turns[0].need.lacking(self._free):
                return
            else:
                self._grant(self._drop_first(who))
        while self._at_rest and not self._at_rest[0].need.lacking(self._free):
            if not (turn := self._at_rest.popleft()).came.done():
                self._grant(turn)

    def _grant(self, turn: _Turn) -> None:
        self._free = self._free.minus(turn.need)
        turn.came.set_result(None)

    def _drop_first(self, who: Hashable) -> _Turn:
        """Take the first turn of an account away; its others go behind all others."""
        turns = self._waiting.pop(who)
        turn = turns.popleft()
        if turns:
            self._waiting[who] = turns
        return turn

    def _forget(self, who: Hashable, turn: _Turn) -> None:
        turns = self._waiting.get(who)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[who]
        self._serve()  # It may have stood in the way of one that fits.
