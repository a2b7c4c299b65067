"""Routes that open ways into VMs: a URL or SSH for a job, aliases of workspaces."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response

from magsd.api import render
from magsd.api.access_schemas import (
    AccessRequest,
    AliasesReply,
    AliasRequest,
    NewAlias,
    SshOpened,
    UrlOpened,
)
from magsd.api.body import check, json_body, read_object, warnings_of
from magsd.api.caller import Caller, Known
from magsd.api.errors import json_response
from magsd.api.jobs import Ref, checked_ref
from magsd.api.schemas import Done
from magsd.model.errors import InvalidError, NotFoundError
from magsd.model.grants import SSH_PORT, Alias

router = APIRouter(tags=["access"])

_LABEL_MAX: Final = 63
_NO_STORE: Final = {"Cache-Control": "no-store"}

Subdomain = Annotated[str, Path(description="An alias's `subdomain`.")]


@router.post(
    "/mags-jobs/{ref}/access",
    summary="Open a way into a job's VM",
    responses={200: {"model": UrlOpened | SshOpened}},
    openapi_extra=json_body(AccessRequest, required=False),
)
async def access(request: Request, caller: Known, ref: Ref) -> Response:
    """A URL for a port, or with port 22 an SSH key. The job must be persistent; one that sleeps is
    woken. It ends with the job, and with the token that asked for it."""
    fields = await read_object(request)
    asked = check(AccessRequest, fields)
    if asked.visibility not in ("", "public"):
        raise InvalidError("visibility: only `public` is supported by this version: leave it out")
    open_it = _open_ssh if asked.port == SSH_PORT else _open_url
    reply = await open_it(caller, checked_ref(ref), asked.port)
    return json_response({**reply, **warnings_of(AccessRequest, fields)}, headers=_NO_STORE)


async def _open_url(caller: Caller, ref: str, port: int) -> dict[str, Any]:
    job = await caller.service.doors.grants.open_url(caller.principal, ref, port)
    return {
        "success": True,
        "message": "External access enabled",
        "url": job.url,
        "subdomain": job.subdomain,
        "port": port,
        "ipv6_address": None,
        "access_type": "http_proxy",
    }


async def _open_ssh(caller: Caller, ref: str, _port: int) -> dict[str, Any]:
    opened = await caller.service.doors.grants.open_ssh(caller.principal, ref)
    return {
        "success": True,
        "message": "SSH proxy enabled",
        "ssh_host": opened.host,
        "ssh_port": opened.port,
        "ssh_private_key": opened.private_key,
        "access_type": "ssh_proxy",
    }


@router.post(
    "/mags-url-aliases",
    status_code=201,
    summary="Make a URL alias",
    responses={201: {"model": NewAlias}},
    openapi_extra=json_body(AliasRequest),
)
async def create_alias(request: Request, caller: Known) -> Response:
    """It leads to whichever job has the workspace at the time, and wakes it. The name is first
    come, first served among all accounts."""
    fields = await read_object(request)
    asked = check(AliasRequest, fields)
    alias = await caller.service.doors.aliases.create(
        caller.principal, asked.subdomain, asked.workspace_id, asked.port
    )
    reply = {**_shown(caller, alias), **warnings_of(AliasRequest, fields)}
    return json_response(reply, 201)


@router.get(
    "/mags-url-aliases", summary="List URL aliases", responses={200: {"model": AliasesReply}}
)
async def list_aliases(caller: Known) -> Response:
    """Those of the caller's account, oldest first."""
    found = caller.service.doors.aliases.listed(caller.principal)
    shown = [_shown(caller, alias) for alias in found]
    return json_response({"aliases": shown, "total": len(shown)})


@router.delete(
    "/mags-url-aliases/{subdomain}", summary="Delete a URL alias", responses={200: {"model": Done}}
)
async def delete_alias(caller: Known, subdomain: Subdomain) -> Response:
    """The name leads nowhere from now on, and anybody may take it."""
    if len(subdomain) > _LABEL_MAX or "\0" in subdomain:
        raise NotFoundError("there is no such alias: none can be called so")
    await caller.service.doors.aliases.delete(caller.principal, subdomain)
    return json_response({"success": True, "message": "Alias deleted"})


def _shown(caller: Caller, alias: Alias) -> dict[str, Any]:
    doors = caller.service.doors
    return {
        "id": alias.subdomain,
        "subdomain": alias.subdomain,
        "workspace_id": alias.workspace,
        "domain": doors.domain,
        "port": alias.port,
        "url": doors.url_of(alias.subdomain),
        "created_at": render.time(alias.created_at),
    }
