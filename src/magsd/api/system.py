"""Routes at the root that anybody may ask: is it well, what is it, how is it used."""

from fastapi import APIRouter, Request, Response

from magsd import __version__
from magsd.api.caller import parts_of
from magsd.api.errors import error_response, json_response
from magsd.api.schemas import Health, VersionReply
from magsd.model.errors import ErrorCode

router = APIRouter(tags=["system"])


@router.get("/healthz", summary="The server answers", responses={200: {"model": Health}})
async def healthz() -> Response:
    """Always 200."""
    return json_response({"status": "ok"})


@router.get("/readyz", summary="A script can run", responses={200: {"model": Health}})
async def readyz(request: Request) -> Response:
    """200 when a script can run, else 503 with the reason."""
    reason = parts_of(request).service.readiness()
    if reason is not None:
        return error_response(ErrorCode.CAPACITY, reason)
    return json_response({"status": "ready"})


@router.get("/version", summary="What runs here", responses={200: {"model": VersionReply}})
async def version() -> Response:
    """Name and version of the server, and of the interfaces it has."""
    return json_response({"name": "magsd", "version": __version__, "api": ["v1", "v2"]})


@router.get("/openapi.json", summary="This document", responses={200: {"model": dict}})
async def openapi(request: Request) -> Response:
    """The description of this interface."""
    return Response(request.app.state.openapi_json, media_type="application/json")


@router.get(
    "/docs",
    summary="The same for people",
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def docs(request: Request) -> Response:
    """One page that needs nothing from elsewhere."""
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(request.app.state.docs_html, headers=headers, media_type="text/html")
