"""The route of an account's usage."""

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from magsd.api import render
from magsd.api.caller import Known
from magsd.api.errors import json_response
from magsd.api.schemas import Reply
from magsd.model.usage import WINDOW_MAX_DAYS

router = APIRouter(tags=["jobs"])


class UsageDayReply(Reply):
    """One day, from midnight to midnight in UTC."""

    date: date
    jobs: int = Field(description="Submitted that day.")
    vm_seconds: float


class UsageReply(Reply):
    """What the account has used."""

    window_days: int
    total_jobs: int = Field(description="Submitted in the window.")
    completed_jobs: int = Field(description="Ended in the window.")
    failed_jobs: int = Field(description="Ended in the window.")
    running_jobs: int = Field(description="At this moment.")
    vm_seconds: float = Field(
        description="For which scripts had a VM, those that run included, inside the window."
    )
    storage_bytes: int = Field(description="Of workspaces and uploads, at this moment.")
    by_day: list[UsageDayReply] = Field(description="All days of the window, the oldest first.")


@router.get(
    "/mags-jobs/usage", summary="Usage of the account", responses={200: {"model": UsageReply}}
)
async def usage(
    caller: Known,
    window_days: Annotated[
        int, Query(ge=1, le=WINDOW_MAX_DAYS, description="Days in UTC, today among them.")
    ] = 30,
) -> Response:
    """What the caller's account has used. Jobs older than the server keeps them do not count."""
    return json_response(
        render.usage(await caller.service.usages.of(caller.principal, window_days))
    )
