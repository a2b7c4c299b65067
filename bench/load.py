"""A load generator, a process of its own.

    python -m bench.load URL TOKEN submit|JOB COUNT CONNECTIONS BODY

Speaks HTTP/1.1 over kept connections with bytes made beforehand, so that it
is the server that is measured. Prints one JSON object.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return status and body of one reply that says its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return status, await reader.readexactly(int(value))
    raise ValueError(f"a reply without Content-Length: {head!r}")


def request_of(url: str, token: str, method: str, path: str, body: bytes = b"") -> bytes:
    """Return the bytes of one request."""
    head = (
        f"{method} /api/v1{path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """The same request, sent `count` times over some connections."""

    def __init__(self, url: str, request: bytes, count: int) -> None:
        self._address = urlsplit(url)
        self._request = request
        self._left = count
        self.latencies_ms: list[float] = []
        self.bodies: list[bytes] = []
        self.refused = 0

    async def run(self, connections: int) -> float:
        """Send them all; return how many seconds it took."""
        opened = [
            await asyncio.open_connection(self._address.hostname, self._address.port)
            for _ in range(connections)
        ]
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for reader, writer in opened:
                group.create_task(self._work(reader, writer))
        took_s = time.perf_counter() - started
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()
        return took_s

    async def _work(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._left > 0:
            self._left -= 1
            began = time.perf_counter()
            writer.write(self._request)
            status, body = await read_reply(reader)
            self.latencies_ms.append((time.perf_counter() - began) * 1000)
            if status >= 300:
                self.refused += 1
            else:
                self.bodies.append(body)


async def main() -> None:
    """Do what the command line says."""
    url, token, what, count, connections, body = sys.argv[1:7]
    if what == "submit":
        request = request_of(url, token, "POST", "/mags-jobs", body.encode())
    else:
        request = request_of(url, token, "GET", f"/mags-jobs/{what}/status")
    load = Load(url, request, int(count))
    took_s = await load.run(int(connections))
    jobs = [json.loads(body)["request_id"] for body in load.bodies] if what == "submit" else []
    print(
        json.dumps(
            {
                "seconds": took_s,
                "count": len(load.latencies_ms),
                "refused": load.refused,
                "latencies_ms": [round(value, 3) for value in load.latencies_ms],
                "jobs": jobs,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
