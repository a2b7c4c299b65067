"""How late the event loop wakes up: the first sign of a service that has too much to do."""

from typing import Final

from magsd.aio import Clock
from magsd.metrics import Metrics

_EVERY_S: Final = 0.5


async def watch_loop(metrics: Metrics, clock: Clock) -> None:
    """Measure until cancelled."""
    while True:
        asked = clock.monotonic()
        await clock.sleep(_EVERY_S)
        metrics.loop_lag(max(0.0, clock.monotonic() - asked - _EVERY_S))
