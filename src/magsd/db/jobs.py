"""Jobs: what was asked, and the goal; read together with their last run."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    func,
    insert,
    not_,
    select,
    update,
)

from magsd.db import runs
from magsd.db.schema import job, run
from magsd.model.amount import Amount
from magsd.model.lifecycle import Goal, RunState, Status
from magsd.model.names import AccountId, RequestId, Subdomain
from magsd.model.records import Job, Run, RunSpec
from magsd.model.uploads import UploadedFile

_JOB_COLUMNS: Final = (
    job.c.request_id,
    job.c.account_id,
    job.c.name,
    job.c.workspace_id,
    job.c.base_workspace_id,
    job.c.persistent,
    job.c.no_sleep,
    job.c.no_sync,
    job.c.idle_timeout_s,
    job.c.subdomain,
    job.c.goal,
    job.c.goal_version,
    job.c.generation,
    job.c.created_at,
)
_RUN_COLUMNS: Final = runs.COLUMNS
# By both ids, so that a query may begin at either table.
_ITS_RUN: Final = and_(run.c.run_id == job.c.run_id, run.c.request_id == job.c.request_id)
_WITH_RUN: Final = select(*_JOB_COLUMNS, *_RUN_COLUMNS).join(run, _ITS_RUN)
_INSERT: Final = insert(job)
_GET: Final = _WITH_RUN.where(
    job.c.request_id == bindparam("id"), job.c.account_id == bindparam("account")
)
_SET_GOAL: Final = (
    update(job)
    .where(job.c.request_id == bindparam("id"), job.c.goal_version == bindparam("seen"))
    .values(goal=bindparam("want"), goal_version=bindparam("next"))
)
_RUNNING: Final = (RunState.RUNNING, RunState.SUSPENDING, RunState.STOPPING, RunState.SAVING)
_SLEEPING: Final = (RunState.SLEEPING, RunState.WAKING)
_ALIVE: Final = (*_RUNNING, *_SLEEPING)
_IS_ALIVE: Final = run.c.state.in_(_ALIVE)
_COMES_FIRST: Final = and_(job.c.persistent, _IS_ALIVE)
_NEWEST_FIRST: Final = (job.c.created_at.desc(), job.c.request_id)
_UNFINISHED: Final = tuple(state for state in RunState if state is not RunState.ENDED)
_IS_STATUS: Final[dict[Status, ColumnElement[bool]]] = {
    Status.PENDING: run.c.state.in_([RunState.PENDING, RunState.LAUNCHING]),
    Status.RUNNING: run.c.state.in_(_RUNNING),
    Status.SLEEPING: run.c.state.in_(_SLEEPING),
    Status.COMPLETED: and_(run.c.state == RunState.ENDED, run.c.code.is_(None)),
    Status.ERROR: and_(run.c.state == RunState.ENDED, run.c.code.is_not(None)),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a second submit the first one again."""

    key: str
    digest: str
    """Of what was asked."""


def add(
    tx: Connection,
    new: Job,
    first: Run,
    spec: RunSpec,
    node: str,
    idempotency: Idempotency | None = None,
    startup_command: str = "",
) -> None:
    """Store a job and its first run."""
    settings = dataclasses.asdict(spec)
    script = settings.pop("script")
    tx.execute(
        _INSERT,
        {
            "request_id": new.request_id,
            "account_id": new.account_id,
            "name": new.name,
            "workspace_id": new.workspace_id,
            "base_workspace_id": new.base_workspace_id,
            "persistent": new.persistent,
            "no_sleep": new.no_sleep,
            "no_sync": new.no_sync,
            "idle_timeout_s": new.idle_timeout_s,
            "subdomain": new.subdomain,
            "goal": new.goal,
            "goal_version": new.goal_version,
            "generation": new.generation,
            "run_id": first.run_id,
            "idempotency_key": idempotency.key if idempotency else None,
            "idempotency_digest": idempotency.digest if idempotency else None,
            "created_at": new.created_at,
            "startup_command": startup_command or None,
            "spec": settings,
            "script": script,
        },
    )
    runs.add(tx, first, new.account_id, node)


def get(tx: Connection, account_id: AccountId, request_id: RequestId) -> tuple[Job, Run] | None:
    """Return a job of an account, with its last run."""
    rows = tx.execute(_GET, {"id": request_id, "account": account_id})
    row = rows.one_or_none()
    return None if row is None else _records(row)


def find(tx: Connection, account_id: AccountId, name: str) -> tuple[Job, Run] | None:
    """Return the job that `name` means: alive by name, alive by workspace, any by
    name, any by workspace; the newest of several."""
    by_name, by_workspace = job.c.name == name, job.c.workspace_id == name
    # One after the other: each takes an index that gives the newest at once.
    for chosen in (
        and_(_alive(account_id), by_name),
        and_(_alive(account_id), by_workspace),
        by_name,
        by_workspace,
    ):
        query = _WITH_RUN.where(job.c.account_id == account_id, chosen)
        row = tx.execute(query.order_by(*_NEWEST_FIRST).limit(1)).one_or_none()
        if row is not None:
            return _records(row)
    return None


def page(
    tx: Connection,
    account_id: AccountId,
    *,
    offset: int,
    limit: int,
    status: Status | None = None,
    workspace_id: str | None = None,
) -> tuple[Sequence[tuple[Job, Run]], int]:
    """Return a stretch of an account's jobs and how many there are in all.

    Running and sleeping persistent jobs come first, then the newest.
    """
    chosen = [job.c.account_id == account_id]
    if status is not None:
        chosen += [_IS_STATUS[status], run.c.account_id == account_id]
    if workspace_id is not None:
        chosen.append(job.c.workspace_id == workspace_id)
    # Two queries, the first sorted here: else all jobs that an account ever had would be read.
    first = tx.execute(_WITH_RUN.where(*chosen, _alive(account_id), job.c.persistent))
    rows = sorted(first, key=lambda row: (-row.created_at.timestamp(), row.request_id))
    others = _WITH_RUN.where(*chosen, not_(_COMES_FIRST)).order_by(*_NEWEST_FIRST)
    skipped = max(0, offset - len(rows))
    rows = rows[offset : offset + limit]
    rows += tx.execute(others.offset(skipped).limit(limit - len(rows)))
    counted = select(func.count()).select_from(job)
    if status is not None:
        counted = counted.join(run, _ITS_RUN)
    total = tx.execute(counted.where(*chosen)).scalar_one()
    return [_records(row) for row in rows], total


def unfinished(
    tx: Connection, node: str, only: Collection[RequestId] | None = None
) -> Sequence[tuple[Job, Run, Amount]]:
    """Return every job whose last run has not ended on this node, or those of `only`
    among them, and what its VM takes; oldest first."""
    query = _WITH_RUN.add_columns(job.c.spec).where(_is_unfinished(node))
    if only is not None:
        query = query.where(job.c.request_id.in_(only))
    rows = tx.execute(query.order_by(job.c.created_at, job.c.request_id))
    return [(*_records(row), _amount(row.spec)) for row in rows]


def goals(tx: Connection, node: str) -> dict[RequestId, tuple[Goal, int]]:
    """Return the goals of those jobs, with their versions: little for each, there may be many."""
    columns = select(job.c.request_id, job.c.goal, job.c.goal_version)
    rows = tx.execute(columns.join(run, _ITS_RUN).where(_is_unfinished(node)))
    return {RequestId(row[0]): (Goal(row[1]), row[2]) for row in rows}


def _is_unfinished(node: str) -> ColumnElement[bool]:
    return and_(run.c.node == node, run.c.state.in_(_UNFINISHED))


def _amount(spec: Mapping[str, Any]) -> Amount:
    return Amount(1, spec["vcpus"], spec["memory_mb"], spec["disk_gb"])


def _alive(account_id: AccountId) -> ColumnElement[bool]:
    return and_(run.c.account_id == account_id, _IS_ALIVE)


def spec(tx: Connection, request_id: RequestId) -> RunSpec:
    """Return what a job's VM is to run and to have."""
    row = (tx.execute(select(job.c.spec, job.c.script).where(job.c.request_id == request_id))).one()
    settings = {
        **row.spec,
        "ignored": tuple(row.spec["ignored"]),
        "files": tuple(UploadedFile(**file) for file in row.spec.get("files", ())),
    }
    return RunSpec(script=row.script, **settings)


def environment(tx: Connection, request_id: RequestId) -> Mapping[str, str]:
    """Return the variables that a job asked for. Raises `LookupError` when it is gone."""
    found = tx.execute(
        select(job.c.spec).where(job.c.request_id == request_id)
    ).scalar_one_or_none()
    if found is None:
        raise LookupError(request_id)
    variables: Mapping[str, str] = found["environment"]
    return variables


def set_goal(tx: Connection, request_id: RequestId, goal: Goal, *, seen_version: int) -> bool:
    """Set a job's goal if nobody did since `seen_version` was read. False: read again."""
    parameters = {"id": request_id, "seen": seen_version, "want": goal, "next": seen_version + 1}
    return (tx.execute(_SET_GOAL, parameters)).rowcount == 1


def set_no_sleep(tx: Connection, request_id: RequestId, no_sleep: bool) -> None:
    """Write down whether a job may sleep."""
    tx.execute(update(job).where(job.c.request_id == request_id).values(no_sleep=no_sleep))


def startup_command(tx: Connection, request_id: RequestId) -> str:
    """Return what is run when a job is woken; empty: nothing."""
    query = select(job.c.startup_command).where(job.c.request_id == request_id)
    return tx.execute(query).scalar_one() or ""


def set_startup_command(tx: Connection, request_id: RequestId, command: str) -> None:
    """Write down what is run when a job is woken."""
    its = update(job).where(job.c.request_id == request_id)
    tx.execute(its.values(startup_command=command or None))


def by_idempotency_key(
    tx: Connection, account_id: AccountId, key: str
) -> tuple[RequestId, str, datetime] | None:
    """Return the job submitted with `key`, the digest of what it asked, and when."""
    row = (
        tx.execute(
            select(job.c.request_id, job.c.idempotency_digest, job.c.created_at).where(
                job.c.account_id == account_id, job.c.idempotency_key == key
            )
        )
    ).one_or_none()
    return None if row is None else (RequestId(row[0]), row[1], row[2])


def release_key(tx: Connection, request_id: RequestId) -> None:
    """Let another job have the idempotency key of this one."""
    tx.execute(update(job).where(job.c.request_id == request_id).values(idempotency_key=None))


def _records(row: Any) -> tuple[Job, Run]:
    return (
        Job(
            request_id=RequestId(row.request_id),
            account_id=AccountId(row.account_id),
            name=row.name,
            workspace_id=row.workspace_id,
            persistent=row.persistent,
            no_sleep=row.no_sleep,
            subdomain=Subdomain(row.subdomain),
            goal=Goal(row.goal),
            goal_version=row.goal_version,
            generation=row.generation,
            created_at=row.created_at,
            base_workspace_id=row.base_workspace_id,
            no_sync=row.no_sync,
            idle_timeout_s=row.idle_timeout_s,
        ),
        runs.record(row),
    )
