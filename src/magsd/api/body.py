"""Request bodies: read with a cap, parsed, checked field by field.

Routes call this after they know who asks, so that a stranger's body is never
parsed. The server drops the rest of a body that was refused without keeping it.
"""

import json
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from magsd.api.errors import invalid_fields
from magsd.model.errors import InvalidError, TooLargeError

BODY_MAX_BYTES: Final = 2 * 1024 * 1024
_NAMES_LISTED: Final = 20

_Model = TypeVar("_Model", bound=BaseModel)


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body; an empty body is an empty object."""
    content = await _read(request)
    if not content.strip():
        return {}
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidError("the body is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidError(f"the body is not valid JSON: {error.msg} at {place}") from error
    except RecursionError as error:
        raise InvalidError("the body is not valid JSON: nested too deeply") from error
    except ValueError as error:  # An integer with thousands of digits.
        raise InvalidError("the body is not valid JSON: a number is too long") from error
    if not isinstance(value, dict):
        raise InvalidError('the body must be a JSON object, such as {"script": "echo hi"}')
    return value


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_MAX_BYTES:
        raise _too_large()
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > BODY_MAX_BYTES:
                raise _too_large()
    except ClientDisconnect as error:
        raise InvalidError("the connection ended before the body did") from error
    return bytes(content)


def _too_large() -> TooLargeError:
    return TooLargeError(f"the request body is larger than {BODY_MAX_BYTES >> 20} MiB")


def check(model: type[_Model], fields: dict[str, Any]) -> _Model:
    """Return `fields` as a `model`; null means "not given". Raises `InvalidError`."""
    known = model.model_fields
    given = {
        name: value for name, value in fields.items() if value is not None or name not in known
    }
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False, include_input=False)) from error


def shortened(names: Iterable[str]) -> tuple[str, ...]:
    """Return names that a caller made up, fit to be repeated in replies and logs."""
    return tuple(
        "".join(letter if letter.isprintable() else "?" for letter in name[:64])
        for name in sorted(names)[:_NAMES_LISTED]
    )


def warnings_of(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a reply that tells which of `fields` nobody knows; none: nothing."""
    unknown = shortened(fields.keys() - model.model_fields.keys())
    told = [f"unknown field {name!r} was ignored" for name in unknown]
    return {"warnings": told} if told else {}


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return what documents a body that the route reads itself and checks by `check`."""
    schema = model.model_json_schema()
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and "anyOf" not in field:
            _allow_null(field)
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}
    }


def _allow_null(field: dict[str, Any]) -> None:
    about = ("default", "description", "title")
    form = {key: field.pop(key) for key in list(field) if key not in about}
    field["anyOf"] = [form, {"type": "null"}]
