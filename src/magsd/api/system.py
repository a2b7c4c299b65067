"""Routes at the root: is it well, what is it, how is it used, what did it measure.

Anybody may ask, but for what was measured and which names there are: those are
for this machine itself, and for admin tokens.
"""

from ipaddress import IPv6Address, ip_address
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from magsd import __version__
from magsd.api.caller import authenticated, parts_of
from magsd.api.errors import error_response, json_response
from magsd.api.schemas import Health, VersionReply
from magsd.engine.accelerator import KVM, KVM_REMARK
from magsd.engine.base import Capabilities
from magsd.model.errors import ErrorCode, NotFoundError

router = APIRouter(tags=["system"])

_FORWARDED: Final = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
"""A proxy on this machine adds one of them: its clients are not this machine."""


@router.get("/healthz", summary="The server answers", responses={200: {"model": Health}})
async def healthz() -> Response:
    """Always 200."""
    return json_response({"status": "ok"})


@router.get("/readyz", summary="A script can run", responses={200: {"model": Health}})
async def readyz(request: Request) -> Response:
    """200 when a script can run, else 503 with the reason."""
    service = parts_of(request).service
    if (reason := service.readiness()) is not None:
        return error_response(ErrorCode.CAPACITY, reason)
    warning = service.warning()
    return json_response({"status": "ready", **({"warning": warning} if warning else {})})


@router.get("/version", summary="What runs here", responses={200: {"model": VersionReply}})
async def version(request: Request) -> Response:
    """Name and version of the server, of the interfaces it has, and what runs scripts here."""
    engines = [engine_reply(engine) for engine in parts_of(request).service.engines()]
    told = {"name": "magsd", "version": __version__, "api": ["v1", "v2"], "engines": engines}
    return json_response(told)


def engine_reply(engine: Capabilities) -> dict[str, str]:
    """Return what anybody may know of an engine."""
    reply = {"name": engine.name, "isolation": engine.isolation}
    if engine.accelerator:
        reply["accelerator"] = engine.accelerator
    if engine.accelerator == KVM:
        reply["remark"] = KVM_REMARK
    return reply


@router.get(
    "/metrics",
    summary="What it measured",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """For Prometheus. Without a token from this machine's loopback, else with an admin token."""
    await _admit(request)
    text, content_type = parts_of(request).metrics.exposition()
    return Response(text, headers={"Content-Type": content_type})


async def _admit(request: Request) -> None:
    """Let this machine itself pass, and admin tokens. Raises `UnauthorizedError`, `NotFoundError`."""
    if _is_from_here(request):
        return
    caller = await authenticated(request)
    if not caller.principal.is_admin:
        raise NotFoundError("there is nothing here for this token: use an admin token")


def _is_from_here(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        peer = ip_address(request.client.host)
    except ValueError:
        return False
    mapped = peer.ipv4_mapped if isinstance(peer, IPv6Address) else None
    return (mapped or peer).is_loopback


@router.get("/internal/ask", summary="Is this name one of ours", responses={200: {"model": Health}})
async def ask(
    request: Request, domain: Annotated[str, Query(min_length=1, max_length=253)]
) -> Response:
    """For a proxy that fetches certificates on demand: 200 when something was granted under this
    host name, else 404. Without a token from this machine's loopback, else with an admin token."""
    await _admit(request)
    host = domain.lower().removesuffix(".")
    if parts_of(request).service.doors.find_url(host) is None:
        raise NotFoundError("nothing was granted under this name")
    return json_response({"status": "ok"})


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
