"""Submits that are sent again: the same key within a day gives the same job."""

import dataclasses
import hashlib
import json
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from magsd.db import jobs
from magsd.model.errors import ConflictError, InvalidError
from magsd.model.records import Job, JobSpec, Run

_KEY_MAX: Final = 255
_KEPT: Final = timedelta(hours=24)


def idempotency_of(spec: JobSpec, key: str | None) -> jobs.Idempotency | None:
    """Return what makes a submit with `key` the same as another. Raises `InvalidError`."""
    if key is None:
        return None
    if not (0 < len(key) <= _KEY_MAX and key.isprintable()):
        raise InvalidError(f"Idempotency-Key must have 1 to {_KEY_MAX} printable characters")
    asked = json.dumps(dataclasses.asdict(spec), sort_keys=True)
    return jobs.Idempotency(key, hashlib.sha256(asked.encode()).hexdigest())


def submitted_before(
    tx: Connection, job: Job, idempotency: jobs.Idempotency | None
) -> tuple[Job, Run] | None:
    """Return the job that was submitted with the same key, if that was lately."""
    if idempotency is None:
        return None
    if (found := before(tx, job, idempotency)) is not None:
        return found
    if (known := jobs.by_idempotency_key(tx, job.account_id, idempotency.key)) is not None:
        jobs.release_key(tx, known[0])
    return None


def before(tx: Connection, job: Job, idempotency: jobs.Idempotency) -> tuple[Job, Run] | None:
    """Return the job that used the key within the time that keys are kept for."""
    known = jobs.by_idempotency_key(tx, job.account_id, idempotency.key)
    if known is None or known[2] <= job.created_at - _KEPT:
        return None
    request_id, digest, _ = known
    if digest != idempotency.digest:
        raise ConflictError(
            f"Idempotency-Key was used for job {request_id}, which asked for something else"
        )
    return jobs.get(tx, job.account_id, request_id)
