"""What can go wrong, as a program must tell it apart.

An error has a code, a message for the caller and a detail for the log. Only
the edge knows HTTP; it maps `code` to a status in one table.
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    """The `code` beside `error` in every error reply."""

    INVALID = "invalid"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    WORKSPACE_IN_USE = "workspace_in_use"
    TOO_LARGE = "too_large"
    QUOTA = "quota"
    CAPACITY = "capacity"
    INTERNAL = "internal"


class JobCode(StrEnum):
    """Why a job ended in `error`."""

    SCRIPT_FAILED = "script_failed"
    TIMEOUT = "timeout"
    STOPPED = "stopped"
    OUT_OF_MEMORY = "out_of_memory"
    TOO_MANY_PROCESSES = "too_many_processes"
    HOST_DISK_FULL = "host_disk_full"
    ENGINE_DIED = "engine_died"
    AGENT_DIED = "agent_died"
    SHIM_DIED = "shim_died"
    LAUNCH_FAILED = "launch_failed"
    IMAGE_DAMAGED = "image_damaged"
    WORKSPACE_DAMAGED = "workspace_damaged"
    HOST_RESTARTED = "host_restarted"
    NODE_LOST = "node_lost"
    STATE_LOST = "state_lost"


class MagsError(Exception):
    """A refusal or failure with a message that the caller may read.

    `message` says what went wrong and what to do; `detail` is for the log
    only and may name paths and commands.
    """

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidError(MagsError):
    """The request cannot be carried out as written (400)."""

    code = ErrorCode.INVALID


class UnauthorizedError(MagsError):
    """No token, or not a valid one (401)."""

    code = ErrorCode.UNAUTHORIZED


class NotFoundError(MagsError):
    """There is no such thing, or it is not the caller's (404)."""

    code = ErrorCode.NOT_FOUND


class ConflictError(MagsError):
    """The object is in a state that does not allow this (409)."""

    code = ErrorCode.CONFLICT


class WorkspaceInUseError(ConflictError):
    """Another job has the workspace. Clients know it by its text, and by a status of 500."""

    code = ErrorCode.WORKSPACE_IN_USE


class TooLargeError(MagsError):
    """A part of the request is over its limit (413)."""

    code = ErrorCode.TOO_LARGE


class QuotaError(MagsError):
    """The account has as much as it may have (429); later it may be less."""

    code = ErrorCode.QUOTA


class CapacityError(MagsError):
    """The service cannot do this now; trying again later may work (503)."""

    code = ErrorCode.CAPACITY


class LaunchError(MagsError):
    """A VM could not be started. `job_code` says what the job's code is then."""

    def __init__(
        self, message: str, detail: str = "", job_code: JobCode = JobCode.LAUNCH_FAILED
    ) -> None:
        super().__init__(message, detail)
        self.job_code = job_code
