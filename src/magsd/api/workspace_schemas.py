"""The shapes of requests and replies about workspaces; see `schemas`."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from magsd.api.schemas import Number, Reply
from magsd.model.names import WORKSPACE_NAME
from magsd.model.records import VersionState

_BOUNDS: Final[dict[str, JsonValue]] = {"minimum": 1, "maximum": 2**31 - 1}
_VersionNumber = Annotated[Number, Field(ge=1, le=2**31 - 1)]


class RestoreRequest(BaseModel):
    """A version to go back to."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: _VersionNumber = Field(json_schema_extra=_BOUNDS)


class ForkRequest(BaseModel):
    """A new workspace that begins as another."""

    model_config = ConfigDict(strict=True, extra="forbid")

    workspace_id: str = Field(
        description="Of the new workspace.", json_schema_extra={"pattern": f"^{WORKSPACE_NAME}$"}
    )
    version: _VersionNumber | None = Field(
        None,
        description="Of the workspace that is forked. Default: the newest.",
        json_schema_extra=_BOUNDS,
    )


class CollectRequest(BaseModel):
    """How much of the past is kept."""

    model_config = ConfigDict(strict=True, extra="forbid")

    keep: _VersionNumber | None = Field(
        None,
        description="So many versions of each workspace, the newest. Default: as many as the "
        "service keeps in any case.",
        json_schema_extra=_BOUNDS,
    )


class Collected(Reply):
    """What was deleted because nothing needs it."""

    versions_deleted: int
    layers_deleted: int
    freed_bytes: int = Field(
        description="Of the layers; parts that others have in common with them are still there."
    )


class Synced(Reply):
    """What a job has changed up to a moment is stored."""

    success: Literal[True]
    workspace_id: str
    version: int
    size_bytes: int = Field(description="Of the workspace, packed.")
    uploaded_bytes: int = Field(description="What had to be sent for it.")
    duration_ms: int


class WorkspaceReply(Reply):
    """A workspace as its newest version is."""

    workspace_id: str
    id: str
    size_bytes: int = Field(description="Packed, without the image's layers.")
    version: int
    created_at: datetime
    updated_at: datetime
    in_use_by: str | None = Field(description="The `request_id` of the job that has it.")


class WorkspacesReply(Reply):
    """The caller's workspaces."""

    workspaces: list[WorkspaceReply]
    total: int


class WorkspaceVersionReply(Reply):
    """One version of a workspace."""

    version: int
    state: VersionState = Field(
        description="`pending`: on its machine alone so far; `aside`: another became the newest "
        "before it could, restore it to have it."
    )
    parent: int | None
    image: str
    layers: int = Field(description="How many it has above the image's.")
    size_bytes: int
    created_at: datetime


class VersionsReply(Reply):
    """A workspace's versions, the newest first."""

    versions: list[WorkspaceVersionReply]
    total: int
