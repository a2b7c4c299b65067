"""Routes of jobs that run: a command in the VM, and the job's settings."""

import codecs
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import StreamingResponse

from magsd.aio import Clock, unless_done
from magsd.api.body import check, json_body, read_object, warnings_of
from magsd.api.caller import Known
from magsd.api.errors import json_response
from magsd.api.jobs import Ref, checked_ref
from magsd.api.live_schemas import ExecRequest, Executed, Updated, UpdateRequest
from magsd.api.waits import StoppingError
from magsd.model import records
from magsd.model.errors import CapacityError, InvalidError


class _JobConvertor(StringConvertor):
    """A job's id or name where nothing follows: what is routed by itself is none."""

    regex = "(?!(?:pool-status|usage)$)[^/]+"


register_url_convertor("job", _JobConvertor())
router = APIRouter(tags=["jobs"])

_PIECE_BYTES: Final = 64 * 1024


@router.post(
    "/mags-jobs/{ref}/exec",
    summary="Run a command in a job's VM",
    responses={200: {"model": Executed}},
    openapi_extra=json_body(ExecRequest),
)
async def execute(request: Request, caller: Known, ref: Ref) -> Response:
    """Answers when the command is over. What it leaves running goes on; a caller who goes away
    ends it. A job that sleeps is woken for it."""
    fields = await read_object(request)
    asked = check(ExecRequest, fields)
    work = caller.service.execs.run(
        caller.principal, checked_ref(ref), asked.command, asked.timeout
    )
    try:
        async with caller.parts.waits.hold():
            done = await unless_done(_gone(request), work)
    except StoppingError:
        raise CapacityError("the service is stopping: the command was ended") from None
    if done is None:
        raise InvalidError("the connection ended before the command did")
    return _reply(done, warnings_of(ExecRequest, fields), caller.parts.clock)


@router.patch(
    "/mags-jobs/{ref:job}",
    summary="Change a job's settings",
    responses={200: {"model": Updated}},
    openapi_extra=json_body(UpdateRequest, required=False),
)
async def update(request: Request, caller: Known, ref: Ref) -> Response:
    """What is left out stays as it is."""
    fields = await read_object(request)
    asked = check(UpdateRequest, fields)
    await caller.service.update(
        caller.principal,
        checked_ref(ref),
        no_sleep=asked.no_sleep,
        startup_command=asked.startup_command,
    )
    warnings = warnings_of(UpdateRequest, fields)
    return json_response({"success": True, "message": "Job updated", **warnings})


async def _gone(request: Request) -> None:
    """Return when the client has ended its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reply(done: records.Executed, warnings: dict[str, Any], clock: Clock) -> Response:
    rest = {
        "exit_code": done.exit_code,
        "duration_ms": done.duration_ms,
        **({"truncated": True} if done.is_truncated else {}),
        **warnings,
    }
    if len(done.stdout) + len(done.stderr) > _PIECE_BYTES:
        return StreamingResponse(_pieces(done, rest, clock), media_type="application/json")
    output = {"stdout": _text(done.stdout), "stderr": _text(done.stderr)}
    return json_response({**rest, **output})


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")


async def _pieces(
    done: records.Executed, rest: dict[str, Any], clock: Clock
) -> AsyncIterator[bytes]:
    """Yield the reply in pieces, each sent before the next is made; others have their turn between.

    Written out, output takes up to six times its size.
    """
    yield json.dumps(rest).encode()[:-1]
    for name, output in (("stdout", done.stdout), ("stderr", done.stderr)):
        yield f', "{name}": "'.encode()
        for piece in _decoded(output):
            yield json.dumps(piece, ensure_ascii=False)[1:-1].encode()
            await clock.sleep(0)
        yield b'"'
    yield b"}"


def _decoded(output: bytes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    view = memoryview(output)
    for start in range(0, len(view), _PIECE_BYTES):
        yield decoder.decode(bytes(view[start : start + _PIECE_BYTES]))
    yield decoder.decode(b"", final=True)
