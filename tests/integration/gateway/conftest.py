"""A gateway for each test."""

import pytest

from tests.integration.gateway.world import open_world


@pytest.fixture
async def world(tmp_path):
    """A place for VMs and a gateway; the test begins both."""
    async with open_world(tmp_path) as opened:
        yield opened
