"""Routes of logs: a reply that is written piece by piece, or a stream that goes on with the job."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from magsd.aio import Clock
from magsd.api import render
from magsd.api.caller import Known, Parts
from magsd.api.jobs import Position, Ref, checked_ref
from magsd.api.schemas import LogsReply
from magsd.api.service import Logs
from magsd.api.waits import StoppingError
from magsd.model.errors import InvalidError, MagsError, UnauthorizedError
from magsd.model.records import LogLine, LogSource

router = APIRouter(tags=["jobs"])

EVENT_STREAM: Final = "text/event-stream"
_LINES_AT_ONCE: Final = 200
_RENDERED_KEPT: Final = 16


@router.get(
    "/mags-jobs/{ref}/logs",
    summary="Log of a job",
    responses={
        200: {
            "model": LogsReply,
            "content": {
                EVENT_STREAM: {
                    "schema": {
                        "type": "string",
                        "description": "One event a line of the log; its id is its `seq`.",
                    }
                }
            },
        }
    },
)
async def logs(
    request: Request,
    caller: Known,
    ref: Ref,
    source: Annotated[LogSource | None, Query()] = None,
    after: Position = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """The newest 50 000 entries, or those beyond `after`. With `Accept: text/event-stream`,
    a live stream that ends with the event `end` when the job does, or with `error`."""
    ref = checked_ref(ref)
    if EVENT_STREAM not in request.headers.get("accept", ""):
        found = await caller.service.logs(caller.principal, ref, source=source, after=after)
        pieces = _pieces(found, caller.parts.clock, with_seq=after is not None)
        return StreamingResponse(pieces, media_type="application/json")
    if last_event_id:
        after = _position(last_event_id)
    # Refused here, an unknown job is a 404 and not a stream that breaks.
    job = await caller.service.status(caller.principal, ref)
    lines = caller.service.follow_logs(
        caller.principal, job.request_id, after=after or 0, source=source
    )
    return EventStream(lines, caller.parts, caller.is_valid)


def _position(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 18):
        raise InvalidError("Last-Event-ID must be the id of an event of this stream")
    return int(last_event_id)


async def _pieces(found: Logs, clock: Clock, *, with_seq: bool) -> AsyncIterator[bytes]:
    """Yield the reply in pieces, each sent before the next is made; others have their turn between."""
    yield b'{"logs":['
    lines = found.lines
    for start in range(0, len(lines), _LINES_AT_ONCE):
        entries = [
            _json(render.line(line, with_seq=with_seq))
            for line in lines[start : start + _LINES_AT_ONCE]
        ]
        yield (b"," if start else b"") + b",".join(entries)
        await clock.sleep(0)
    yield b'],"truncated":true}' if found.truncated else b"]}"


def _json(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


class EventStream(Response):
    """Lines of a log as server-sent events, with a comment now and then."""

    media_type = EVENT_STREAM

    def __init__(
        self,
        lines: AsyncIterator[Sequence[LogLine]],
        parts: Parts,
        has_valid_token: Callable[[], bool],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._lines = lines
        self._parts = parts
        self._has_valid_token = has_valid_token

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the job is over, the client has gone, its token has ended or the
        server stops.

        In the last case the stream has no `end`: its client resumes it.
        """
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(StoppingError):
            async with self._parts.waits.hold(), asyncio.TaskGroup() as group:
                work = [
                    group.create_task(self._write(send), name="log-events"),
                    group.create_task(self._beat(send), name="log-heartbeat"),
                    group.create_task(gone(receive), name="log-client"),
                ]
                await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in work:
                    task.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _write(self, send: Send) -> None:
        try:
            async for lines in self._lines:
                self._check_token()
                await _send(send, _rendered.of(lines))
        except MagsError as error:
            await _send_error(send, error)
            return
        finally:
            if isinstance(self._lines, AsyncGenerator):
                await self._lines.aclose()
        await _send(send, b"event: end\ndata: {}\n\n")

    async def _beat(self, send: Send) -> None:
        while True:
            await self._parts.clock.sleep(self._parts.heartbeat_s)
            try:
                self._check_token()
            except UnauthorizedError as error:
                await _send_error(send, error)
                return
            await _send(send, b":\n\n")

    def _check_token(self) -> None:
        if not self._has_valid_token():
            raise UnauthorizedError("the token of this stream is not valid any more")


class _Rendered:
    """Events of lines rendered lately: all who follow a log are given the same sequences."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[Sequence[LogLine], bytes]] = OrderedDict()

    def of(self, lines: Sequence[LogLine]) -> bytes:
        """Return the events of `lines`, which never change."""
        if (known := self._kept.get(id(lines))) is not None and known[0] is lines:
            return known[1]
        events = b"".join(_event(line) for line in lines)
        self._kept[id(lines)] = (lines, events)
        if len(self._kept) > _RENDERED_KEPT:
            self._kept.popitem(last=False)
        return events


_rendered = _Rendered()


def _event(line: LogLine) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (line.seq, _json(render.line(line, with_seq=True)))


async def _send(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})


async def _send_error(send: Send, error: MagsError) -> None:
    # The reply has begun: only the stream itself can tell.
    why = {"error": error.message, "code": error.code}
    await _send(send, b"event: error\ndata: %b\n\n" % _json(why))


async def gone(receive: Receive) -> None:
    """Return when the client has ended its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
