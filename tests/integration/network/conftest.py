"""A network opened on a host of its own: needs root, touches nothing of the real host."""

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from magsd.aio import SystemClock, Tasks
from magsd.engine.network import Network, NetworkSettings
from tests.integration.network.wire import attach_stack
from tests.integration.network.world import (
    HOST,
    WEB,
    Echo,
    Resolver,
    World,
)

SLOT_NET = "198.19.240.0/24"
RECORDS = {
    "public.example.": [("A", WEB)],
    "internal.example.": [("A", "10.1.2.3")],
    "mixed.example.": [("A", WEB, "10.1.2.3")],
    "host.example.": [("A", HOST)],
    "large.example.": [("TXT", *(f"{number:0200}" for number in range(20)))],
}


@pytest.fixture
def world():
    with contextlib.ExitStack() as stack:
        yield World(stack)


@pytest.fixture
def directory():
    """A directory that the forwarder's user can read, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="mags-network-"))
    path.chmod(0o755)
    (path / "resolv.conf").write_text(f"nameserver {WEB}\n")
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def closing():
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def start(world, directory, closing):
    """Open a network; whatever a test does, the forwarder ends with it."""
    errors = []
    tasks = Tasks(lambda name, error: errors.append((name, error)))

    async def begin(**changes):
        settings = {
            "instance": "7e57",
            "slot_net": SLOT_NET,
            "run_directory": directory,
            "resolv_conf": directory / "resolv.conf",
            "host_directory": directory / "host",
            "spare": 0,
            **changes,
        }
        network = await Network.open(NetworkSettings(**settings), tasks, SystemClock())
        closing.push_async_callback(network.aclose, remove=True)
        return network

    yield begin
    await closing.aclose()
    await tasks.aclose()
    assert errors == []


@pytest.fixture
async def take(request, closing):
    """Take a slot and hold it to the test's end; `both_kinds` makes a test run with taps too.

    Behind a tap there is then a network stack, whose namespace stands for the guest's.
    """
    tap = getattr(request, "param", False)

    async def take_one(network):
        slot = await network.acquire(tap=tap)
        closing.callback(slot.close)
        if not tap:
            return slot
        return replace(slot, guest_fd=attach_stack(slot.tap_fd, closing))

    return take_one


@pytest.fixture
async def internet(world, closing):
    echo = await Echo.open(world.internet)
    closing.push_async_callback(echo.aclose)


@pytest.fixture
async def resolver(world, closing):
    resolver = await Resolver.open(world.internet, RECORDS)
    closing.push_async_callback(resolver.aclose)
    return resolver
