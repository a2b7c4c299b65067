"""How long `true` takes in a VM that runs: over the agent's channel, and by `runsc exec`."""

import time

from bench import engines
from bench.measure import Samples, in_turn
from bench.peers import PlainBundle
from bench.starts import PATH
from magsd.guest import streams
from magsd.guest.shim import ShimConnection

AGENT = "agent: exec true"
PLAIN = "runsc exec true"
CONTAINER = "bench-exec"


async def measure(bare: engines.Bare, plain: PlainBundle, n: int) -> list[Samples]:
    """Measure both in turn, each in a VM of its own."""
    name, value = PATH.split("=")
    async with bare.vm() as handle:
        connection = await ShimConnection.open(handle.run_directory)

        async def over_the_channel() -> float:
            started = time.perf_counter()
            result = await streams.run(connection, ["/bin/true"], environment={name: value})
            took_ms = (time.perf_counter() - started) * 1000
            if result.wait_status != 0:
                raise SystemExit(f"bench: true ended with {result}")
            return took_ms

        async def plainly() -> float:
            return await plain.exec_once(CONTAINER, "/bin/true")

        try:
            with plain.running(CONTAINER):
                return await in_turn({PLAIN: plainly, AGENT: over_the_channel}, n)
        finally:
            await connection.aclose()
