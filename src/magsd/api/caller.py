"""Who makes a request: the bearer token, looked up before anything else is read."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from structlog.contextvars import bind_contextvars

from magsd.aio import Clock
from magsd.api.service import Service
from magsd.api.waits import Waits
from magsd.metrics import Metrics
from magsd.model.errors import UnauthorizedError
from magsd.model.records import Principal


@dataclass(frozen=True, slots=True)
class Parts:
    """What routes work with; one object for each app."""

    service: Service
    waits: Waits
    clock: Clock
    heartbeat_s: float
    """How long an event stream may be silent."""
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's principal, and the parts of the app it came to."""

    principal: Principal
    parts: Parts

    @property
    def service(self) -> Service:
        """The application."""
        return self.parts.service

    def is_valid(self) -> bool:
        """Say whether the token is good still, while a request goes on for long."""
        return self.parts.service.access.is_valid(self.principal)


def parts_of(request: Request) -> Parts:
    """Return the parts of the app that serves `request`."""
    parts: Parts = request.app.state.parts
    return parts


async def authenticated(request: Request) -> Caller:
    """Return who asks. Raises `UnauthorizedError`."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise UnauthorizedError("a token is needed: send the header `Authorization: Bearer TOKEN`")
    parts = parts_of(request)
    principal = await parts.service.access.authenticate(secret)
    # For every line that is logged while this request is served.
    bind_contextvars(**{**request.path_params, "account": principal.account})
    return Caller(principal, parts)


Known = Annotated[Caller, Depends(authenticated)]
"""Parameter of every route that is not public."""
