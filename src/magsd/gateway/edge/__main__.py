"""The process: its rights, its life, its end.

The one argument is the number of the descriptor that holds its plan. It ends
by SIGTERM, after what is under way had a few seconds, and at once with the node.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

import structlog
import uvloop

from magsd import log
from magsd.aio import unless_done
from magsd.gateway import plan as plans
from magsd.gateway.edge.gateways import run_gateways
from magsd.gateway.edge.rights import give_up
from magsd.gateway.node_client import NodeClient
from magsd.gateway.plan import EdgePlan

_DRAIN_S: Final = 5.0
"""For what is under way when the edge is to end."""

_log = structlog.get_logger()


async def _serve(plan: EdgePlan) -> None:
    node = NodeClient(socket.socket(fileno=plan.node_fd))
    node.start()
    try:
        await unless_done(node.ended(), _until_asked(node, plan))
    finally:
        await node.aclose()


async def _until_asked(node: NodeClient, plan: EdgePlan) -> None:
    """Run the gateways until SIGTERM; raise what ends one of them before."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _ask, asked)
    await unless_done(asked.wait(), run_gateways(node, plan))


def _ask(asked: asyncio.Event) -> None:
    asked.set()
    # Whatever a gateway waits for then.
    signal.setitimer(signal.ITIMER_REAL, _DRAIN_S)


def main(arguments: Sequence[str]) -> int:
    """Be an edge until there is a reason to end. Returns the exit code."""
    (descriptor,) = arguments
    plan = plans.read(int(descriptor))
    os.chdir("/")
    give_up(plan.rights, plan.node_pid)
    log.configure(plan.log_level)
    log.catch_all()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
