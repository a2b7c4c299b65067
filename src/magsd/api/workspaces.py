"""Routes of workspaces: list, delete, versions, restore, fork, what nothing needs; a job's sync."""

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from magsd.api import render
from magsd.api.body import check, json_body, read_object
from magsd.api.caller import Known
from magsd.api.errors import json_response
from magsd.api.jobs import Ref, checked_ref
from magsd.api.schemas import Done
from magsd.api.workspace_schemas import (
    Collected,
    CollectRequest,
    ForkRequest,
    RestoreRequest,
    Synced,
    VersionsReply,
    WorkspacesReply,
    WorkspaceVersionReply,
)
from magsd.model.errors import NotFoundError

router = APIRouter(tags=["workspaces"])

_NAME_MAX: Final = 63
_PAGES_MAX: Final = 10**9
_LISTED: Final = 1000

Name = Annotated[str, Path(description="A workspace's `workspace_id`.")]


def checked_name(name: str) -> str:
    """Return a name that may be one. Raises `NotFoundError`."""
    if len(name) > _NAME_MAX or "\0" in name:
        raise NotFoundError("there is no such workspace: none can be called so")
    return name


@router.post(
    "/mags-jobs/{ref}/sync", summary="Sync a job's workspace", responses={200: {"model": Synced}}
)
async def sync(caller: Known, ref: Ref) -> Response:
    """What the job has changed up to one moment becomes a version of its workspace, while the job
    goes on. Answers when the version is stored durably."""
    began = caller.parts.clock.monotonic()
    synced = await caller.service.sync(caller.principal, checked_ref(ref))
    return json_response(
        {
            "success": True,
            "workspace_id": synced.workspace,
            "version": synced.version,
            "size_bytes": synced.size_bytes,
            "uploaded_bytes": synced.uploaded_bytes,
            "duration_ms": int((caller.parts.clock.monotonic() - began) * 1000),
        }
    )


@router.get(
    "/mags-workspaces", summary="List workspaces", responses={200: {"model": WorkspacesReply}}
)
async def list_workspaces(
    caller: Known,
    page: Annotated[int, Query(ge=1, le=_PAGES_MAX)] = 1,
    page_size: Annotated[int, Query(ge=1, le=_LISTED)] = _LISTED,
) -> Response:
    """Those of the caller's account, by name."""
    found, total = await caller.service.workspaces.listed(
        caller.principal, page=page, page_size=page_size
    )
    return json_response({"workspaces": [render.workspace(each) for each in found], "total": total})


@router.delete(
    "/mags-workspaces/{name}", summary="Delete a workspace", responses={200: {"model": Done}}
)
async def delete_workspace(caller: Known, name: Name) -> Response:
    """With all its versions; what was forked from it stays. Not while a job uses it."""
    await caller.service.workspaces.delete(caller.principal, checked_name(name))
    return json_response({"success": True, "message": "Workspace deleted"})


@router.get(
    "/mags-workspaces/{name}/versions",
    summary="List a workspace's versions",
    responses={200: {"model": VersionsReply}},
)
async def list_versions(caller: Known, name: Name) -> Response:
    """The newest first."""
    found = await caller.service.workspaces.versions(caller.principal, checked_name(name))
    return json_response(
        {"versions": [render.version(each) for each in found], "total": len(found)}
    )


@router.post(
    "/mags-workspaces/{name}/restore",
    summary="Restore an earlier version",
    responses={200: {"model": WorkspaceVersionReply}},
    openapi_extra=json_body(RestoreRequest),
)
async def restore(request: Request, caller: Known, name: Name) -> Response:
    """It becomes the newest version again, under a number of its own; none is lost."""
    asked = check(RestoreRequest, await read_object(request))
    made = await caller.service.workspaces.restore(
        caller.principal, checked_name(name), asked.version
    )
    return json_response(render.version(made))


@router.post(
    "/mags-workspaces/{name}/fork",
    status_code=201,
    summary="Fork a workspace",
    responses={201: {"model": WorkspaceVersionReply}},
    openapi_extra=json_body(ForkRequest),
)
async def fork(request: Request, caller: Known, name: Name) -> Response:
    """A new workspace begins as a version of this one. Nothing is copied."""
    asked = check(ForkRequest, await read_object(request))
    made = await caller.service.workspaces.fork(
        caller.principal, checked_name(name), asked.workspace_id, asked.version
    )
    return json_response(render.version(made), 201)


@router.post(
    "/mags-gc",
    summary="Delete what nothing needs",
    responses={200: {"model": Collected}},
    openapi_extra=json_body(CollectRequest, required=False),
)
async def collect(request: Request, caller: Known) -> Response:
    """Versions beyond the newest of each of the account's workspaces, and layers that no version
    and no job names."""
    asked = check(CollectRequest, await read_object(request))
    done = await caller.service.workspaces.collect(caller.principal, asked.keep)
    return json_response(
        {
            "versions_deleted": done.versions,
            "layers_deleted": done.layers,
            "freed_bytes": done.freed_bytes,
        }
    )
