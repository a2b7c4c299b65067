"""The HTTP app: routes, errors and documents put together around a `Service`."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from fastapi import FastAPI

from magsd import __version__
from magsd.aio import Clock
from magsd.api import (
    access,
    document,
    errors,
    execs,
    files,
    jobs,
    logs,
    system,
    tokens,
    usage,
    workspace_archives,
    workspaces,
)
from magsd.api.caller import Parts
from magsd.api.docs_page import docs_page
from magsd.api.service import Service
from magsd.api.waits import Waits
from magsd.metrics import Metrics

PREFIXES: Final = ("/api/v1", "/api/v2")
"""Both have the same routes; published clients use the first."""

HEARTBEAT_S: Final = 15.0
ROUTERS: Final = (
    usage.router,
    jobs.router,
    files.router,
    logs.router,
    execs.router,
    access.router,
    workspaces.router,
    workspace_archives.router,
    tokens.router,
)


def create_app(
    service: Service, clock: Clock, waits: Waits | None = None, metrics: Metrics | None = None
) -> FastAPI:
    """Return the app. Whoever stops the server calls `waits.stop` first."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = Parts(service, waits or Waits(), clock, HEARTBEAT_S, metrics or Metrics())
    app.state.openapi_json = openapi_json()
    app.state.docs_html = docs_html()
    errors.install(app)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    app.include_router(system.router)
    for prefix in PREFIXES:
        for router in ROUTERS:
            app.include_router(router, prefix=prefix, include_in_schema=prefix == PREFIXES[0])


@cache
def _document() -> Mapping[str, Any]:
    app = FastAPI(title="Mags", version=__version__)
    _add_routes(app)
    return document.of_app(app)


@cache
def openapi_json() -> str:
    """Return the API's document, as `/openapi.json` serves it."""
    return document.to_json(_document())


@cache
def docs_html() -> str:
    """Return the page at `/docs`."""
    return docs_page(_document())
