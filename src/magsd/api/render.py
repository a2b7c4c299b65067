"""From records to the JSON that clients see. Pure."""

from datetime import datetime
from typing import Any

from magsd.model.records import (
    JobPage,
    JobStatus,
    LogLine,
    PoolStatus,
    TokenRecord,
    Version,
    Workspace,
)
from magsd.model.usage import Usage


def time(moment: datetime | None) -> str | None:
    """Return a time as RFC 3339 in UTC, to the millisecond."""
    if moment is None:
        return None
    return f"{moment.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"


def status(job: JobStatus) -> dict[str, Any]:
    """Return a job's status; `error` and `code` only where there is a failure."""
    fields: dict[str, Any] = {
        "request_id": job.request_id,
        "name": job.name,
        "status": job.status,
        "vm_id": job.vm_id,
        "workspace_id": job.workspace_id,
        "persistent": job.persistent,
        "no_sleep": job.no_sleep,
        "subdomain": job.subdomain,
        "url": job.url,
        "sleeping": job.sleeping,
        "exit_code": job.exit_code,
        "queue_duration_ms": job.queue_duration_ms,
        "acquire_duration_ms": job.acquire_duration_ms,
        "script_duration_ms": job.script_duration_ms,
        "created_at": time(job.created_at),
        "started_at": time(job.started_at),
        "completed_at": time(job.completed_at),
        "engine": job.engine,
        "isolation": job.isolation,
        "generation": job.generation,
    }
    if job.persistent:
        fields["script_ended_at"] = time(job.script_ended_at)
    if job.workspace_id is not None:
        fields["workspace_synced"] = job.workspace_synced
    if job.restored_from is not None:
        fields["restored_from"] = job.restored_from
    if job.error is not None:
        fields["error"] = job.error
    if job.code is not None:
        fields["code"] = job.code
    return fields


def workspace(found: Workspace) -> dict[str, Any]:
    """Return a workspace in a list."""
    return {
        "workspace_id": found.name,
        "id": found.workspace_id,
        "size_bytes": found.size_bytes,
        "version": found.version,
        "created_at": time(found.created_at),
        "updated_at": time(found.updated_at),
        "in_use_by": found.in_use_by,
    }


def version(found: Version) -> dict[str, Any]:
    """Return one version of a workspace."""
    return {
        "version": found.version,
        "state": found.state,
        "parent": found.parent,
        "image": found.manifest.image,
        "layers": len(found.manifest.own_layers),
        "size_bytes": found.manifest.size_bytes,
        "created_at": time(found.created_at),
    }


def page(found: JobPage) -> dict[str, Any]:
    """Return one page of the list of jobs."""
    return {
        "jobs": [_listed(job) for job in found.jobs],
        "total": found.total,
        "page": found.page,
        "page_size": found.page_size,
    }


def _listed(job: JobStatus) -> dict[str, Any]:
    return {
        "request_id": job.request_id,
        "job_id": job.request_id,
        "name": job.name,
        "status": job.status,
        "workspace_id": job.workspace_id,
        "exit_code": job.exit_code,
        "created_at": time(job.created_at),
        "persistent": job.persistent,
        "vm_id": job.vm_id,
    }


def line(entry: LogLine, *, with_seq: bool) -> dict[str, Any]:
    """Return one entry of a log."""
    fields: dict[str, Any] = {
        "timestamp": time(entry.timestamp),
        "level": entry.level,
        "message": entry.message,
        "source": entry.source,
    }
    if with_seq:
        fields["seq"] = entry.seq
    return fields


def pool_status(found: PoolStatus) -> dict[str, Any]:
    """Return how many VMs there are."""
    return {
        "idle_vms": found.idle_vms,
        "busy_vms": found.busy_vms,
        "total_vms": found.total_vms,
        "min_pool_size": found.min_pool_size,
        "max_pool_size": found.max_pool_size,
    }


def usage(found: Usage) -> dict[str, Any]:
    """Return what an account has used."""
    return {
        "window_days": found.window_days,
        "total_jobs": found.total_jobs,
        "completed_jobs": found.completed_jobs,
        "failed_jobs": found.failed_jobs,
        "running_jobs": found.running_jobs,
        "vm_seconds": round(found.vm_seconds, 3),
        "storage_bytes": found.storage_bytes,
        "by_day": [
            {
                "date": each.day.isoformat(),
                "jobs": each.jobs,
                "vm_seconds": round(each.vm_seconds, 3),
            }
            for each in found.by_day
        ],
    }


def token(record: TokenRecord) -> dict[str, Any]:
    """Return a token without its secret."""
    return {
        "id": record.token_id,
        "name": record.name,
        "account": record.account,
        "scopes": sorted(record.scopes),
        "created_at": time(record.created_at),
        "expires_at": time(record.expires_at),
        "last_used_at": time(record.last_used_at),
    }
