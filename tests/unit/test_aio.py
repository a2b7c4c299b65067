"""Tasks with an owner, undo that is not cut short, and calls that are shared."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magsd.aio import SingleFlight, SystemClock, Tasks, backoff_s, finish, unless


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_task_that_fails_is_told_once_and_its_siblings_go_on():
    told = []
    tasks = Tasks(lambda name, error: told.append((name, str(error))))
    gate = asyncio.Event()

    async def fail() -> None:
        raise ValueError("no")

    sibling = tasks.spawn("sibling", gate.wait())
    tasks.spawn("failing", fail())
    await settle()
    assert told == [("failing", "no")]
    assert not sibling.done()
    await tasks.aclose()
    assert sibling.cancelled()


async def test_closing_waits_for_the_undo_of_each_task_and_of_those_it_starts():
    done = []
    tasks = Tasks(lambda *_: None)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("undone")

    tasks.spawn("a", work())
    tasks.spawn("b", work())
    await settle()
    await tasks.aclose()
    assert done == ["undone", "undone"]
    with pytest.raises(RuntimeError, match="closing"):
        tasks.spawn("late", work())


async def test_finish_ends_its_work_and_raises_the_cancellation_then():
    gate, ended = asyncio.Event(), []

    async def work() -> str:
        await gate.wait()
        ended.append(True)
        return "result"

    task = asyncio.create_task(finish(work()))
    await settle()
    for _ in range(3):
        task.cancel()
        await settle()
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert await finish(work()) == "result"


async def test_finish_raises_what_its_work_raises():
    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(work())


async def test_unless_gives_the_result_or_ends_the_work():
    event, undone = asyncio.Event(), []

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            undone.append(True)
        return "never"

    async def quick() -> str:
        return "result"

    assert await unless(event, quick()) == "result"
    waiting = asyncio.create_task(unless(event, work()))
    await settle()
    event.set()
    assert await waiting is None
    assert undone


async def test_unless_keeps_a_result_that_came_at_the_same_moment():
    event, gate = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        await gate.wait()
        return "result"

    waiting = asyncio.create_task(unless(event, work()))
    await settle()
    gate.set()
    await asyncio.sleep(0)
    event.set()
    assert await waiting == "result"


async def test_unless_passes_errors_and_cancellation_on():
    event = asyncio.Event()

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await unless(event, fail())
    waiting = asyncio.create_task(unless(event, asyncio.Event().wait()))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_call_under_way_is_shared_and_outlives_one_who_leaves():
    flights, gate, calls = SingleFlight(), asyncio.Event(), []

    async def call() -> int:
        calls.append(1)
        await gate.wait()
        return len(calls)

    first, second = (asyncio.create_task(flights.do("key", call)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    gate.set()
    assert await second == 1
    assert await flights.do("key", call) == 2


@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(1, 100))
def test_back_off_grows_to_its_limit_and_stays_there(attempt, first_s, most_s):
    wait_s = backoff_s(attempt, first_s, most_s)
    assert first_s / 2 <= wait_s <= most_s
    if attempt > 20:
        assert wait_s >= most_s / 2


async def test_the_clock_of_the_host():
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert clock.now().utcoffset().total_seconds() == 0
