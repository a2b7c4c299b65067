"""Which gateways an edge runs."""

import asyncio
from collections.abc import Coroutine, Mapping
from socket import socket
from typing import Any

from magsd.gateway.base import Node
from magsd.gateway.ingress import Ingress
from magsd.gateway.plan import EdgePlan
from magsd.gateway.ssh import SshGateway


async def run_gateways(node: Node, plan: EdgePlan) -> None:
    """Run all of them until one fails, which ends the others too, or until cancelled."""
    async with asyncio.TaskGroup() as group:
        for name, work in _gateways(node, plan).items():
            group.create_task(work, name=name)
        await asyncio.Event().wait()  # None of them ends by itself.


def _gateways(node: Node, plan: EdgePlan) -> Mapping[str, Coroutine[Any, Any, None]]:
    return {
        "ingress": Ingress(node, plan.ingress).serve(_listening(plan.apps_fd)),
        "ssh": SshGateway(node, plan.ssh).serve(_listening(plan.ssh_fd)),
    }


def _listening(descriptor: int) -> socket:
    listener = socket(fileno=descriptor)
    listener.setblocking(False)
    return listener
