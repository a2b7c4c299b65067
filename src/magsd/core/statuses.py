"""What a client is told about a job, from its rows. Pure."""

from datetime import datetime, timedelta

from magsd.core.settings import CoreSettings
from magsd.model.lifecycle import ASLEEP, RunState, status_of
from magsd.model.records import Job, JobStatus, Run


def of_job(job: Job, run: Run, settings: CoreSettings) -> JobStatus:
    """Return the status of `job`, whose last run is `run`."""
    is_attached = run.started_at is not None and run.state is not RunState.LAUNCHING
    # Before that its result may be known, but what it changed is not kept yet.
    is_over = run.state is RunState.ENDED
    return JobStatus(
        request_id=job.request_id,
        account_id=job.account_id,
        name=job.name,
        status=status_of(run.state, has_failed=run.code is not None),
        vm_id=run.vm_id if is_attached and run.vm_id else "",
        workspace_id=job.workspace_id,
        persistent=job.persistent,
        no_sleep=job.no_sleep,
        subdomain=job.subdomain,
        url=settings.url_of(job.subdomain),
        exit_code=run.exit_code if is_over or run.script_ended_at is not None else 0,
        queue_duration_ms=_ms(job.created_at, run.claimed_at),
        acquire_duration_ms=_ms(run.claimed_at, run.started_at),
        script_duration_ms=_ms(run.started_at, run.script_ended_at or run.ended_at),
        created_at=job.created_at,
        started_at=run.started_at,
        completed_at=run.ended_at if is_over else None,
        error=run.error if is_over else None,
        code=run.code if is_over else None,
        engine=run.engine,
        isolation=run.isolation,
        generation=job.generation,
        script_ended_at=run.script_ended_at,
        workspace_synced=_is_synced(job, run),
        restored_from=run.restored_from,
    )


def _is_synced(job: Job, run: Run) -> bool | None:
    is_at_rest = run.state is RunState.ENDED or run.state in ASLEEP
    if job.workspace_id is None or not is_at_rest:
        return None
    return False if job.no_sync else run.is_synced


def _ms(begin: datetime | None, end: datetime | None) -> int:
    if begin is None or end is None:
        return 0
    # The host's clock may be set back between the two.
    return max(0, (end - begin) // timedelta(milliseconds=1))
