"""Routes of tokens, and of who one is."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from magsd.api import render
from magsd.api.body import check, json_body, read_object
from magsd.api.caller import Known
from magsd.api.errors import json_response
from magsd.api.schemas import Done, NewToken, TokenReply, TokenRequest, TokensReply, Whoami

router = APIRouter(tags=["tokens"])

TokenName = Annotated[str, Path(max_length=64, description="A token's `id`.")]


@router.post(
    "/tokens",
    status_code=201,
    summary="Make a token",
    responses={201: {"model": NewToken}},
    openapi_extra=json_body(TokenRequest),
)
async def create_token(request: Request, caller: Known) -> Response:
    """The reply holds the secret, which is shown this once and stored nowhere."""
    asked = check(TokenRequest, await read_object(request))
    record, secret = await caller.service.access.create_token(
        caller.principal,
        name=asked.name,
        account=asked.account,
        scopes=asked.scopes,
        expires_at=asked.expires_at,
    )
    return json_response({**render.token(record), "token": secret}, 201)


@router.get("/tokens", summary="List tokens", responses={200: {"model": TokensReply}})
async def list_tokens(caller: Known) -> Response:
    """Those of the caller's account; all of them for an admin token."""
    records = await caller.service.access.list_tokens(caller.principal)
    return json_response(
        {"tokens": [render.token(record) for record in records], "total": len(records)}
    )


@router.get("/tokens/{token_id}", summary="Show a token", responses={200: {"model": TokenReply}})
async def get_token(caller: Known, token_id: TokenName) -> Response:
    """Without its secret. `last_used_at` is written down once a minute, and when it is asked for."""
    record = await caller.service.access.get_token(caller.principal, token_id)
    return json_response(render.token(record))


@router.delete("/tokens/{token_id}", summary="Delete a token", responses={200: {"model": Done}})
async def delete_token(caller: Known, token_id: TokenName) -> Response:
    """It opens nothing from this moment on, and event streams that it opened end. Jobs that it
    submitted go on. Only an admin token can delete an admin token."""
    await caller.service.access.delete_token(caller.principal, token_id)
    return json_response({"success": True, "message": "Token deleted"})


@router.get("/whoami", summary="Who am I", responses={200: {"model": Whoami}})
async def whoami(caller: Known) -> Response:
    """Whom the token speaks for."""
    principal = caller.principal
    return json_response(
        {
            "account": principal.account,
            "token_id": principal.token_id,
            "scopes": sorted(principal.scopes),
        }
    )
