"""Who uses the VMs of a node, and since when nobody does. In memory, and not for threads.

A use is counted from before its VM is there: one that is about to fall asleep
is *closed* first, so that whoever comes then waits until it is woken.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from magsd.aio import Clock
from magsd.model.names import RequestId


class Uses:
    """The uses of all VMs of a node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: Counter[RequestId] = Counter()
        self._ended_at: dict[RequestId, float] = {}
        self._closed: set[RequestId] = set()

    def count(self, request_id: RequestId) -> int:
        """Return how many use a job's VM, or wait until they can."""
        return self._held[request_id]

    def ended_at(self, request_id: RequestId) -> float | None:
        """Return when the last use of a job's VM ended, on the clock's monotonic scale.

        None: nobody has used it since this process began.
        """
        return self._ended_at.get(request_id)

    def is_closed(self, request_id: RequestId) -> bool:
        """Whether a job's VM is falling asleep: it must be woken before it is used."""
        return request_id in self._closed

    @contextmanager
    def use(self, request_id: RequestId) -> Iterator[None]:
        """Count a use inside the block."""
        self._held[request_id] += 1
        try:
            yield
        finally:
            self._held[request_id] -= 1
            if not self._held[request_id]:
                del self._held[request_id]
                self._ended_at[request_id] = self._clock.monotonic()

    def close(self, request_id: RequestId) -> bool:
        """Have whoever comes wait from now on. False, and nothing done, when it is used."""
        if self._held[request_id]:
            return False
        self._closed.add(request_id)
        return True

    def open(self, request_id: RequestId) -> None:
        """Let whoever comes have the VM at once. Idempotent."""
        self._closed.discard(request_id)

    def forget(self, request_id: RequestId) -> None:
        """Take note that a job has ended."""
        self._closed.discard(request_id)
        self._ended_at.pop(request_id, None)
