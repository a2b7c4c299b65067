"""The shapes of requests and replies.

Requests are checked against these; replies are written by `render`, and these
describe them in the API's document (a test compares the two).
"""

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
)

from magsd.model.errors import ErrorCode, JobCode
from magsd.model.lifecycle import Status
from magsd.model.names import JOB_NAME_MAX, WORKSPACE_NAME
from magsd.model.records import LogSource, Scope
from magsd.model.uploads import FILES_MAX

NOT_BUILT: Final = "Not supported by this version."
"""Describes fields that are known and checked, but refused when they ask for something."""


def _time(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z")
    return value


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Number = Annotated[int, BeforeValidator(_integral)]
"""JSON does not tell 64.0 from 64, and some clients write the one for the other."""


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie between the years 1 and 9999, in UTC") from None


Time = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_time), AfterValidator(_utc)]


def _whole(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair: send UTF-8") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
"""What a database can keep."""


_WORKSPACE: Final[dict[str, JsonValue]] = {"pattern": f"^({WORKSPACE_NAME})?$"}
"""Describes names that the core checks; clients send empty ones for none."""
_NAME: Final[dict[str, JsonValue]] = {"minLength": 1, "maxLength": 128, "pattern": r"\S"}
"""Describes names that the core checks."""


STARTUP_COMMAND: Final = (
    "Run by `/bin/sh` as root in `/root` whenever the VM, which slept, is started again; at most "
    "64 KiB."
)


class SubmitRequest(BaseModel):
    """A script, and what it needs."""

    model_config = ConfigDict(strict=True, extra="ignore")

    script: str = Field(
        description="Run by `/bin/sh` as root in `/root`; at most 1 MiB.",
        json_schema_extra={"pattern": r"\S"},
    )
    type: str = Field(
        "inline", description="Only `inline`.", json_schema_extra={"enum": ["inline"]}
    )
    name: Text | None = Field(
        None,
        min_length=1,
        max_length=JOB_NAME_MAX,
        description="Default: `mags-job-<unix seconds>`.",
    )
    environment: dict[str, str] = Field(
        {},
        description=(
            "Variables of the script and of every command. `__MAGS_ROOTFS_TYPE`, "
            "`__MAGS_MEM_GB`, `__MAGS_IDLE_MIN` and `__MAGS_KEEP_ALIVE` are settings instead: "
            "`rootfs_type`, `memory_mb` in GiB, `idle_timeout` in minutes, and `no_sleep`."
        ),
    )
    rootfs_type: str | None = Field(None, description="Image to start from. Default: `standard`.")
    timeout: Number | None = Field(None, description="Seconds the script may take.")
    vcpus: Number | None = Field(None, description="Virtual processors.")
    memory_mb: Number | None = Field(None, description="Memory in MiB.")
    disk_gb: Number | None = Field(None, description="Writable disk in GiB.")
    engine: str | None = Field(None, description="What runs the VM. Default: the server's choice.")
    workspace_id: str | None = Field(
        None,
        description=(
            "The script begins with what this workspace holds, and what it changes in the whole "
            "file system is kept there. One job at a time has a workspace."
        ),
        json_schema_extra=_WORKSPACE,
    )
    base_workspace_id: str | None = Field(
        None,
        description=(
            "An existing workspace to begin with, which is not changed. With `workspace_id`: a "
            "fork, unless that exists already and is begun with itself."
        ),
        json_schema_extra=_WORKSPACE,
    )
    persistent: bool = Field(
        False,
        description="The VM stays when the script is over, until the job is stopped. Its script has "
        "no `timeout` then unless one is given.",
    )
    no_sleep: bool = Field(False, description="The VM is never put to sleep. Needs `persistent`.")
    no_sync: bool = Field(False, description="What the script changes is not kept.")
    startup_command: Text = Field("", description=f"{STARTUP_COMMAND} Only a `persistent` job is.")
    file_ids: list[Text] = Field(
        [],
        max_length=FILES_MAX,
        description="Uploads (`POST /mags-files`) that the script finds as `/root/<file name>`, "
        "and as `/uploads/<file name>`.",
    )
    idle_timeout: Number = Field(
        0,
        description="Seconds without use after which the VM sleeps. 0: the server's choice. Needs "
        "`persistent`.",
    )
    reset: bool = Field(False, description=NOT_BUILT)


class TokenRequest(BaseModel):
    """What a new token is good for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Text = Field(
        description="For people, 1 to 128 characters, not all of them blank.",
        json_schema_extra=_NAME,
    )
    account: Text | None = Field(
        None,
        description="Made if it is new; only an admin token may choose another than its own.",
        json_schema_extra=_NAME,
    )
    scopes: list[str] = Field(
        default_factory=lambda: [Scope.JOBS.value],
        description="At least one. Default: `jobs`.",
        json_schema_extra={"minItems": 1, "items": {"enum": list(Scope), "type": "string"}},
    )
    expires_at: Time | None = Field(None, description="RFC 3339. Default: never.")


class Reply(BaseModel):
    """What is answered: nothing but what is named."""

    model_config = ConfigDict(extra="forbid")


class ErrorReply(Reply):
    """Whatever went wrong."""

    error: str = Field(description="What went wrong and what to do, for people.")
    code: ErrorCode = Field(description="The same for programs.")


class Submitted(Reply):
    """The job is taken on."""

    request_id: str
    status: Literal["accepted"]
    message: str
    warnings: list[str] = Field([], description="Fields of the request that nobody knows.")


class JobReply(Reply):
    """What became of a job so far."""

    request_id: str
    name: str
    status: Status
    vm_id: str = Field(description="Empty until a VM is attached.")
    workspace_id: str | None
    persistent: bool
    no_sleep: bool
    subdomain: str
    url: str
    sleeping: bool
    exit_code: int | None = Field(
        description="0 until the script is over; null when it never began to run."
    )
    queue_duration_ms: int
    acquire_duration_ms: int
    script_duration_ms: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    engine: str
    isolation: str = Field(description="What stood between the script and the host.")
    generation: int = Field(description="Rises with every change; `after` of a long poll.")
    script_ended_at: datetime | None = Field(
        None, description="Only of a persistent job: when its script was over; its VM stays."
    )
    workspace_synced: bool | None = Field(
        None,
        description="Only with a workspace: whether what the job changed is stored durably; null "
        "while its VM is awake, and when its script never began.",
    )
    restored_from: str = Field(
        "",
        description="Only when its VM was lost: what it goes on from. `local`, its own disk, or a "
        "version of its workspace and the time of that.",
    )
    error: str = Field("", description="Only on failure.")
    code: JobCode | None = Field(None, description="Only on failure.")


class ListedJob(Reply):
    """A job in a list."""

    request_id: str
    job_id: str
    name: str
    status: Status
    workspace_id: str | None
    exit_code: int | None
    created_at: datetime
    persistent: bool
    vm_id: str


class JobsReply(Reply):
    """One page of jobs."""

    jobs: list[ListedJob]
    total: int
    page: int
    page_size: int


class Entry(Reply):
    """One line of a log."""

    timestamp: datetime
    level: Literal["info", "error"]
    message: str
    source: LogSource
    seq: int | None = Field(None, description="Only with `after`: where to go on from.")


class LogsReply(Reply):
    """A log, as far as it is kept."""

    logs: list[Entry]
    truncated: bool = Field(False, description="Whether older entries were left out.")


class Done(Reply):
    """It is done."""

    success: Literal[True]
    message: str


class Stopped(Done):
    """The job is stopped, or on its way there."""

    status: Literal["completed", "error", "stopping"]


class PoolStatusReply(Reply):
    """VMs of this service."""

    idle_vms: int = Field(description="They wait for a script.")
    busy_vms: int
    total_vms: int
    min_pool_size: int
    max_pool_size: int


class TokenReply(Reply):
    """A token without its secret."""

    id: str
    name: str
    account: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class NewToken(TokenReply):
    """A token with its secret, which cannot be had again."""

    token: str


class TokensReply(Reply):
    """The tokens within reach."""

    tokens: list[TokenReply]
    total: int


class Whoami(Reply):
    """Whom the token speaks for."""

    account: str
    token_id: str
    scopes: list[Scope]


class Health(Reply):
    """The server answers."""

    status: Literal["ok", "ready"]
    warning: str | None = Field(
        None, description="What an operator should know although scripts can run."
    )


class EngineReply(Reply):
    """What can run scripts here."""

    name: str
    isolation: str
    accelerator: Literal["kvm", "tcg"] | None = Field(
        None, description="What carries out a guest's instructions: `tcg` is emulation."
    )
    remark: str | None = Field(None, description="What an operator should know of it.")


class VersionReply(Reply):
    """What runs here."""

    name: Literal["magsd"]
    version: str
    api: list[str]
    engines: list[EngineReply]
