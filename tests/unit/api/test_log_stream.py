"""The stream of a log by itself: what it shares, and how it tells that it cannot go on."""

import asyncio
import json
from datetime import UTC, datetime

from magsd.aio import SystemClock
from magsd.api.caller import Parts
from magsd.api.logs import EventStream
from magsd.api.waits import Waits
from magsd.metrics import Metrics
from magsd.model.errors import MagsError
from magsd.model.records import LogLine, LogSource

LINES = tuple(
    LogLine(datetime(2026, 1, 31, tzinfo=UTC), LogSource.STDOUT, str(number), number + 1)
    for number in range(3)
)


async def sent(lines, *, has_valid_token=lambda: True, heartbeat_s=60):
    """Return what a stream of `lines` sends to a client that stays."""
    parts = Parts(None, Waits(), SystemClock(), heartbeat_s, Metrics())
    bodies = []

    async def send(message):
        bodies.append(message.get("body", b""))

    async def receive():
        await asyncio.Event().wait()

    await EventStream(lines, parts, has_valid_token)({"type": "http"}, receive, send)
    return bodies


async def of(*batches, error=None):
    for batch in batches:
        yield batch
    if error is not None:
        raise error


async def test_a_log_that_turns_out_unreadable_is_told_in_the_stream():
    error = MagsError("the log of job x cannot be read: it is gone", "object y")
    *_, lines, last, _ = await sent(of(LINES, error=error))
    assert lines.count(b"id: ") == 3
    event, data = last.decode().strip().split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {"error": error.message, "code": "internal"}


async def test_the_same_lines_are_rendered_once():
    streams = await asyncio.gather(*(sent(of(LINES)) for _ in range(3)), sent(of(list(LINES))))
    events = [bodies[1] for bodies in streams]
    assert len(set(events)) == 1
    assert events[0] is events[1] is events[2]
    assert events[3] is not events[0]


async def test_nothing_is_sent_for_a_token_that_has_ended():
    answers = iter([True, False])
    bodies = await sent(of(LINES[:1], LINES[1:]), has_valid_token=lambda: next(answers))
    assert b"".join(bodies).count(b"id: ") == 1
    _, error = bodies[-2].decode().strip().split("data: ")
    assert json.loads(error)["code"] == "unauthorized"


async def test_a_silent_stream_of_such_a_token_ends_by_itself():
    async def silence():
        await asyncio.Event().wait()
        yield ()

    bodies = await sent(silence(), has_valid_token=lambda: False, heartbeat_s=0)
    assert b"unauthorized" in bodies[-2]
