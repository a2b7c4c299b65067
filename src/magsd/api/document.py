"""The OpenAPI document: what the framework knows of the routes, made true.

The framework would describe refusals of its own that never leave (422) and
knows nothing of tokens that a route checks itself.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

from magsd.api.schemas import ErrorReply

PUBLIC: Final = frozenset({"/healthz", "/readyz", "/version", "/openapi.json", "/docs"})
"""Routes that need no token."""
OPEN_HERE: Final = frozenset({"/metrics", "/internal/ask"})
"""Routes that need none from this machine itself, else an admin's."""

_DESCRIPTION: Final = """\
Runs scripts in sandboxes with a kernel of their own.

Send `Authorization: Bearer TOKEN`. Every error is `{"error": "<text>", "code": "<code>"}`.
Routes under `/api/v1` answer under `/api/v2` too. Times are UTC.
"""
_ERRORS: Final = {
    "400": "The request cannot be carried out as written.",
    "401": "No token, or not a valid one.",
    "404": "There is no such thing, or it is not the caller's.",
    "409": "The object, or the key, is in use for something else.",
    "413": "The body or the script is too large.",
    "429": "Over a quota; `Retry-After` says when to try again.",
    "500": "The server failed.",
    "503": "Not possible now; `Retry-After` says when to try again.",
}
_RETRY_AFTER: Final = {"Retry-After": "Seconds."}
_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    "401": {"WWW-Authenticate": "`Bearer`."},
    "429": _RETRY_AFTER,
    "503": _RETRY_AFTER,
}
_LINKS: Final[Mapping[tuple[str, str], Mapping[str, tuple[str, str, str]]]] = {
    ("/mags-jobs", "post"): {
        "status": ("/mags-jobs/{ref}/status", "get", "request_id"),
        "logs": ("/mags-jobs/{ref}/logs", "get", "request_id"),
        "stop": ("/mags-jobs/{ref}/stop", "post", "request_id"),
        "exec": ("/mags-jobs/{ref}/exec", "post", "request_id"),
    },
    ("/tokens", "post"): {
        "show": ("/tokens/{token_id}", "get", "id"),
        "delete": ("/tokens/{token_id}", "delete", "id"),
    },
}
"""What a reply leads to, below the base path: path and method, and the field that names it."""


def of_app(app: FastAPI) -> dict[str, Any]:
    """Return the document of `app`."""
    document = app.openapi()
    document["info"]["description"] = _DESCRIPTION
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for framework_only in ("HTTPValidationError", "ValidationError"):
        schemas.pop(framework_only, None)
    error = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(error.pop("$defs", {}))
    schemas["ErrorReply"] = error
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, path, is_public=path in PUBLIC)
    _link(document["paths"])
    return document


def _complete(operation: dict[str, Any], method: str, path: str, *, is_public: bool) -> None:
    operation["security"] = [] if is_public else [{"token": []}]
    if path in OPEN_HERE:
        operation["security"].append({})
    responses = operation["responses"]
    responses.pop("422", None)
    for response in responses.values():
        content = response.get("content", {})
        # The framework adds this where a route says only what else it has.
        if len(content) > 1 and content.get("application/json", {}).get("schema") == {}:
            del content["application/json"]
    is_submit = path.endswith("/mags-jobs") and method == "post"
    possible = ["503"] if path == "/readyz" else []
    if not is_public:
        possible = ["400", "401", "500", "503"]
        possible += ["404"] if "{" in path or path in OPEN_HERE or is_submit else []
        possible += ["409"] if _may_conflict(path, method) else []
        possible += ["413"] if "requestBody" in operation else []
        possible += ["429"] if is_submit or _may_be_over_quota(path) else []
    for status in sorted(possible):
        responses[status] = {
            "description": _ERRORS[status],
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}
            },
        }
        if headers := _HEADERS.get(status):
            responses[status]["headers"] = {
                name: {"description": text, "required": True, "schema": {"type": "string"}}
                for name, text in headers.items()
            }


def _may_conflict(path: str, method: str) -> bool:
    if "/mags-workspaces" in path:
        return method in ("post", "delete")
    if path.endswith("/mags-url-aliases"):
        return method == "post"
    return "/mags-jobs" in path and method in ("post", "patch")


def _may_be_over_quota(path: str) -> bool:
    return path.endswith(("/export", "/import", "/mags-files"))


def _link(paths: dict[str, Any]) -> None:
    """Say in the replies of what is made where to go on with it."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            for (of_path, of_method), links in _LINKS.items():
                if method == of_method and path.endswith(of_path):
                    base = path.removesuffix(of_path)
                    made = next(status for status in operation["responses"] if status[0] == "2")
                    operation["responses"][made]["links"] = {
                        name: _target(paths[base + to][verb], to, field)
                        for name, (to, verb, field) in links.items()
                    }


def _target(operation: Mapping[str, Any], path: str, field: str) -> dict[str, Any]:
    parameter = path[path.index("{") + 1 : path.index("}")]
    return {
        "operationId": operation["operationId"],
        "parameters": {parameter: f"$response.body#/{field}"},
    }


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as text that is the same each time."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
