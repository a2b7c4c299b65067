"""What one run takes: of the room on its machine, and of its account's quota.

Awake it takes all that its job asked for; asleep its disk, and its place among
its account's unfinished jobs.
"""

from magsd.core.node import Node
from magsd.model.amount import Amount
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId

_NOT_AWAKE = (RunState.SLEEPING, RunState.WAKING)


class Footprint:
    """What is counted for one run. Belongs to its actor, which says what becomes of the VM."""

    def __init__(
        self, node: Node, account_id: AccountId, need: Amount, state: RunState, *, has_room: bool
    ) -> None:
        """Its quota is counted already, see `count_quota`."""
        self._node = node
        self._account_id = account_id
        self._need = need
        self._room = need if has_room else Amount()
        self._quota = counted(need, state)

    @property
    def has_room(self) -> bool:
        """Whether there is room for an awake VM."""
        return self._room == self._need

    def occupy(self, *, asleep: bool = False) -> None:
        """Count what is there already, whether there is room for it or not. Idempotent."""
        wanted = self._need.asleep if asleep else self._need
        if self._room == Amount():
            self._node.room.occupy(wanted)
            self._room = wanted

    async def acquire(self) -> None:
        """Wait for room for an awake VM, in the account's turn. Idempotent."""
        missing = self._need.minus(self._room)
        if missing != Amount():
            await self._node.room.acquire(self._account_id, missing)
            self._room = self._need

    def rise(self) -> None:
        """Count an awake VM for the account again. Raises `QuotaError` that names the limit."""
        more = self._need.minus(self._quota)
        if more != Amount():
            self._node.quotas.take(self._account_id, more)
            self._quota = self._need

    def rest(self) -> None:
        """Give back what a VM that sleeps does not take. Idempotent."""
        quota = self._need.counted_asleep
        self._node.quotas.give_back(self._account_id, self._quota.minus(quota))
        self._quota = quota
        kept = self._need.asleep
        room, self._room = self._room, kept
        if room == Amount():
            self._node.room.occupy(kept)
        elif room != kept:
            self._node.room.release(room.minus(kept))

    def release_quota(self) -> None:
        """Count the job no more for its account. Idempotent."""
        self._node.quotas.give_back(self._account_id, self._quota)
        self._quota = Amount()

    def release_room(self) -> None:
        """Count the VM no more. Idempotent."""
        room, self._room = self._room, Amount()
        if room != Amount():
            self._node.room.release(room)


def counted(need: Amount, state: RunState) -> Amount:
    """Return what counts for an account's quota of a run in `state`."""
    return need.counted_asleep if state in _NOT_AWAKE else need
