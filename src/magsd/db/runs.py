"""Runs: the lives of a job's VMs. Every write but the first is guarded by run and epoch."""

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select, update

from magsd.db.schema import job, run
from magsd.model.errors import JobCode
from magsd.model.layers import Manifest
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId, RequestId, RunId, VmId
from magsd.model.records import Run

_CHANGING: Final = (
    "epoch",
    "state",
    "engine",
    "isolation",
    "vm_id",
    "claimed_at",
    "started_at",
    "script_ended_at",
    "ended_at",
    "exit_code",
    "code",
    "error",
    "base_version",
    "is_synced",
    "log_epoch",
    "slept_at",
    "slept_version",
    "restored_from",
)
COLUMNS: Final = tuple(
    column.label(f"run_{column.name}") for column in run.c if column.name != "manifest"
)
"""Of a run's record, see `record`."""
_INSERT: Final = insert(run)
_UPDATE: Final = (
    update(run)
    .where(
        run.c.run_id == bindparam("id"),
        run.c.epoch == bindparam("seen"),
        run.c.state != RunState.ENDED,
    )
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)
_COUNT: Final = (
    update(job)
    .where(job.c.request_id == bindparam("id"))
    .values(generation=bindparam("new_generation"))
)


def add(tx: Connection, new: Run, account_id: AccountId, node: str) -> None:
    """Store a new run."""
    values = {name: getattr(new, name) for name in _CHANGING}
    values |= {"run_id": new.run_id, "request_id": new.request_id, "created_at": new.created_at}
    tx.execute(_INSERT, values | {"account_id": account_id, "node": node})


def save(tx: Connection, new: Run, *, epoch: int, generation: int) -> bool:
    """Write what became of a run, and count the change in its job.

    `epoch` is the one its actor works in. False: somebody else has the run
    now, or its end is recorded already; nothing was written, and the actor
    must give its VM back.
    """
    values: dict[str, Any] = {f"new_{name}": getattr(new, name) for name in _CHANGING}
    written = tx.execute(_UPDATE, values | {"id": new.run_id, "seen": epoch})
    if written.rowcount != 1:
        return False
    tx.execute(_COUNT, {"id": new.request_id, "new_generation": generation})
    return True


def of_vms(tx: Connection, vms: Collection[VmId]) -> dict[VmId, tuple[AccountId, Run]]:
    """Return the runs, with their accounts, that have or last had one of these VMs."""
    found: dict[VmId, tuple[AccountId, Run]] = {}
    for row in tx.execute(select(*COLUMNS).where(run.c.vm_id.in_(vms))):
        found[VmId(row.run_vm_id)] = (AccountId(row.run_account_id), record(row))
    return found


def set_manifest(tx: Connection, run_id: RunId, epoch: int, manifest: Manifest) -> None:
    """Write down what a run's root filesystem is made of, in the epoch of its actor."""
    its = run.c.run_id == run_id, run.c.epoch == epoch
    tx.execute(update(run).where(*its).values(manifest=manifest.as_json()))


def manifest(tx: Connection, run_id: RunId) -> Manifest | None:
    """Return what a run's root filesystem is made of; None where its image is all."""
    found = tx.execute(select(run.c.manifest).where(run.c.run_id == run_id)).scalar_one_or_none()
    return None if found is None else Manifest.from_json(found)


def record(row: Any) -> Run:
    """Return the run in a row with `COLUMNS`."""
    return Run(
        run_id=RunId(row.run_run_id),
        request_id=RequestId(row.run_request_id),
        epoch=row.run_epoch,
        state=RunState(row.run_state),
        engine=row.run_engine,
        isolation=row.run_isolation,
        created_at=row.run_created_at,
        vm_id=None if row.run_vm_id is None else VmId(row.run_vm_id),
        claimed_at=row.run_claimed_at,
        started_at=row.run_started_at,
        script_ended_at=row.run_script_ended_at,
        ended_at=row.run_ended_at,
        exit_code=row.run_exit_code,
        code=None if row.run_code is None else JobCode(row.run_code),
        error=row.run_error,
        base_version=row.run_base_version,
        is_synced=row.run_is_synced,
        log_epoch=row.run_log_epoch,
        slept_at=row.run_slept_at,
        slept_version=row.run_slept_version,
        restored_from=row.run_restored_from,
    )
