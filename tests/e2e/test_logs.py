"""Logs of a service in earnest: many who follow, one who does not read, a flood, an archive."""

import json
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Server, eventually, serving
from tests.integration.s3_server import BUCKET, s3_server

_FOLLOWERS = 100
_NO_POOL = {"MAGSD_POOL_MAX": "0", "MAGSD_POOL_MIN": "0"}
_MORE_MEMORY = 120 << 20
"""What the daemon may take for all of it; one reader of everything would take more."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose memory is of these tests alone, and in which no VM waits."""
    with serving(tmp_path_factory.mktemp("logs"), **_NO_POOL) as running:
        yield running


def _open_stream(server: Server, job: str, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(
        f"GET /api/v1/mags-jobs/{job}/logs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {server.token}\r\nAccept: text/event-stream\r\n\r\n".encode()
    )
    return connection


def _rest(connection: socket.socket) -> list[dict]:
    """Read a stream to its end; return its lines. It must end as one does."""
    content = bytearray()
    with connection:
        while received := connection.recv(1 << 20):
            content += received
    body = _unchunked(bytes(content).partition(b"\r\n\r\n")[2])
    *blocks, end, _ = body.split(b"\n\n")
    assert end == b"event: end\ndata: {}"
    return [json.loads(block.partition(b"data: ")[2]) for block in blocks if b"data: " in block]


def _unchunked(content: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = content.index(b"\r\n", at)
        length = int(content[at:end], 16)
        if not length:
            return b"".join(parts)
        parts.append(content[end + 2 : end + 2 + length])
        at = end + 4 + length


def _memory(server: Server) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_a_hundred_streams_of_one_log_have_every_line(server: Server, nothing_left: None) -> None:
    job = server.submit("sleep 3; for i in $(seq 10); do seq 500; sleep 0.2; done")
    server.running(job)
    before = _memory(server)
    streams = [_open_stream(server, job) for _ in range(_FOLLOWERS)]
    with ThreadPoolExecutor(_FOLLOWERS) as threads:
        followed = list(threads.map(_rest, streams))
    expected = [str(number) for _ in range(10) for number in range(1, 501)]
    for lines in followed:
        assert [line["message"] for line in lines] == expected
    assert _memory(server) - before < _MORE_MEMORY
    server.final(job)


def test_one_who_does_not_read_hinders_nobody(server: Server, nothing_left: None) -> None:
    job = server.submit("seq 1000; sleep 2; seq -f %0200.0f 1001 100000; echo last")
    server.running(job)
    before = _memory(server)
    away = [_open_stream(server, job, receive_buffer=4096) for _ in range(10)]
    with _open_stream(server, job) as other:
        lines = [line["message"] for line in _rest(other)]
    assert lines[:1000] == [str(number) for number in range(1, 1001)]
    assert lines[-1] == "last"
    assert server.final(job)["exit_code"] == 0
    assert _memory(server) - before < _MORE_MEMORY
    for connection in away[1:]:
        connection.close()
    late = _rest(away[0])
    assert [line["message"] for line in late[:1000]] == lines[:1000]
    assert late[-1]["message"] == "last"
    seqs = [line["seq"] for line in late]
    assert seqs == sorted(set(seqs))


def test_a_flood_leaves_the_service_quick(server: Server, nothing_left: None) -> None:
    """How quick is told, not judged: the host may be busy with other things."""
    line = "x" * 99
    with server.http() as http:
        quiet = _polls(http, server.submit("sleep 3"))
        flooded = _polls(http, job := server.submit(f"yes {line} | head -n 1000000; echo last"))
    assert server.final(job, 120)["exit_code"] == 0
    log = server.log_entries(job, after=0)
    assert log[0]["message"] == line
    assert server.log_entries(job)[-1]["message"] == "last"
    for name, polls in (("quiet", quiet), ("flooded", flooded)):
        middle, last = (
            statistics.median(polls) * 1000,
            statistics.quantiles(polls, n=100)[98] * 1000,
        )
        print(f"{name}: {len(polls)} polls, median {middle:.2f} ms, 99 % within {last:.2f} ms")


def _polls(http: httpx.Client, job: str) -> list[float]:
    """Poll a job's status until it is over; return how long each poll took, in seconds."""
    took = []
    while len(took) < 20_000:
        began = time.perf_counter()
        reply = http.get(f"/mags-jobs/{job}/status")
        took.append(time.perf_counter() - began)
        assert reply.status_code == 200, reply.text
        if reply.json()["status"] in ("completed", "error"):
            break
    return took


def test_logs_are_kept_in_a_bucket(tmp_path_factory: pytest.TempPathFactory) -> None:
    with s3_server() as s3:
        settings = {"MAGSD_OBJECT_STORE_URL": f"s3://{BUCKET}/mags", **s3.aws}
        settings |= {"MAGSD_LOGS_CACHE_MB": "0", **_NO_POOL}
        with serving(tmp_path_factory.mktemp("bucket"), **settings) as server:
            job = server.submit("seq 2000; echo oops >&2")
            server.final(job)
            local = server.data / "logs" / job
            log = server.log_entries(job)
            eventually(lambda: not local.exists(), what="the log is in the bucket alone")
            assert server.log_entries(job) == log
            assert len(log) == 2001
            eventually(lambda: not local.exists(), what="the copy is dropped")
            s3.stop()
            with server.http() as http:
                reply = http.get(f"/mags-jobs/{job}/logs")
            assert reply.status_code == 503, reply.text
            other = server.submit("echo here")
            assert server.final(other)["exit_code"] == 0
            assert server.stdout(other) == ["here"]
            ready = httpx.get(f"{server.url}/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "ready")
            assert "object store" in ready.json()["warning"]
            s3.start()
            assert server.log_entries(job) == log
            left = server.data / "logs" / other
            eventually(lambda: not left.exists(), 90, "what was kept back is in the bucket too")
            assert server.stdout(other) == ["here"]
