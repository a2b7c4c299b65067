import asyncio
import contextlib
from collections import deque

import pytest

from magsd.aio import SystemClock, Tasks
from magsd.engine.network.slots import Slot
from magsd.engine.network.stock import SlotStock
from magsd.model.errors import LaunchError


class Workshop:
    """Makes slots without a network, when it is told to."""

    def __init__(self):
        self.made = 0
        self.orders = deque()
        self.ordered = asyncio.Event()

    async def make(self):
        order = asyncio.get_running_loop().create_future()
        self.orders.append(order)
        self.ordered.set()
        await order
        self.made += 1
        return Slot(self.made, -1, (), contextlib.ExitStack())

    async def deliver(self, error=None):
        while not self.orders:
            self.ordered.clear()
            await self.ordered.wait()
        order = self.orders.popleft()
        if error is None:
            order.set_result(None)
        else:
            order.set_exception(error)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def workshop():
    return Workshop()


@pytest.fixture
async def start(workshop):
    errors = []
    tasks = Tasks(lambda name, error: errors.append(error))

    def begin(spare):
        stock = SlotStock(workshop.make, spare, SystemClock())
        tasks.spawn("slots", stock.keep_full())
        return stock

    yield begin
    await tasks.aclose()
    assert errors == []


async def test_spare_slots_are_made_ahead_and_replaced(start, workshop):
    stock = start(2)
    await workshop.deliver()
    await workshop.deliver()
    await settle()
    assert stock.ready == {1, 2}
    assert not workshop.orders
    assert (await stock.take()).index == 1
    await workshop.deliver()
    await settle()
    assert stock.ready == {2, 3}


async def test_without_spares_a_slot_is_made_for_the_caller(start, workshop):
    stock = start(0)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        first = group.create_task(stock.take())
        second = group.create_task(stock.take())
        await workshop.deliver()
        await workshop.deliver()
    assert (first.result().index, second.result().index) == (1, 2)
    assert stock.ready == frozenset()


async def test_a_cancelled_caller_loses_no_slot(start, workshop):
    stock = start(0)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = group.create_task(stock.take())
        await settle()
        await workshop.deliver()
        while not workshop.made:
            await asyncio.sleep(0)
        waiting.cancel()
        await settle()
    assert (await stock.take()).index == 1


async def test_a_failure_is_told_to_those_who_wait_and_the_next_try_goes_on(start, workshop):
    stock = start(1)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = group.create_task(_outcome(stock.take()))
        await settle()
        await workshop.deliver(LaunchError("no veth"))
    assert waiting.result() == "no veth"
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        later = group.create_task(stock.take())
        await settle()
        await workshop.deliver()
    assert later.result().index == 1


async def test_at_the_end_those_who_wait_are_refused(start, workshop):
    stock = start(0)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = group.create_task(_outcome(stock.take()))
        await settle()
        assert stock.drain() == []
    assert waiting.result() == "the network is closing"


async def _outcome(work):
    try:
        return await work
    except LaunchError as error:
        return error.message
