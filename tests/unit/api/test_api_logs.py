"""Logs: one reply, and the stream of events."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.api.schemas import LogsReply
from magsd.model.records import LogLine, LogSource

NOW = datetime(2026, 1, 31, 12, 0, 0, 1000, tzinfo=UTC)
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def job(book, admin):
    book.log = [
        LogLine(NOW, LogSource.SYSTEM, "starting", 10),
        LogLine(NOW, LogSource.STDOUT, 'a "line" \u2028 ä', 20),
        LogLine(NOW, LogSource.STDERR, "oh", 30),
    ]
    return book.add(admin.principal)


@pytest.fixture
def url(job):
    return f"/api/v1/mags-jobs/{job.request_id}/logs"


def events(text):
    for block in text.split("\n\n"):
        if fields := dict(line.split(": ", 1) for line in block.split("\n") if ": " in line):
            yield fields


async def test_a_log(client, url):
    reply = await client.get(url)
    assert reply.headers["content-type"] == "application/json"
    LogsReply.model_validate(reply.json())
    assert reply.json() == {
        "logs": [
            {
                "timestamp": "2026-01-31T12:00:00.001Z",
                "level": level,
                "message": message,
                "source": source,
            }
            for level, message, source in [
                ("info", "starting", "system"),
                ("info", 'a "line" \u2028 ä', "stdout"),
                ("error", "oh", "stderr"),
            ]
        ]
    }


async def test_an_empty_log(client, url, book):
    book.log = []
    assert (await client.get(url)).json() == {"logs": []}


async def test_a_long_log_comes_whole(client, url, book):
    book.log = [LogLine(NOW, LogSource.STDOUT, str(n), n + 1) for n in range(1001)]
    book.is_truncated = True
    reply = (await client.get(url)).json()
    assert [entry["message"] for entry in reply["logs"]] == [str(n) for n in range(1001)]
    assert reply["truncated"] is True


async def test_positions_are_told_to_those_who_ask(client, url):
    reply = (await client.get(f"{url}?after=0")).json()
    LogsReply.model_validate(reply)
    assert [entry["seq"] for entry in reply["logs"]] == [10, 20, 30]
    reply = (await client.get(f"{url}?after=20&source=stderr")).json()
    assert [entry["seq"] for entry in reply["logs"]] == [30]


@pytest.mark.parametrize("query", ["source=kernel", "after=-1", "after=x", f"after={2**63}"])
async def test_bad_queries(client, url, query):
    reply = await client.get(f"{url}?{query}")
    assert reply.status_code == 400
    assert query.split("=")[0] in reply.json()["error"]


async def test_a_stream_of_a_job_that_is_over(client, url):
    reply = await client.get(url, headers=EVENTS)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *lines, end = events(reply.text)
    assert [event["id"] for event in lines] == ["10", "20", "30"]
    assert json.loads(lines[1]["data"])["message"] == 'a "line" \u2028 ä'
    assert json.loads(lines[1]["data"])["seq"] == 20
    assert end == {"event": "end", "data": "{}"}


async def test_a_stream_is_resumed_by_the_last_event(client, url):
    reply = await client.get(f"{url}?after=0", headers={**EVENTS, "Last-Event-ID": "20"})
    assert [event.get("id") for event in events(reply.text)] == ["30", None]


@pytest.mark.parametrize("last", ["x", "-1", "9" * 30])
async def test_bad_last_events(client, url, last):
    reply = await client.get(url, headers={**EVENTS, "Last-Event-ID": last})
    assert reply.status_code == 400
    assert "Last-Event-ID" in reply.json()["error"]


async def test_a_stream_of_an_unknown_job_is_not_begun(client):
    reply = await client.get("/api/v1/mags-jobs/nobody/logs", headers=EVENTS)
    assert reply.status_code == 404


class Connection:
    """One request at the ASGI interface, held open."""

    def __init__(self, url, admin):
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": url,
            "raw_path": url.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [
                (b"authorization", f"Bearer {admin.secret}".encode()),
                (b"accept", b"text/event-stream"),
            ],
        }
        self.is_gone = asyncio.Event()
        self.body = b""
        self.has_beat = asyncio.Event()
        self.has_ended = False

    async def receive(self):
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.body += message.get("body", b"")
        if self.body.endswith(b"\n\n:\n\n"):
            self.has_beat.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.has_ended = True


class QuickClock(SystemClock):
    """A clock whose every wait is over soon."""

    async def sleep(self, seconds):
        await super().sleep(0.001)


@pytest.fixture
def open_stream(book, waits, url, admin):
    book.follow_forever = True
    app = create_app(book, QuickClock(), waits)
    connection = Connection(url, admin)
    return connection, app(connection.scope, connection.receive, connection.send)


async def test_a_silent_stream_beats_until_its_client_goes(open_stream):
    connection, serve = open_stream
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(serve)
        await connection.has_beat.wait()
        connection.is_gone.set()
    assert b"event: end" not in connection.body


async def test_a_stream_ends_without_end_when_the_server_stops(open_stream, waits):
    connection, serve = open_stream
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(serve)
        await connection.has_beat.wait()
        waits.stop()
    assert connection.has_ended
    assert b"event: end" not in connection.body
