"""From the body of a submit to a `JobSpec`. Pure."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from magsd.api.body import check, shortened
from magsd.api.schemas import NOT_BUILT, SubmitRequest
from magsd.model.errors import InvalidError, TooLargeError
from magsd.model.records import JobSpec

SCRIPT_MAX_BYTES: Final = 1024 * 1024

_KNOWN: Final = frozenset(SubmitRequest.model_fields)
_NOT_BUILT: Final = tuple(
    name for name, field in SubmitRequest.model_fields.items() if field.description == NOT_BUILT
)
_RESERVED: Final = "__MAGS_"
_ROOTFS_TYPE: Final = "__MAGS_ROOTFS_TYPE"
_MEM_GB: Final = "__MAGS_MEM_GB"
_IDLE_MIN: Final = "__MAGS_IDLE_MIN"
_KEEP_ALIVE: Final = "__MAGS_KEEP_ALIVE"

_Value = TypeVar("_Value", str, int)


class _Settings(NamedTuple):
    """What reserved keys of the environment ask for."""

    rootfs_type: str | None = None
    memory_mb: int | None = None
    idle_timeout_s: int | None = None
    no_sleep: bool = False


def spec_of(fields: dict[str, Any]) -> JobSpec:
    """Return what the body `fields` asks for. Raises `InvalidError` and `TooLargeError`."""
    if isinstance(script := fields.get("script"), str):
        _check_size(script)
    asked = check(SubmitRequest, fields)
    if not asked.script.strip():
        raise InvalidError("script must not be blank")
    if asked.type != "inline":
        raise InvalidError(f"type {asked.type[:64]!r} is not known: only `inline` is")
    for name in _NOT_BUILT:
        if getattr(asked, name):
            raise InvalidError(f"{name} is not supported by this version yet: leave it out")
    environment, settings = _split(asked.environment)
    no_sleep = asked.no_sleep or settings.no_sleep
    if no_sleep and not asked.persistent:
        raise InvalidError("no_sleep needs persistent: a VM that ends with its script never sleeps")
    return JobSpec(
        script=asked.script,
        name=asked.name,
        environment=environment,
        timeout_s=asked.timeout,
        rootfs_type=_one("rootfs_type", asked.rootfs_type, settings.rootfs_type) or "standard",
        vcpus=asked.vcpus,
        memory_mb=_one("memory_mb", asked.memory_mb, settings.memory_mb),
        disk_gb=asked.disk_gb,
        engine=asked.engine,
        workspace_id=asked.workspace_id or None,
        base_workspace_id=asked.base_workspace_id or None,
        no_sync=asked.no_sync,
        file_ids=tuple(asked.file_ids),
        persistent=asked.persistent,
        no_sleep=no_sleep,
        idle_timeout_s=_one("idle_timeout", asked.idle_timeout or None, settings.idle_timeout_s),
        startup_command=asked.startup_command,
        ignored=shortened(fields.keys() - _KNOWN),
    )


def _check_size(script: str) -> None:
    # No character takes more than four bytes.
    if len(script) * 4 <= SCRIPT_MAX_BYTES:
        return
    if len(script.encode("utf-8", "replace")) > SCRIPT_MAX_BYTES:
        raise TooLargeError(
            f"script is larger than {SCRIPT_MAX_BYTES >> 20} MiB: have it fetch what is large"
        )


def _split(environment: Mapping[str, str]) -> tuple[Mapping[str, str], _Settings]:
    """Return the variables of the script, and what the other keys mean."""
    reserved = {key: value for key, value in environment.items() if key.startswith(_RESERVED)}
    if not reserved:
        return environment, _Settings()
    rootfs_type = reserved.pop(_ROOTFS_TYPE, "")
    mem_gb = reserved.pop(_MEM_GB, "")
    idle_min = reserved.pop(_IDLE_MIN, "")
    keep_alive = reserved.pop(_KEEP_ALIVE, "")
    if keep_alive not in ("", "true", "false"):
        raise InvalidError(f"environment: {_KEEP_ALIVE} must be true or false")
    for key, value in reserved.items():
        if value:
            raise InvalidError(
                f"environment: the reserved key {key[:64]!r} is not supported by this version yet"
            )
    if mem_gb and not _is_count(mem_gb):
        raise InvalidError(f"environment: {_MEM_GB} must be a whole number of GiB")
    if idle_min and not _is_count(idle_min):
        raise InvalidError(f"environment: {_IDLE_MIN} must be a whole number of minutes")
    variables = {key: value for key, value in environment.items() if not key.startswith(_RESERVED)}
    memory_mb = int(mem_gb) * 1024 if mem_gb else None
    idle_s = int(idle_min or 0) * 60 or None
    return variables, _Settings(rootfs_type or None, memory_mb, idle_s, keep_alive == "true")


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6


def _one(field: str, asked: _Value | None, reserved: _Value | None) -> _Value | None:
    """Return a value that was given as a field, as a reserved key, or as both alike."""
    if asked and reserved and asked != reserved:
        raise InvalidError(f"{field} and its reserved key in environment differ: send one of them")
    return asked if asked is not None else reserved
