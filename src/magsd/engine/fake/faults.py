"""What is to go wrong, or to take its time, in a `FakeEngine`: scripted, one call after the other.

For tests of what stands above an engine. What goes wrong inside a VM is asked
for by its script (`fake out_of_memory`).
"""

import random
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from magsd.aio import Clock

MEMBERS: Final = frozenset(
    {"prepare", "launch", "adopt", "wait", "still", "stop", "stats", "sweep"}
)


class Moment(Enum):
    """When, within a call, a fault comes."""

    BEGIN = auto()
    """Before anything was done."""
    RECORDED = auto()
    """Of a launch: `record.json` is written, and no VM begun."""
    END = auto()
    """All is done but the return. A launch is undone then."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call."""

    delay_s: float = 0.0
    """How long it waits at `moment`."""
    error: Exception | None = None
    """What it raises then."""
    moment: Moment = Moment.BEGIN

    async def come(self, moment: Moment, clock: Clock) -> None:
        """Wait and raise, if this is the moment."""
        if moment is self.moment:
            if self.delay_s:
                await clock.sleep(self.delay_s)
            if self.error is not None:
                raise self.error


_NONE: Final = Fault()


class FaultPlan:
    """The faults to come, by member of the engine; each is for one call."""

    def __init__(
        self, *, seed: int = 0, latency_s: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        """`latency_s`: by member, the least and the most that a call without a fault waits."""
        self._random = random.Random(seed)  # noqa: S311 - to be repeated
        self._latency_s = dict(latency_s or {})
        self._to_come: defaultdict[str, deque[Fault]] = defaultdict(deque)
        _check(self._latency_s)

    def add(self, member: str, *faults: Fault) -> None:
        """Have the next calls of a member meet these, one each."""
        _check([member])
        self._to_come[member].extend(faults)

    def take(self, member: str) -> Fault:
        """Return what the call that begins now meets."""
        if faults := self._to_come[member]:
            return faults.popleft()
        if (latency_s := self._latency_s.get(member)) is not None:
            return Fault(delay_s=self._random.uniform(*latency_s))
        return _NONE


def _check(members: Mapping[str, object] | list[str]) -> None:
    for member in members:
        if member not in MEMBERS:
            raise ValueError(f"an engine has no {member!r} that could fail")
