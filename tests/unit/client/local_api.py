"""An HTTP server of the tests' own: it answers what a test has laid down, and remembers requests."""

import json
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

JSON = "application/json"


@dataclass
class Reply:
    """What to answer: a status and JSON, or raw bytes, or nothing but a closed connection."""

    content: object = None
    status: int = 200
    raw: bytes | None = None
    content_type: str = "application/json"
    is_dropped: bool = False
    missing_bytes: int = 0
    """So many that are promised do not come."""
    before: threading.Event | None = None
    """Waited for before the answer is sent."""


@dataclass
class Request:
    method: str
    path: str
    query: dict
    headers: dict
    body: object


@dataclass
class Api:
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    replies: dict = field(default_factory=lambda: defaultdict(deque))
    closing: threading.Event = field(default_factory=threading.Event)

    def on(self, method, path, *replies):
        """Answer with one reply after the other; the last one stays."""
        self.replies[method, path].extend(
            reply if isinstance(reply, Reply) else Reply(reply) for reply in replies
        )

    def take(self, request):
        with self.arrived:
            self.requests.append(request)
            self.arrived.notify_all()
            queue = self.replies[request.method, request.path]
            if not queue:
                return Reply({"error": f"no {request.method} {request.path}"}, 404)
            return queue.popleft() if len(queue) > 1 else queue[0]

    def wait_for(self, path, count=1):
        """Return when `path` was asked for `count` times."""

        def has_come():
            return len([request for request in self.requests if request.path == path]) >= count

        with self.arrived:
            assert self.arrived.wait_for(has_come, 20), f"{path} was not asked for"

    def asked(self):
        return [(request.method, request.path) for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def do_GET(self):
        body = self._body()
        parts = urlsplit(self.path)
        reply = self.api.take(
            Request(
                self.command,
                parts.path,
                {key: values[-1] for key, values in parse_qs(parts.query).items()},
                {key.lower(): value for key, value in self.headers.items()},
                _decoded(body, self.headers.get("Content-Type", "")),
            )
        )
        if reply.before is not None:
            while not reply.before.wait(0.05) and not self.api.closing.is_set():
                pass
        if reply.is_dropped:
            self.close_connection = True
            return
        content = reply.raw if reply.raw is not None else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(content) + reply.missing_bytes))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection |= reply.missing_bytes > 0

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *arguments):
        pass


def _decoded(body, content_type):
    return json.loads(body) if body and content_type == JSON else body or None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that leave early are part of some tests."""


@contextmanager
def serving() -> Iterator[Api]:
    """Serve an `Api` inside the block."""
    api = Api()
    handler = type("Handler", (_Handler,), {"api": api})
    with _Server(("127.0.0.1", 0), handler) as server:
        api.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield api
        finally:
            api.closing.set()
            server.shutdown()
            thread.join()


def events(*entries, ends=True):
    """Return an event stream of log entries, with ids 1, 2, …"""
    text = "".join(
        f": keep-alive\n\nid: {number}\ndata: {json.dumps(entry, ensure_ascii=False)}\n\n"
        for number, entry in enumerate(entries, 1)
    )
    text += "event: end\ndata: {}\n\n" if ends else ""
    return Reply(raw=text.encode(), content_type="text/event-stream")


def line(message, source="stdout"):
    return {"timestamp": "2026-01-31T12:00:00Z", "source": source, "message": message}
