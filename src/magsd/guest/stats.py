"""What a guest's own processes have used, as its agent tells it."""

from dataclasses import dataclass

from magsd.guest import streams
from magsd.guest.link import ShimError
from magsd.guest.shim import ShimConnection
from magsd.guest.wire import WireError


@dataclass(frozen=True, slots=True)
class GuestStats:
    """The guest's account of itself: it may be wrong, and harms only its own VM then."""

    cpu_ns: int
    """Processor time of its processes since it began, of those that have ended too.

    A microVM counts exactly. gVisor counts in steps of 10 ms, and forgets
    what a process used that nobody waited for: there it may go back.
    """
    processes: int
    """How many there are now, the agent not among them."""
    now_ns: int
    """The guest's own monotonic clock: the time between two readings."""

    def busy_since(self, earlier: "GuestStats") -> float:
        """Return how many processors were busy on average since an earlier reading (0.0: none)."""
        passed_ns = self.now_ns - earlier.now_ns
        return max(self.cpu_ns - earlier.cpu_ns, 0) / passed_ns if passed_ns > 0 else 0.0


async def stats(connection: ShimConnection) -> GuestStats:
    """Return what the guest's processes have used so far. Raises `ShimError`."""
    told = await streams.control(connection, "stats")
    try:
        return GuestStats(told.number("cpu_ns"), told.number("processes"), told.number("now_ns"))
    except WireError as error:
        raise ShimError(f"the guest's numbers are none: {error}") from error
