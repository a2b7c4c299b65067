"""What the platform knows, as plain frozen data: who asks, what was asked, what became of it.

Owns the shapes that database, core and API share. What may happen next is
`lifecycle`'s part, how a row is stored is `db`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from magsd.model.errors import JobCode
from magsd.model.layers import Manifest
from magsd.model.lifecycle import Goal, RunState, Status
from magsd.model.names import (
    AccountId,
    RequestId,
    RunId,
    Subdomain,
    TokenId,
    VmId,
    WorkspaceId,
)
from magsd.model.uploads import UploadedFile

DEFAULT_ACCOUNT: Final = "default"
"""The account that the first token belongs to."""


class Scope(StrEnum):
    """What a token is good for."""

    JOBS = "jobs"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request: an account, by one of its tokens."""

    account_id: AccountId
    account: str
    """The account's name."""
    token_id: TokenId
    scopes: frozenset[Scope]
    expires_at: datetime | None = None
    """Of the token."""

    @property
    def is_admin(self) -> bool:
        """Whether every account may be spoken for."""
        return Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class Account:
    """An owner of jobs and tokens."""

    account_id: AccountId
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token without its secret, which nobody keeps."""

    token_id: TokenId
    account_id: AccountId
    account: str
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a caller asked for, checked for form and complete but for defaults of the operator.

    None means "the operator's default"; `quota.completed` makes a `RunSpec` of it.
    """

    script: str
    name: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: int | None = None
    rootfs_type: str = "standard"
    vcpus: int | None = None
    memory_mb: int | None = None
    disk_gb: int | None = None
    engine: str | None = None
    workspace_id: str | None = None
    base_workspace_id: str | None = None
    no_sync: bool = False
    file_ids: tuple[str, ...] = ()
    """Uploads that the script is to find."""
    persistent: bool = False
    """The VM stays when the script is over."""
    no_sleep: bool = False
    idle_timeout_s: int | None = None
    """After so long without use it sleeps."""
    startup_command: str = ""
    """Run when it is woken by a start; empty: nothing is."""
    ignored: tuple[str, ...] = ()
    """Names of request fields that nobody knows; told in the reply and in the system log."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a VM is to run and to have, with nothing left open."""

    script: str
    environment: Mapping[str, str]
    timeout_s: int | None
    """None: the script may take as long as it likes."""
    rootfs_type: str
    vcpus: int
    memory_mb: int
    disk_gb: int
    ignored: tuple[str, ...] = ()
    files: tuple[UploadedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked, without the script: enough for every decision but the launch."""

    request_id: RequestId
    account_id: AccountId
    name: str
    workspace_id: str | None
    """Name of the workspace that it reads and writes."""
    persistent: bool
    no_sleep: bool
    subdomain: Subdomain
    goal: Goal
    goal_version: int
    generation: int
    """How many changes of the job were published."""
    created_at: datetime
    base_workspace_id: str | None = None
    """Name of the workspace that it starts from when its own is new, or it has none."""
    no_sync: bool = False
    """What it changes is not kept."""
    idle_timeout_s: int | None = None
    """After so long without use it sleeps; None: as the operator has it."""

    @property
    def is_kept(self) -> bool:
        """Whether what it changes becomes a version of its workspace."""
        return self.workspace_id is not None and not self.no_sync


@dataclass(frozen=True, slots=True)
class Run:
    """The life that a job has, had, or waits for."""

    run_id: RunId
    request_id: RequestId
    epoch: int
    """How many VMs were tried for it, from 1; guards every write of its actor."""
    state: RunState
    engine: str
    isolation: str
    created_at: datetime
    vm_id: VmId | None = None
    claimed_at: datetime | None = None
    """When its launch began."""
    started_at: datetime | None = None
    """When its script began."""
    script_ended_at: datetime | None = None
    """Of a persistent job: when its script was over; `exit_code` is final from then on."""
    ended_at: datetime | None = None
    exit_code: int | None = None
    code: JobCode | None = None
    """Why it ended in `error`; None while it lives and when it completed."""
    error: str | None = None
    base_version: int | None = None
    """The version of its own workspace that it began from; None: there was none."""
    is_synced: bool | None = None
    """Whether the object store has all that it changed; None while it is awake, and where nothing
    is kept."""
    log_epoch: int | None = None
    """The epoch in which its VM's journal was begun, which goes on when the VM is woken; None: in
    this one."""
    slept_at: datetime | None = None
    """Since when it sleeps; None: it is awake. Stays where it ended asleep."""
    slept_version: int | None = None
    """The version of its workspace that has all that a sleeping VM's disk holds; None: there is
    none, or it is awake."""
    restored_from: str | None = None
    """What it goes on from since its VM was lost; None: none was."""

    @property
    def journal(self) -> int:
        """The epoch that its log is put away under, and numbered by."""
        return self.log_epoch or self.epoch


@dataclass(frozen=True, slots=True, weakref_slot=True)
class JobStatus:
    """A job as it was last published. Immutable: a change is another object."""

    request_id: RequestId
    account_id: AccountId
    name: str
    status: Status
    vm_id: str
    """Empty until a VM is attached."""
    workspace_id: str | None
    persistent: bool
    no_sleep: bool
    subdomain: Subdomain
    url: str
    exit_code: int | None
    """0 until final."""
    queue_duration_ms: int
    acquire_duration_ms: int
    script_duration_ms: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None
    code: JobCode | None
    engine: str
    isolation: str
    generation: int
    script_ended_at: datetime | None = None
    """Of a persistent job: when its script was over."""
    workspace_synced: bool | None = None
    """Whether the object store has what it changed; None while it is awake, and without a
    workspace."""
    restored_from: str | None = None
    """What it goes on from since its VM was lost."""

    @property
    def is_final(self) -> bool:
        """Whether nothing about the job will change any more."""
        return self.status in (Status.COMPLETED, Status.ERROR)

    @property
    def sleeping(self) -> bool:
        """Whether its VM sleeps."""
        return self.status is Status.SLEEPING


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Executed:
    """What became of a command that was run in a job's VM."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    duration_ms: int
    is_truncated: bool
    """It printed more."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a list of jobs."""

    jobs: tuple[JobStatus, ...]
    total: int
    page: int
    page_size: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """How many VMs there are on this node."""

    idle_vms: int
    """They wait for a script."""
    busy_vms: int
    """They have one."""
    min_pool_size: int
    max_pool_size: int

    @property
    def total_vms(self) -> int:
        """All of them."""
        return self.idle_vms + self.busy_vms


class VersionState(StrEnum):
    """Where the layers of a version are."""

    PENDING = "pending"
    """On its node alone."""
    LIVE = "live"
    """In the object store."""
    ASIDE = "aside"
    """Not on the way to the head. It is in the object store, and another version was quicker; or
    it was damaged before it could be stored, and a later one took its place."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a workspace."""

    workspace_id: WorkspaceId
    account_id: AccountId
    version: int
    state: VersionState
    parent: int | None
    """What the head must be for this to become the head."""
    manifest: Manifest
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace, as its newest version is."""

    workspace_id: WorkspaceId
    name: str
    version: int
    size_bytes: int
    """Of its own layers, packed."""
    created_at: datetime
    updated_at: datetime
    in_use_by: RequestId | None
    """The job that has it."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What came of keeping what a job changed."""

    workspace: str
    version: int
    size_bytes: int
    uploaded_bytes: int


class LogSource(StrEnum):
    """Where a line of a job's log comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One entry of a job's log."""

    timestamp: datetime
    source: LogSource
    message: str
    seq: int
    """Increasing along the log, not dense; where to go on from."""

    @property
    def level(self) -> str:
        """`error` for stderr, else `info`."""
        return "error" if self.source is LogSource.STDERR else "info"


@dataclass(frozen=True, slots=True)
class LogPage:
    """A stretch of a job's log."""

    lines: Sequence[LogLine]
    truncated: bool
    """Whether there are more than were asked for."""
