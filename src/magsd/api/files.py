"""The route of uploads."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from magsd.api.caller import Known
from magsd.api.errors import json_response
from magsd.api.file_schemas import UploadReply
from magsd.api.multipart import FIELD, FileForm
from magsd.model.errors import InvalidError, TooLargeError
from magsd.model.uploads import UPLOAD_MAX_BYTES

router = APIRouter(tags=["files"])

_AROUND_MAX_BYTES: Final = 64 << 10
"""What a form may have beside its file."""
_SILENCE_S: Final = 60.0
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": f"At most {UPLOAD_MAX_BYTES >> 20} MiB.",
                        }
                    },
                    "required": [FIELD],
                }
            }
        },
    }
}


@router.post(
    "/mags-files",
    status_code=201,
    summary="Upload a file",
    responses={201: {"model": UploadReply}},
    openapi_extra=_BODY,
)
async def upload(request: Request, caller: Known) -> Response:
    """Any number of jobs may have it by its `file_id`. Of its name the last path element is kept."""
    form = FileForm(request.headers.get("content-type", ""))
    files = caller.service.files
    async with files.receiving(caller.principal) as received:
        async for chunk in _body(request):
            for piece in form.feed(chunk):
                await received.write(piece)
        file = await files.keep(caller.principal, received, form.file_name())
    reply = {"file_id": file.file_id, "file_name": file.name, "size": file.size_bytes}
    return json_response(reply, 201)


async def _body(request: Request) -> AsyncIterator[bytes]:
    """Yield the body. Raises `TooLargeError`, and `InvalidError` when it does not come."""
    most = UPLOAD_MAX_BYTES + _AROUND_MAX_BYTES
    declared = request.headers.get("content-length", "")
    size_bytes = int(declared) if declared.isdigit() else 0
    chunks = aiter(request.stream())
    try:
        while size_bytes <= most:
            async with asyncio.timeout(_SILENCE_S):
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            size_bytes += 0 if declared else len(chunk)
            yield chunk
    except ClientDisconnect as error:
        raise InvalidError("the connection ended before the body did") from error
    except TimeoutError as error:
        raise InvalidError(f"nothing of the body came for {_SILENCE_S:.0f} s") from error
    raise TooLargeError(f"a file may have at most {UPLOAD_MAX_BYTES >> 20} MiB")
