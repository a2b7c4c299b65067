"""What a job may ask for on this service, and what it gets when it asks for nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from magsd.model.errors import InvalidError, TooLargeError
from magsd.model.records import JobSpec, RunSpec

SCRIPT_MAX_BYTES: Final = 1 << 20
ENVIRONMENT_MAX_BYTES: Final = 60_000
"""Of all names and values together: they travel to the VM in one frame."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's defaults and upper bounds."""

    default_timeout_s: int = 300
    max_timeout_s: int = 86400
    default_vcpus: int = 1
    max_vcpus: int = 8
    default_memory_mb: int = 512
    min_memory_mb: int = 64
    max_memory_mb: int = 16384
    default_disk_gb: int = 2
    max_disk_gb: int = 64


def completed(spec: JobSpec, limits: Limits) -> RunSpec:
    """Return what a VM for `spec` gets, with the defaults filled in.

    Raises `InvalidError` that names the field and its bounds, and
    `TooLargeError` for a script over its limit.
    """
    _check_script(spec.script)
    _check_environment(spec.environment)
    return RunSpec(
        script=spec.script,
        environment=dict(spec.environment),
        timeout_s=_bounded(
            "timeout", spec.timeout_s, limits.default_timeout_s, 1, limits.max_timeout_s
        ),
        rootfs_type=spec.rootfs_type,
        vcpus=_bounded("vcpus", spec.vcpus, limits.default_vcpus, 1, limits.max_vcpus),
        memory_mb=_bounded(
            "memory_mb",
            spec.memory_mb,
            limits.default_memory_mb,
            limits.min_memory_mb,
            limits.max_memory_mb,
        ),
        disk_gb=_bounded("disk_gb", spec.disk_gb, limits.default_disk_gb, 1, limits.max_disk_gb),
        ignored=spec.ignored,
    )


def _bounded(name: str, asked: int | None, default: int, least: int, most: int) -> int:
    if asked is None:
        return default
    if not least <= asked <= most:
        raise InvalidError(f"{name} must be between {least} and {most} on this service")
    return asked


def _check_script(script: str) -> None:
    if not script.strip():
        raise InvalidError("script is blank: give the commands to run")
    if "\0" in script:
        raise InvalidError("script holds a NUL character")
    if len(_check_text("script", script)) > SCRIPT_MAX_BYTES:
        raise TooLargeError(f"script is larger than {SCRIPT_MAX_BYTES >> 20} MiB")


def _check_text(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidError(f"{name} holds half of a surrogate pair: send UTF-8") from None


def _check_environment(environment: Mapping[str, str]) -> None:
    size = 0
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidError(f"environment: {name!r} cannot name a variable")
        if "\0" in value:
            raise InvalidError(f"environment: the value of {name!r} holds a NUL character")
        size += len(_check_text("environment", f"{name}={value}")) + 1
    if size > ENVIRONMENT_MAX_BYTES:
        raise InvalidError(
            f"environment is {size} bytes large: the limit is {ENVIRONMENT_MAX_BYTES}"
        )
