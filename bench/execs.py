"""P5: how long `true` takes in a VM that runs, over the agent's channel and by `runsc exec`."""

import time
from typing import Final

from bench.measure import in_turn, raw, samples_table
from bench.session import Session
from magsd.guest import streams
from magsd.guest.shim import ShimConnection

AGENT: Final = "agent: exec true"
PLAIN: Final = "runsc exec true"
N: Final = 300
_CONTAINER: Final = "bench-exec"
_ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


async def execs(session: Session) -> None:
    """Measure both in turn, each in a VM of its own."""
    bare, plain = await session.bare(), session.plain()
    async with bare.vm() as handle:
        connection = await ShimConnection.open(handle.run_directory)

        async def over_the_channel() -> float:
            started = time.perf_counter()
            result = await streams.run(connection, ["/bin/true"], environment=_ENVIRONMENT)
            took_ms = (time.perf_counter() - started) * 1000
            if result.wait_status != 0:
                raise SystemExit(f"bench: true ended with {result}")
            return took_ms

        async def plainly() -> float:
            return await plain.exec_once(_CONTAINER, "/bin/true")

        try:
            with plain.running(_CONTAINER):
                samples = await in_turn({PLAIN: plainly, AGENT: over_the_channel}, N)
        finally:
            await connection.aclose()
    report = session.report
    report.keep("execs_ms", raw(samples))
    report.show(samples_table("`true` in a VM that runs", list(samples.values())))
    ratio = samples[AGENT].median / samples[PLAIN].median
    text = f"{ratio:.2f} x (bare {samples[AGENT].short()})"
    report.found("exec_runsc", text, N, is_met=ratio <= 0.5)
    report.lacks("exec_bare", "the API has no exec yet")
