"""The HTTP server on a socket: what reaches no route, what is held, and how it stops."""

import asyncio
import json

import httpx
import pytest
import pytest_asyncio

from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.api.http_server import HEAD_MAX_BYTES, HttpServer, listen
from magsd.api.waits import Waits
from tests.unit.api import conftest as parts

# All tests share an application, and so the event loop that it lives on.
pytestmark = pytest.mark.asyncio(loop_scope="session")

DEADLINE_S = 20
EVENTS = {"Accept": "text/event-stream"}

application = parts.application
admin = parts.admin


class Running:
    """A server on a free port of loopback."""

    def __init__(self, application, listener):
        waits = Waits()
        self.server = HttpServer(create_app(application, SystemClock(), waits), waits)
        self.port = listener.getsockname()[1]
        self.has_stopped = asyncio.Event()
        self.listener = listener

    async def run(self):
        await self.server.run_on(self.listener)
        self.has_stopped.set()

    async def stop(self):
        """Stop as at SIGTERM, and return when it has."""
        self.server.stop()
        async with asyncio.timeout(DEADLINE_S):
            await self.has_stopped.wait()

    async def answer(self, content):
        """Return all that is answered to bytes, up to the end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(content)
                return await reader.read()
            finally:
                writer.close()


@pytest_asyncio.fixture(loop_scope="session")
async def running(application):
    with listen("127.0.0.1", 0) as listener:
        running = Running(application, listener)
        serving = asyncio.ensure_future(running.run())
        yield running
        await running.stop()
        await serving


@pytest_asyncio.fixture(loop_scope="session")
async def client(running, admin):
    url = f"http://127.0.0.1:{running.port}"
    async with httpx.AsyncClient(
        base_url=url, headers=admin.headers, trust_env=False, timeout=DEADLINE_S
    ) as client:
        yield client


def refused(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert set(json.loads(body)) == {"error", "code"}
    return json.loads(body)["error"]


@pytest.mark.parametrize(
    "content", [b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"]
)
async def test_what_is_no_http(running, content):
    refused(await running.answer(content))


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: "])
async def test_a_head_without_end(running, start):
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(start)
    sent = 0
    async with asyncio.timeout(DEADLINE_S):
        try:
            while not reader.at_eof():
                writer.write(b"x" * 8192)
                await writer.drain()
                sent += 8192
                await asyncio.sleep(0)
        except ConnectionError:
            pass  # Ended before all was read, which may reset it.
        finally:
            writer.close()
    assert HEAD_MAX_BYTES < sent < (8 << 20)


async def test_a_head_that_is_too_large_is_refused_in_our_form(running):
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    async with asyncio.timeout(DEADLINE_S):
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        while not any(c._is_in_head for c in running.server.server_state.connections):
            await asyncio.sleep(0.01)
        # Too large with its last byte only: nothing is left unread that would reset all.
        writer.write(b"x" * (HEAD_MAX_BYTES + 1))
        assert "64 KiB" in refused(await reader.read())
    writer.close()


async def test_a_large_body_in_the_same_piece_as_its_head(client):
    reply = await client.post("/api/v1/mags-jobs", json={"script": "#" * (1 << 20)})
    assert reply.status_code == 202


async def test_a_refused_body_does_not_end_the_connection(client, running):
    for _ in range(3):
        reply = await client.post("/api/v1/mags-jobs", json={"script": "#" * (10 << 20)})
        assert reply.status_code == 413
    assert (await client.get("/healthz")).status_code == 200
    assert running.server.server_state.total_requests == 4
    assert len(running.server.server_state.connections) == 1


async def test_a_strangers_body_is_not_waited_for(running):
    head = b"POST /api/v1/mags-jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = await running.answer(head + b"Content-Length: 1000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_log_of_megabytes_comes_in_pieces_and_no_longer_than_its_limit(client, admin):
    job = await admin.run("seq 50001")
    reply = await client.get(f"/api/v2/mags-jobs/{job.request_id}/logs?source=stdout")
    assert [entry["message"] for entry in reply.json()["logs"]] == [
        str(number) for number in range(2, 50_002)
    ]
    assert reply.json()["truncated"] is True


async def until_printed(stream):
    """Read events up to that of the script's first line, and return the rest of them."""
    lines = stream.aiter_lines()
    async for line in lines:
        if '"message":"line"' in line:
            break
    return lines


async def test_held_requests_do_not_hold_up_a_stop(client, running, admin):
    job = await admin.running("echo line; sleep 3000")
    url = f"/api/v1/mags-jobs/{job.request_id}"
    async with client.stream("GET", f"{url}/logs", headers=EVENTS) as stream:
        rest = await until_printed(stream)
        poll = asyncio.ensure_future(client.get(f"{url}/status?wait=60&after={job.generation}"))
        async with asyncio.timeout(DEADLINE_S):
            while len(running.server.server_state.tasks) < 2:
                await asyncio.sleep(0.01)
        await running.stop()
        assert (await poll).json()["status"] == "running"
        assert "event: end" not in [line async for line in rest]


async def test_a_client_that_goes_away_ends_its_stream(client, running, admin):
    job = await admin.running("echo line; sleep 3000")
    url = f"/api/v1/mags-jobs/{job.request_id}/logs"
    async with client.stream("GET", url, headers=EVENTS) as stream:
        await until_printed(stream)
    async with asyncio.timeout(DEADLINE_S):
        while running.server.server_state.tasks:
            await asyncio.sleep(0.01)


async def test_an_offer_of_another_protocol_is_passed_over(running, admin):
    body = b'{"script": "echo Upgrade: h2c", "name": "offered"}'
    answer = await running.answer(
        b"POST /api/v1/mags-jobs HTTP/1.1\r\nHost: x\r\n"
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
        % (admin.secret.encode(), len(body), body)
    )
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert [job.name for job in await admin.jobs()] == ["offered"]
