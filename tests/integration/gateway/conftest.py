"""A gateway for each test."""

import pytest
import uvloop

from tests.integration.gateway.world import open_world


def pytest_asyncio_loop_factories(config, item):
    """The edge's own event loop."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def world(tmp_path):
    """A place for VMs and a gateway; the test begins both."""
    async with open_world(tmp_path) as opened:
        yield opened
