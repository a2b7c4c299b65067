"""What a job may ask for on this service, and what it gets when it asks for nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from magsd.model.amount import Amount
from magsd.model.errors import InvalidError, QuotaError, TooLargeError
from magsd.model.records import JobSpec, RunSpec

SCRIPT_MAX_BYTES: Final = 1 << 20
STARTUP_MAX_BYTES: Final = 64 << 10
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
    idle_timeout_s: int = 600
    """A job sleeps after so long without use unless it asks for another time."""
    min_idle_timeout_s: int = 10
    max_idle_timeout_s: int = 604_800


@dataclass(frozen=True, slots=True)
class Quota:
    """What an account's unfinished jobs, waiting ones included, may take together.

    None: as much as there is.
    """

    jobs_max: int | None = None
    vcpus_max: int | None = None
    memory_mb_max: int | None = None
    disk_gb_max: int | None = None
    files_mb_max: int | None = None
    """Of uploads that are kept; nothing to do with jobs."""

    def over(self, default: "Quota") -> "Quota":
        """Return this with `default` where it says nothing."""
        return Quota(
            default.jobs_max if self.jobs_max is None else self.jobs_max,
            default.vcpus_max if self.vcpus_max is None else self.vcpus_max,
            default.memory_mb_max if self.memory_mb_max is None else self.memory_mb_max,
            default.disk_gb_max if self.disk_gb_max is None else self.disk_gb_max,
            default.files_mb_max if self.files_mb_max is None else self.files_mb_max,
        )

    def check(self, used: Amount, need: Amount) -> None:
        """Raise `QuotaError` that names the limit when `need` is too much beside `used`."""
        after = used.plus(need)
        limits = (
            ("jobs_max", "unfinished jobs", self.jobs_max, need.vms, after.vms),
            ("vcpus_max", "virtual processors", self.vcpus_max, need.vcpus, after.vcpus),
            ("memory_mb_max", "MiB of memory", self.memory_mb_max, need.memory_mb, after.memory_mb),
            ("disk_gb_max", "GiB of disk", self.disk_gb_max, need.disk_gb, after.disk_gb),
        )
        for name, what, most, asked, wanted in limits:
            # What takes nothing of something always fits, however little there may be.
            if most is not None and asked and wanted > most:
                raise QuotaError(
                    f"{name}: this account may have {most} {what} in its unfinished jobs, and "
                    f"with this one it would have {wanted}: wait until some of them have ended"
                )

    def check_files(self, kept_bytes: int, more_bytes: int) -> None:
        """Raise `QuotaError` when an upload is too much beside those that are kept."""
        if self.files_mb_max is not None and kept_bytes + more_bytes > self.files_mb_max << 20:
            raise QuotaError(
                f"files_mb_max: this account may keep {self.files_mb_max} MiB of uploads, and has "
                f"{kept_bytes >> 20} MiB: wait until old ones are deleted, or ask the operator"
            )


def completed(spec: JobSpec, limits: Limits) -> RunSpec:
    """Return what a VM for `spec` gets, with the defaults filled in.

    Raises `InvalidError` that names the field and its bounds, and
    `TooLargeError` for a script over its limit.
    """
    _check_script(spec.script)
    _check_environment(spec.environment)
    _check_sleep(spec, limits)
    return RunSpec(
        script=spec.script,
        environment=dict(spec.environment),
        timeout_s=_timeout(spec, limits),
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


def _timeout(spec: JobSpec, limits: Limits) -> int | None:
    if spec.persistent and spec.timeout_s is None:
        return None
    return _bounded("timeout", spec.timeout_s, limits.default_timeout_s, 1, limits.max_timeout_s)


def _check_sleep(spec: JobSpec, limits: Limits) -> None:
    check_startup_command(spec.startup_command)
    if spec.idle_timeout_s is None:
        return
    if not spec.persistent:
        raise InvalidError("idle_timeout needs persistent: other VMs end with their script")
    least, most = limits.min_idle_timeout_s, limits.max_idle_timeout_s
    _bounded("idle_timeout", spec.idle_timeout_s, least, least, most)


def check_startup_command(command: str) -> None:
    """Raise `InvalidError` or `TooLargeError` for what cannot be run."""
    if "\0" in command:
        raise InvalidError("startup_command holds a NUL character")
    if len(_check_text("startup_command", command)) > STARTUP_MAX_BYTES:
        raise TooLargeError(
            f"startup_command is larger than {STARTUP_MAX_BYTES >> 10} KiB: have it run a file"
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
