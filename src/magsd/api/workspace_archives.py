"""Routes of workspaces as archives: what goes out and comes in is streamed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from magsd.api import render
from magsd.api.caller import Known
from magsd.api.errors import json_response
from magsd.api.logs import gone
from magsd.api.workspace_schemas import WorkspaceVersionReply
from magsd.api.workspaces import Name, checked_name
from magsd.core.workspace_archives import Export
from magsd.model.errors import InvalidError

router = APIRouter(tags=["workspaces"])

TAR: Final = "application/x-tar"
ANYTHING: Final = "application/octet-stream"
_SILENCE_S: Final = 60.0
_VERSION_MAX: Final = 2**31 - 1
_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/mags-workspaces/{name}/export",
    summary="Export a workspace",
    response_class=Response,
    responses={200: {"description": "The archive.", "content": {TAR: _BINARY}}},
)
async def export(
    caller: Known,
    name: Name,
    form: Annotated[Literal["oci", "tar"], Query(alias="format")] = "oci",
    version: Annotated[int | None, Query(ge=1, le=_VERSION_MAX)] = None,
) -> Response:
    """The root filesystem of a version, by default the newest: as an OCI image whose layers are the
    image's and the workspace's, or as a plain tar of what a job sees."""
    found = await caller.service.archives.export(
        caller.principal, checked_name(name), form, version
    )
    return ArchiveReply(found)


@router.post(
    "/mags-workspaces/{name}/import",
    status_code=201,
    summary="Import a workspace",
    responses={201: {"model": WorkspaceVersionReply}},
    openapi_extra={"requestBody": {"required": True, "content": {ANYTHING: _BINARY}}},
)
async def import_(
    request: Request,
    caller: Known,
    name: Name,
    form: Annotated[Literal["auto", "oci", "tar"], Query(alias="format")] = "auto",
) -> Response:
    """A new workspace begins as the root filesystem in an archive: an OCI image or one of
    `docker save`, for this machine, or a plain tar; with gzip, zstd or no compression."""
    made = await caller.service.archives.import_(caller.principal, name, form, _body(request))
    return json_response(render.version(made), 201)


async def _body(request: Request) -> AsyncIterator[bytes]:
    pieces = request.stream()
    try:
        while True:
            async with asyncio.timeout(_SILENCE_S):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece
    except ClientDisconnect as error:
        raise InvalidError("the connection ended before the archive did") from error
    except TimeoutError as error:
        raise InvalidError(f"nothing of the archive came for {_SILENCE_S:.0f} seconds") from error
    finally:
        await pieces.aclose()


class ArchiveReply(Response):
    """An archive, sent as it is made; it is closed when it was sent or its reader has gone."""

    media_type = TAR

    def __init__(self, found: Export) -> None:
        super().__init__(
            headers={"Content-Disposition": f'attachment; filename="{found.file_name}"'}
        )
        del self.headers["content-length"]
        if found.size_bytes is not None:
            self.headers["content-length"] = str(found.size_bytes)
        self._found = found

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. What fails now breaks the connection: the reply must not look complete."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send(send), name="archive")
                leaving = group.create_task(gone(receive), name="archive-client")
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
                sending.cancel()
                leaving.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._found.aclose()

    async def _send(self, send: Send) -> None:
        async for piece in self._found.pieces:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except TimeoutError:  # It keeps room on the disk, and does not read.
                return
        await send({"type": "http.response.body", "body": b""})
