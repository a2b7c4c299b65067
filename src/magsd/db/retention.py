"""What is old enough to go: jobs that have ended, and logs of such jobs.

Never one whose run goes on, or that something else refers to.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, and_, delete, exists, not_, select

from magsd.db import log_index
from magsd.db.log_index import LogRecord
from magsd.db.schema import grant, job, nap, run
from magsd.db.schema import log_index as logs
from magsd.model.lifecycle import RunState
from magsd.model.names import RequestId, VmId

_HAS_ENDED: Final = and_(run.c.run_id == job.c.run_id, run.c.state == RunState.ENDED)
_IS_UNREFERENCED: Final = not_(exists().where(grant.c.request_id == job.c.request_id))


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that may go."""

    request_id: RequestId
    vm: VmId | None
    """The last it had."""


def old_logs(
    tx: Connection, node: str, before: datetime, passed: Collection[RequestId], limit: int
) -> Sequence[LogRecord]:
    """Return logs put away on `node` before that time, of jobs that have ended; oldest first.

    Not of the jobs `passed`.
    """
    query = (
        select(logs)
        .join(job, job.c.request_id == logs.c.request_id)
        .join(run, _HAS_ENDED)
        .where(logs.c.node == node, logs.c.archived_at < before)
        .where(logs.c.request_id.not_in(passed))
        .order_by(logs.c.archived_at)
        .limit(limit)
    )
    return [log_index.record(row) for row in tx.execute(query)]


def old_jobs(
    tx: Connection, node: str, before: datetime, passed: Collection[RequestId], limit: int
) -> Sequence[EndedJob]:
    """Return jobs that ended on `node` before that time, oldest first, but for those `passed`."""
    query = (
        select(job.c.request_id, run.c.vm_id)
        .join(run, _HAS_ENDED)
        .where(run.c.node == node, run.c.ended_at < before, _IS_UNREFERENCED)
        .where(job.c.request_id.not_in(passed))
        .order_by(run.c.ended_at)
        .limit(limit)
    )
    return [
        EndedJob(RequestId(row.request_id), None if row.vm_id is None else VmId(row.vm_id))
        for row in tx.execute(query)
    ]


def remove_jobs(tx: Connection, jobs: Collection[RequestId]) -> Sequence[RequestId]:
    """Remove those of `jobs` that have ended and that nothing refers to; return them."""
    may_go = select(job.c.request_id).where(
        job.c.request_id.in_(jobs),
        exists().where(_HAS_ENDED),
        _IS_UNREFERENCED,
        not_(exists().where(logs.c.request_id == job.c.request_id)),
    )
    going = [RequestId(found) for found in tx.execute(may_go).scalars()]
    their_runs = select(run.c.run_id).where(run.c.request_id.in_(going))
    tx.execute(delete(nap).where(nap.c.run_id.in_(their_runs)))
    tx.execute(delete(run).where(run.c.request_id.in_(going)))
    tx.execute(delete(job).where(job.c.request_id.in_(going)))
    return going
