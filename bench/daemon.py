"""P11: how large the daemon is and how late its event loop."""

import math
from typing import Final

from bench.rates import submit_many
from bench.scrape import quantile
from bench.session import Session

FINISHED: Final = 1000
_LAG: Final = "mags_event_loop_lag_seconds"


async def daemon(session: Session) -> None:
    """Bring the server that all other parts used to a thousand finished jobs; then look."""
    server = session.server()
    client = await session.client(server)
    total = (await client.request("GET", "/mags-jobs?page_size=1"))["total"]
    if total < FINISHED:
        for job in (await submit_many(server, FINISHED - total, "true")).jobs:
            await client.completed(job)
    await server.at_rest()
    memory_mb = server.memory_mb()
    total = (await client.request("GET", "/mags-jobs?page_size=1"))["total"]
    report = session.report
    report.keep("daemon", {"memory_mb": memory_mb, "jobs": total})
    report.found("memory", f"{memory_mb:.0f} MB, {total} jobs", 1, is_met=memory_mb <= 150)

    scrape = server.scrape()
    buckets = scrape.buckets(_LAG)
    if not scrape.has(f"{_LAG}_bucket") or not buckets.get(math.inf):
        report.lacks("lag", f"no {_LAG} in /metrics")
        return
    report.keep("lag_buckets", {str(bound): count for bound, count in buckets.items()})
    lag_ms = quantile(buckets, 0.99) * 1000
    median_ms = quantile(buckets, 0.5) * 1000
    text = f"p99 {lag_ms:.1f} ms (p50 {median_ms:.1f} ms)"
    report.found("lag", text, f"{buckets[math.inf]:.0f}", is_met=lag_ms <= 10)
