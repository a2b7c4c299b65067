"""Logs: one reply, and the stream of events."""

import asyncio
import json

import pytest
import pytest_asyncio

from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.api.schemas import LogsReply
from tests.api_service import DEADLINE_S

EVENTS = {"Accept": "text/event-stream"}
SCRIPT = "printf 'a \"line\" \u2028 ä\\n'; echo oh >&2"


def url_of(job):
    return f"/api/v1/mags-jobs/{job.request_id}/logs"


@pytest_asyncio.fixture(loop_scope="session")
async def url(admin):
    """Of a job that is over, and printed a line to each of its outputs."""
    return url_of(await admin.run(SCRIPT))


@pytest_asyncio.fixture(loop_scope="session")
async def live(admin):
    """Of a job that goes on, and has printed a line."""
    job = await admin.running("echo line; sleep 3000")
    async with asyncio.timeout(DEADLINE_S):
        async for lines in admin.application.follow_logs(admin.principal, job.request_id):
            if any(line.message == "line" for line in lines):
                break
    return url_of(job)


def events(text):
    for block in text.split("\n\n"):
        if fields := dict(line.split(": ", 1) for line in block.split("\n") if ": " in line):
            yield fields


async def printed(client, url, query=""):
    entries = (await client.get(f"{url}{query}")).json()["logs"]
    return [entry for entry in entries if entry["source"] != "system"]


async def test_a_log(client, url):
    reply = await client.get(url)
    assert reply.headers["content-type"] == "application/json"
    LogsReply.model_validate(reply.json())
    assert "truncated" not in reply.json()
    entries = await printed(client, url)
    shown = {(entry["level"], entry["message"], entry["source"]) for entry in entries}
    assert shown == {("info", 'a "line" \u2028 ä', "stdout"), ("error", "oh", "stderr")}
    assert all(entry.keys() == {"timestamp", "level", "message", "source"} for entry in entries)


async def test_an_empty_log(client, admin):
    url = url_of(await admin.run("true"))
    assert (await client.get(f"{url}?source=stderr")).json() == {"logs": []}


async def test_a_long_log_comes_whole(client, admin):
    """Longer than what is sent in one piece."""
    url = url_of(await admin.run("seq 1001"))
    entries = await printed(client, url)
    assert [entry["message"] for entry in entries] == [str(n) for n in range(1, 1002)]


async def test_positions_are_told_to_those_who_ask(client, url):
    reply = (await client.get(f"{url}?after=0")).json()
    LogsReply.model_validate(reply)
    seqs = [entry["seq"] for entry in reply["logs"]]
    assert seqs == sorted(set(seqs))
    rest = (await client.get(f"{url}?after={seqs[0]}")).json()
    assert rest["logs"] == reply["logs"][1:]
    (line,) = (await client.get(f"{url}?after=0&source=stderr")).json()["logs"]
    assert line in reply["logs"]
    assert line["message"] == "oh"


@pytest.mark.parametrize("query", ["source=kernel", "after=-1", "after=x", f"after={2**63}"])
async def test_bad_queries(client, url, query):
    reply = await client.get(f"{url}?{query}")
    assert reply.status_code == 400
    assert query.split("=")[0] in reply.json()["error"]


async def test_a_stream_of_a_job_that_is_over(client, url):
    reply = await client.get(url, headers=EVENTS)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *lines, end = events(reply.text)
    logged = (await client.get(f"{url}?after=0")).json()["logs"]
    assert [json.loads(event["data"]) for event in lines] == logged
    assert [event["id"] for event in lines] == [str(entry["seq"]) for entry in logged]
    assert 'a "line" \u2028 ä' in [entry["message"] for entry in logged]
    assert end == {"event": "end", "data": "{}"}


async def test_a_stream_is_resumed_by_the_last_event(client, url):
    *lines, _ = events((await client.get(url, headers=EVENTS)).text)
    headers = {**EVENTS, "Last-Event-ID": lines[0]["id"]}
    *rest, end = events((await client.get(f"{url}?after=0", headers=headers)).text)
    assert rest == lines[1:]
    assert end["event"] == "end"


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
def open_stream(application, waits, live, admin):
    app = create_app(application, QuickClock(), waits)
    connection = Connection(live, admin)
    return connection, app(connection.scope, connection.receive, connection.send)


async def test_a_silent_stream_beats_until_its_client_goes(open_stream):
    connection, serve = open_stream
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(serve)
        await connection.has_beat.wait()
        connection.is_gone.set()
    assert b"event: end" not in connection.body


async def test_a_stream_ends_without_end_when_the_server_stops(open_stream, waits):
    connection, serve = open_stream
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(serve)
        await connection.has_beat.wait()
        waits.stop()
    assert connection.has_ended
    assert b"event: end" not in connection.body
