"""The shapes of requests and replies about ways into VMs: URLs, SSH, aliases."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from magsd.api.schemas import Number, Reply, Text
from magsd.model.grants import DEFAULT_PORT


class AccessRequest(BaseModel):
    """What is to be reached."""

    model_config = ConfigDict(strict=True, extra="ignore")

    port: Number = Field(
        DEFAULT_PORT,
        ge=1,
        le=65535,
        description="Where a server inside listens, on its loopback. 22: SSH, for which nothing "
        "need listen.",
    )
    visibility: str = Field(
        "public",
        description="Only `public`; `private` is not supported by this version.",
        json_schema_extra={"enum": ["public"]},
    )


class UrlOpened(Reply):
    """A URL leads to the port from now on, and to no other."""

    success: Literal[True]
    message: str
    url: str
    subdomain: str
    port: int
    ipv6_address: None = Field(description="VMs have none.")
    access_type: Literal["http_proxy"]
    warnings: list[str] = Field([], description="Fields of the request that nobody knows.")


class SshOpened(Reply):
    """A new key opens the job: `ssh -i KEY -p PORT root@HOST`."""

    success: Literal[True]
    message: str
    ssh_host: str
    ssh_port: int
    ssh_private_key: str = Field(
        description="For OpenSSH. It cannot be had again; it is good for 24 h after its last use, "
        "and no longer than the job and the token."
    )
    access_type: Literal["ssh_proxy"]
    warnings: list[str] = Field([], description="Fields of the request that nobody knows.")


class AliasRequest(BaseModel):
    """A name for a workspace's live job."""

    model_config = ConfigDict(strict=True, extra="ignore")

    subdomain: Text = Field(
        min_length=1,
        max_length=63,
        description="1 to 63 of a-z 0-9 and -; not 12 hex digits, which name jobs.",
    )
    workspace_id: Text = Field(min_length=1, max_length=63)
    domain: Text | None = Field(None, description="Only ours; any other is taken for it.")
    port: Annotated[Number, Field(ge=1, le=65535)] | None = Field(
        None,
        description="Where the server inside listens. Default: the port that was asked for last "
        "by `access`, else 8080.",
    )


class AliasReply(Reply):
    """An alias."""

    id: str = Field(description="Its subdomain.")
    subdomain: str
    workspace_id: str
    domain: str
    port: int
    url: str
    created_at: datetime


class NewAlias(AliasReply):
    """An alias that was made."""

    warnings: list[str] = Field([], description="Fields of the request that nobody knows.")


class AliasesReply(Reply):
    """The aliases of the account."""

    aliases: list[AliasReply]
    total: int
