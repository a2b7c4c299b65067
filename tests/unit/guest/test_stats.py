"""What a guest tells of its processes; the agent is the test."""

import asyncio

import pytest

from magsd.guest.shim import ShimError
from magsd.guest.stats import GuestStats, stats
from magsd.guest.wire import Frame, Kind, pack_fields, parse_fields
from tests.unit.guest.peer import soon

FIRST = 0x10000


async def told(linked, **numbers):
    connection, peer = linked
    asking = asyncio.create_task(stats(connection))
    assert parse_fields((await peer.expect(Kind.OPEN)).payload).words == ("control", "stats")
    await peer.send(Frame(Kind.EXIT, FIRST, payload=pack_fields("", numbers.items())))
    return await soon(asking)


async def test_numbers_are_told(linked):
    found = await told(linked, cpu_ns="7000", processes="3", now_ns="9")
    assert found == GuestStats(cpu_ns=7000, processes=3, now_ns=9)


@pytest.mark.parametrize("text", ["-1", "x", "1e9", "9" * 30])
async def test_numbers_that_are_none(linked, text):
    with pytest.raises(ShimError, match="none"):
        await told(linked, cpu_ns=text, processes="3", now_ns="9")


@pytest.mark.parametrize(
    ("cpu_ns", "now_ns", "busy"), [(2000, 2000, 1.0), (1500, 2000, 0.5), (0, 2000, 0), (9, 1000, 0)]
)
def test_how_busy_it_was(cpu_ns, now_ns, busy):
    earlier = GuestStats(cpu_ns=1000, processes=1, now_ns=1000)
    assert GuestStats(cpu_ns, 1, now_ns).busy_since(earlier) == busy
