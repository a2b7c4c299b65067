"""Published statuses, and waiting for the next."""

import asyncio
import dataclasses
from datetime import UTC, datetime

import pytest

from magsd.core.events import Events
from magsd.model.lifecycle import Status
from magsd.model.names import AccountId, RequestId, Subdomain
from magsd.model.records import JobStatus

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def status(name: str, generation: int = 1, state: Status = Status.RUNNING) -> JobStatus:
    blank = {field.name: None for field in dataclasses.fields(JobStatus)}
    known = {
        "request_id": RequestId(name),
        "account_id": AccountId("acc"),
        "subdomain": Subdomain("0"),
        "status": state,
        "generation": generation,
    }
    return JobStatus(**{**blank, **known})


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_wait_are_woken_by_what_is_newer():
    events = Events(10)
    events.publish(status("a"))
    waiting = [asyncio.create_task(events.changed(RequestId("a"), 1)) for _ in range(3)]
    other = asyncio.create_task(events.changed(RequestId("a"), 2))
    await settle()
    newer = status("a", 2)
    events.publish(newer)
    assert [await task for task in waiting] == [newer] * 3
    await settle()
    assert not other.done()
    final = status("a", 3, Status.COMPLETED)
    events.publish(final)
    assert await other is final


async def test_what_is_newer_already_or_final_is_not_waited_for():
    events = Events(10)
    events.publish(status("a", 5))
    events.publish(status("b", 1, Status.ERROR))
    assert (await events.changed(RequestId("a"), 4)).generation == 5
    assert (await events.changed(RequestId("b"), 99)).is_final
    assert await events.changed(RequestId("nobody"), 0) is None


async def test_who_gives_up_leaves_nothing_behind():
    events = Events(10)
    events.publish(status("a"))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(events.changed(RequestId("a"), 1), 0)
    assert not events._waiting


async def test_live_jobs_stay_and_the_ended_unused_longest_go():
    events = Events(2)
    for name in "abc":
        events.publish(status(name))
    for name in "abc":
        assert events.get(RequestId(name)) is not None
    for name in "abc":
        events.publish(status(name, 2, Status.COMPLETED))
    assert events.get(RequestId("a")) is None
    events.remember(status("b", 2, Status.COMPLETED))
    events.publish(status("d", 1, Status.ERROR))
    assert [name for name in "abcd" if events.get(RequestId(name))] == ["b", "d"]
