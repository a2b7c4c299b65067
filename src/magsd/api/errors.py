"""From errors to replies: the one table of statuses, and everything that leads to it.

Whatever goes wrong leaves as `{"error", "code"}`: refusals of the core, what the
framework refuses by itself (unknown route, wrong method, bad parameter), and faults
nobody expected, of which a caller learns only a reference into the log.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magsd.model.errors import ErrorCode, InvalidError, MagsError

log = logging.getLogger(__name__)

STATUS_OF: Final[Mapping[ErrorCode, int]] = {
    ErrorCode.INVALID: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    # Published clients know a busy workspace by this status and its text.
    ErrorCode.WORKSPACE_IN_USE: 500,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.QUOTA: 429,
    ErrorCode.CAPACITY: 503,
    ErrorCode.INTERNAL: 500,
}
_HEADERS: Final[Mapping[ErrorCode, dict[str, str]]] = {
    ErrorCode.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    ErrorCode.QUOTA: {"Retry-After": "5"},
    ErrorCode.CAPACITY: {"Retry-After": "5"},
}
_FRAMEWORK_CODES: Final[Mapping[int, ErrorCode]] = {
    401: ErrorCode.UNAUTHORIZED,
    404: ErrorCode.NOT_FOUND,
    413: ErrorCode.TOO_LARGE,
}
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `content` as JSON. Much cheaper than having the framework do it."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # Names and logs may hold lone surrogates; they leave as what they cannot be.
    return Response(body.encode("utf-8", "replace"), status, headers, "application/json")


def error_response(
    code: ErrorCode,
    message: str,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the reply for an error."""
    return json_response(
        {"error": message, "code": code},
        status or STATUS_OF[code],
        {**_HEADERS.get(code, {}), **(headers or {})},
    )


def install(app: FastAPI) -> None:
    """Make every error of `app` leave in our form."""
    app.add_exception_handler(MagsError, _refused)
    app.add_exception_handler(HTTPException, _framework_refused)
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    app.add_middleware(UnexpectedErrors)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MagsError)
    if error.code is ErrorCode.INTERNAL:
        log.error("%s: %s", error.message, error.detail, exc_info=error)
    elif error.detail:
        log.info("refused: %s: %s", error.message, error.detail)
    return error_response(error.code, error.message)


async def _framework_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _FRAMEWORK_CODES.get(error.status_code, ErrorCode.INVALID)
    message, headers = str(error.detail), error.headers
    if error.status_code == 404:
        message = f"there is no {request.method} {request.url.path} on this server; see /docs"
    elif error.status_code == 405:
        allowed = ", ".join(_allowed(request))
        message = f"{request.method} is not possible here; use {allowed}"
        # The framework's own header names the methods of one route, and others have this path too.
        headers = {**(headers or {}), "Allow": allowed}
    return error_response(code, message, error.status_code, headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods that the path of `request` has."""
    scope = dict(request.scope)
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _bad_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    invalid = invalid_fields(error.errors())
    return error_response(invalid.code, invalid.message)


def invalid_fields(problems: Any) -> InvalidError:
    """Return the refusal for what pydantic found, naming the first three fields."""
    named = [f"{_field_name(problem['loc'])} {_reason(problem)}" for problem in problems[:3]]
    return InvalidError("; ".join(named))


def _field_name(location: tuple[Any, ...]) -> str:
    places = {"query", "path", "header", "body"}
    parts = location[1:] if location and location[0] in places else location
    return ".".join(str(part)[:64] for part in parts if part != "[key]") or "the request"


_REASONS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode text",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "extra_forbidden": "is not a field of this request",
    "string_pattern_mismatch": "is not of the right form",
}


def _reason(problem: Mapping[str, Any]) -> str:
    limits = problem.get("ctx", {})
    match problem["type"]:
        case "value_error":
            return str(limits.get("error", problem["msg"]))
        case "greater_than_equal":
            return f"must be at least {limits['ge']}"
        case "less_than_equal":
            return f"must be at most {limits['le']}"
        case "string_too_long" | "too_long":
            return f"is longer than {limits['max_length']}"
        case "string_too_short":
            return f"is shorter than {limits['min_length']}"
        case kind if kind.startswith("datetime") or kind == "timezone_aware":
            return "must be a time such as 2026-01-31T12:00:00Z"
        case kind:
            return _REASONS.get(kind) or f"is not valid: {problem['msg']}"


class UnexpectedErrors:
    """ASGI middleware: a fault becomes a 500 that says where to look it up, and a log entry.

    Stands inside the framework's own handler, which would log it a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def watched_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception:  # the last stop: logged, and told to the caller by a reference
            reference = secrets.token_hex(4)
            log.exception("%s %s failed, reference %s", scope["method"], scope["path"], reference)
            if has_started:
                raise  # The server cuts the connection: the reply must not look complete.
            message = (
                "the server failed to answer this; its operator finds the reason in the log "
                f"under {reference}"
            )
            await error_response(ErrorCode.INTERNAL, message)(scope, receive, send)
