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

_DESCRIPTION: Final = """\
Runs scripts in sandboxes with a kernel of their own.

Send `Authorization: Bearer TOKEN`. Every error is `{"error": "<text>", "code": "<code>"}`.
Routes under `/api/v1` answer under `/api/v2` too. Times are UTC.
"""
_ERRORS: Final = {
    "400": "The request cannot be carried out as written.",
    "401": "No token, or not a valid one.",
    "404": "There is no such thing, or it is not the caller's.",
    "413": "The body or the script is too large.",
    "429": "Over a quota; `Retry-After` says when to try again.",
    "500": "The server failed.",
    "503": "Not possible now; `Retry-After` says when to try again.",
}


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
    return document


def _complete(operation: dict[str, Any], method: str, path: str, *, is_public: bool) -> None:
    operation["security"] = [] if is_public else [{"token": []}]
    responses = operation["responses"]
    responses.pop("422", None)
    possible = ["503"] if path == "/readyz" else []
    if not is_public:
        possible = ["400", "401", "500", "503"]
        possible += ["404"] if "{" in path else []
        possible += ["413"] if "requestBody" in operation else []
        possible += ["429"] if path.endswith("/mags-jobs") and method == "post" else []
    for status in sorted(possible):
        responses[status] = {
            "description": _ERRORS[status],
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}
            },
        }


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as text that is the same each time."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
