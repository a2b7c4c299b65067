"""Routes of jobs: submit, status, list, stop."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response

from magsd.api import render
from magsd.api.body import json_body, read_object
from magsd.api.caller import Caller, Known
from magsd.api.errors import json_response
from magsd.api.schemas import (
    JobReply,
    JobsReply,
    PoolStatusReply,
    Stopped,
    SubmitRequest,
    Submitted,
)
from magsd.api.submit import spec_of
from magsd.api.waits import StoppingError
from magsd.model.errors import NotFoundError
from magsd.model.lifecycle import Status
from magsd.model.records import JobStatus

router = APIRouter(tags=["jobs"])

WAIT_MAX_S: Final = 60
REF_MAX: Final = 128
_INT64_MAX: Final = 2**63 - 1
_PAGES_MAX: Final = 10**9

Ref = Annotated[str, Path(description="A job's `request_id`, or its name.")]
Position = Annotated[int | None, Query(ge=0, le=_INT64_MAX)]


def checked_ref(ref: str) -> str:
    """Return `ref` if anything could be called so. Raises `NotFoundError`."""
    if len(ref) > REF_MAX or "\0" in ref:
        raise NotFoundError("there is no such job: no id or name looks like this")
    return ref


@router.post(
    "/mags-jobs",
    status_code=202,
    summary="Run a script",
    responses={202: {"model": Submitted}},
    openapi_extra=json_body(SubmitRequest),
)
async def submit(
    request: Request,
    caller: Known,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="The same key and body within 24 h give the same job.",
        ),
    ] = None,
) -> Response:
    """Take a script on; it starts at once. Follow it by its status and its log."""
    spec = spec_of(await read_object(request))
    job = await caller.service.submit(caller.principal, spec, idempotency_key)
    reply: dict[str, Any] = {
        "request_id": job.request_id,
        "status": "accepted",
        "message": "Mags job submitted successfully",
    }
    if spec.ignored:
        reply["warnings"] = [f"unknown field {name!r} was ignored" for name in spec.ignored]
    return json_response(reply, 202)


@router.get("/mags-jobs", summary="List jobs", responses={200: {"model": JobsReply}})
async def list_jobs(
    caller: Known,
    page: Annotated[int, Query(ge=1, le=_PAGES_MAX)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[Status | None, Query()] = None,
    workspace_id: Annotated[str | None, Query(max_length=REF_MAX)] = None,
) -> Response:
    """Running and sleeping persistent jobs first, then the newest."""
    found = await caller.service.list_jobs(
        caller.principal,
        page=page,
        page_size=page_size,
        status=status,
        workspace_id=workspace_id,
    )
    return json_response(render.page(found))


@router.get(
    "/mags-jobs/pool-status",
    summary="Waiting and working VMs",
    responses={200: {"model": PoolStatusReply}},
)
async def pool_status(caller: Known) -> Response:
    """How many VMs wait for a script on this service, and how many have one."""
    return json_response(render.pool_status(caller.service.pool_status()))


@router.get(
    "/mags-jobs/{ref}/status", summary="Status of a job", responses={200: {"model": JobReply}}
)
async def status(
    caller: Known,
    ref: Ref,
    wait: Annotated[float, Query(ge=0, le=WAIT_MAX_S, description="Seconds.")] = 0,
    after: Annotated[
        int | None, Query(ge=-1, le=_INT64_MAX, description="A `generation`; -1: any.")
    ] = None,
) -> Response:
    """With `wait`, held until the job is over or, with `after`, its `generation` is beyond that;
    at most so many seconds."""
    job = await _status(caller, checked_ref(ref), wait, after)
    return json_response(render.status(job))


async def _status(caller: Caller, ref: str, wait_s: float, after: int | None) -> JobStatus:
    if not wait_s:
        return await caller.service.status(caller.principal, ref)
    try:
        async with caller.parts.waits.hold():
            return await caller.service.status(
                caller.principal, ref, wait_s=wait_s, after_generation=after
            )
    except StoppingError:
        return await caller.service.status(caller.principal, ref)


@router.post("/mags-jobs/{ref}/stop", summary="Stop a job", responses={200: {"model": Stopped}})
async def stop(caller: Known, ref: Ref) -> Response:
    """Answers when the job has ended, or after 25 s with `stopping`: then it goes on by itself.
    Asking again is harmless."""
    job = await caller.service.stop(caller.principal, checked_ref(ref))
    if job.is_final:
        return json_response({"success": True, "message": "Job stopped", "status": job.status})
    return json_response({"success": True, "message": "Job is being stopped", "status": "stopping"})
