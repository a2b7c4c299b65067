"""Both event loops, and a connection whose shim is the test."""

import asyncio
import socket
from contextlib import aclosing

import pytest
import uvloop

from magsd.guest.shim import ShimConnection
from tests.unit.guest.peer import Peer


def pytest_asyncio_loop_factories(config, item):
    """The daemon runs on uvloop; whoever has none runs on asyncio's own."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def linked():
    """A connection, and the far end of its socket."""
    ours, theirs = socket.socketpair()
    with Peer(theirs) as peer:
        connection = await ShimConnection.from_socket(ours, hello=False)
        async with aclosing(connection):
            yield connection, peer
