"""Workspaces and their versions; the head is moved by compare-and-set.

A version is `pending` while only its node has its layers, `live` when the
object store has them, `aside` when another became the head before it could:
then it is kept, and whoever wants it restores it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Connection,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from magsd.db import layers
from magsd.db.schema import job, run, workspace, workspace_version
from magsd.model.layers import Manifest
from magsd.model.lifecycle import OVER, RunState
from magsd.model.names import AccountId, RequestId, RunId, WorkspaceId, new_workspace_id
from magsd.model.records import Run, Version, VersionState, Workspace

_VERSION: Final = workspace_version.c
_IS_UNFINISHED: Final = and_(
    run.c.run_id == job.c.run_id,
    run.c.request_id == job.c.request_id,
    run.c.state != RunState.ENDED,
)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version that is to be added."""

    account_id: AccountId
    name: str
    """Of the workspace, which is made when it is new."""
    node: str
    parent: int | None
    """The version that it was made of; the head must be that one for this to become the head."""
    manifest: Manifest
    run_id: RunId | None
    capture: int | None
    """Which of the run's captures it was; 0 is the last one, at its end."""
    at: datetime


def find(tx: Connection, account_id: AccountId, name: str) -> WorkspaceId | None:
    """Return the workspace of an account that has this name."""
    query = select(workspace.c.workspace_id).where(
        workspace.c.account_id == account_id, workspace.c.name == name
    )
    found = tx.execute(query).scalar_one_or_none()
    return None if found is None else WorkspaceId(found)


def newest(tx: Connection, account_id: AccountId, name: str) -> Version | None:
    """Return the version that the next run starts from: the newest that was not set aside."""
    query = (
        select(workspace_version)
        .join(workspace, workspace.c.workspace_id == _VERSION.workspace_id)
        .where(workspace.c.account_id == account_id, workspace.c.name == name)
        .where(_VERSION.state != VersionState.ASIDE)
        .order_by(_VERSION.version.desc())
        .limit(1)
    )
    row = tx.execute(query).one_or_none()
    return None if row is None else _record(row)


def get(tx: Connection, workspace_id: WorkspaceId, version: int) -> Version | None:
    """Return one version."""
    return _one(tx, _VERSION.workspace_id == workspace_id, _VERSION.version == version)


def captured(tx: Connection, run_id: RunId, capture: int) -> Version | None:
    """Return the version that a capture of a run has become."""
    return _one(tx, _VERSION.run_id == run_id, _VERSION.capture == capture)


def last_of(tx: Connection, its: Run, name: str, account_id: AccountId) -> Version | None:
    """Return the version that a run's next one is made of: its own last, or what it began from.

    None when it began from none, or that is gone by now.
    """
    query = select(workspace_version).where(_VERSION.run_id == its.run_id)
    row = tx.execute(query.order_by(_VERSION.version.desc()).limit(1)).one_or_none()
    if row is not None:
        return _record(row)
    workspace_id = find(tx, account_id, name)
    if workspace_id is None or its.base_version is None:
        return None
    return get(tx, workspace_id, its.base_version)


def next_capture(tx: Connection, run_id: RunId) -> int:
    """Return a number for a capture of a run that goes on."""
    highest = select(func.max(_VERSION.capture)).where(_VERSION.run_id == run_id)
    return (tx.execute(highest).scalar() or 0) + 1


def versions(tx: Connection, workspace_id: WorkspaceId) -> Sequence[Version]:
    """Return all versions, the newest first."""
    query = select(workspace_version).where(_VERSION.workspace_id == workspace_id)
    return [_record(row) for row in tx.execute(query.order_by(_VERSION.version.desc()))]


def pending(tx: Connection, node: str) -> Sequence[WorkspaceId]:
    """Return the workspaces that have versions which only this node has."""
    query = select(_VERSION.workspace_id).where(
        _VERSION.node == node, _VERSION.state == VersionState.PENDING
    )
    return [WorkspaceId(found) for found in tx.execute(query.distinct()).scalars()]


def next_pending(tx: Connection, node: str, workspace_id: WorkspaceId) -> Version | None:
    """Return the oldest version of a workspace that the object store does not have yet."""
    query = select(workspace_version).where(
        _VERSION.workspace_id == workspace_id,
        _VERSION.node == node,
        _VERSION.state == VersionState.PENDING,
    )
    row = tx.execute(query.order_by(_VERSION.version).limit(1)).one_or_none()
    return None if row is None else _record(row)


def add(tx: Connection, new: NewVersion) -> Version:
    """Add a version, pending, behind all others of its workspace."""
    workspace_id = find(tx, new.account_id, new.name) or _make(tx, new)
    highest = select(func.max(_VERSION.version)).where(_VERSION.workspace_id == workspace_id)
    number = (tx.execute(highest).scalar() or 0) + 1
    values = {
        "workspace_id": workspace_id,
        "version": number,
        "account_id": new.account_id,
        "state": VersionState.PENDING,
        "node": new.node,
        "parent": new.parent,
        "run_id": new.run_id,
        "capture": new.capture,
        "size_bytes": new.manifest.size_bytes,
        "created_at": new.at,
        "manifest": new.manifest.as_json(),
    }
    tx.execute(insert(workspace_version), values)
    layers.name(tx, new.account_id, new.manifest, new.at)
    added = get(tx, workspace_id, number)
    assert added is not None
    return added


def move_head(tx: Connection, version: Version, at: datetime) -> bool:
    """Make a version live, and the head if that still is its parent. False: it is set aside."""
    head = workspace.c.head_version
    is_parent = head.is_(None) if version.parent is None else head == version.parent
    moved = tx.execute(
        update(workspace)
        .where(workspace.c.workspace_id == version.workspace_id, is_parent)
        .values(head_version=version.version, updated_at=at)
    )
    is_head = moved.rowcount == 1
    tx.execute(
        update(workspace_version)
        .where(_VERSION.workspace_id == version.workspace_id, _VERSION.version == version.version)
        .values(state=VersionState.LIVE if is_head else VersionState.ASIDE)
    )
    return is_head


def pass_over(tx: Connection, version: Version) -> bool:
    """Set a pending version aside that cannot be stored, where a later one is pending.

    Those that were made of it count as made of what it was made of. False:
    there is none, and nothing was changed.
    """
    its = and_(
        _VERSION.workspace_id == version.workspace_id, _VERSION.state == VersionState.PENDING
    )
    later = select(func.count()).where(its, _VERSION.version > version.version)
    if not tx.execute(later).scalar_one():
        return False
    tx.execute(
        update(workspace_version)
        .where(its, _VERSION.version == version.version)
        .values(state=VersionState.ASIDE)
    )
    tx.execute(
        update(workspace_version)
        .where(its, _VERSION.parent == version.version)
        .values(parent=version.parent)
    )
    return True


def listed(
    tx: Connection, account_id: AccountId, *, offset: int = 0, limit: int | None = None
) -> tuple[Sequence[Workspace], int]:
    """Return a stretch of an account's workspaces by name, and how many there are in all."""
    newest_of = (
        select(_VERSION.workspace_id, func.max(_VERSION.version).label("version"))
        .where(_VERSION.account_id == account_id, _VERSION.state != VersionState.ASIDE)
        .group_by(_VERSION.workspace_id)
        .subquery()
    )
    query = (
        select(workspace, _VERSION.version, _VERSION.size_bytes, _VERSION.created_at.label("made"))
        .join(newest_of, newest_of.c.workspace_id == workspace.c.workspace_id)
        .join(
            workspace_version,
            and_(
                _VERSION.workspace_id == workspace.c.workspace_id,
                _VERSION.version == newest_of.c.version,
            ),
        )
        .where(workspace.c.account_id == account_id)
        .order_by(workspace.c.name)
    )
    total = tx.execute(select(func.count()).select_from(newest_of)).scalar_one()
    rows = tx.execute(query.offset(offset) if limit is None else query.offset(offset).limit(limit))
    holders = _holders(tx, account_id)
    return [_workspace(row, holders.get(row.name)) for row in rows], total


def holder(tx: Connection, account_id: AccountId, name: str) -> tuple[RequestId, RunState] | None:
    """Return the job that has a workspace and is not being stopped, and the state of its run."""
    query = (
        select(job.c.request_id, run.c.state)
        .join(run, _IS_UNFINISHED)
        .where(job.c.account_id == account_id, job.c.workspace_id == name)
        .where(job.c.goal.not_in(OVER))
        .order_by(job.c.created_at)
        .limit(1)
    )
    row = tx.execute(query).one_or_none()
    return None if row is None else (RequestId(row.request_id), RunState(row.state))


def ending(
    tx: Connection, account_id: AccountId, name: str, request_id: RequestId
) -> RequestId | None:
    """Return another job than `request_id` that is being stopped and has the workspace still.

    Not by age: a host's clock may be set back.
    """
    query = (
        select(job.c.request_id)
        .join(run, _IS_UNFINISHED)
        .where(job.c.account_id == account_id, job.c.workspace_id == name)
        .where(job.c.request_id != request_id, job.c.goal.in_(OVER))
        .limit(1)
    )
    found = tx.execute(query).scalar_one_or_none()
    return None if found is None else RequestId(found)


def users(tx: Connection, account_id: AccountId, name: str) -> Sequence[RequestId]:
    """Return the jobs that have a workspace, as their own or as their base."""
    query = (
        select(job.c.request_id)
        .join(run, _IS_UNFINISHED)
        .where(job.c.account_id == account_id)
        .where(or_(job.c.workspace_id == name, job.c.base_workspace_id == name))
        .order_by(job.c.created_at)
    )
    return [RequestId(found) for found in tx.execute(query).scalars()]


def remove(tx: Connection, workspace_id: WorkspaceId) -> None:
    """Remove a workspace with all its versions."""
    tx.execute(delete(workspace_version).where(_VERSION.workspace_id == workspace_id))
    tx.execute(delete(workspace).where(workspace.c.workspace_id == workspace_id))


def trim(tx: Connection, workspace_id: WorkspaceId, keep: int) -> int:
    """Remove versions but the newest `keep`, the head, and those not stored yet; return how many."""
    head = select(workspace.c.head_version).where(workspace.c.workspace_id == workspace_id)
    head_version = tx.execute(head).scalar_one_or_none()
    newest_ones = [each.version for each in versions(tx, workspace_id)[:keep]]
    gone = tx.execute(
        delete(workspace_version).where(
            _VERSION.workspace_id == workspace_id,
            _VERSION.state != VersionState.PENDING,
            _VERSION.version.not_in([*newest_ones, head_version or 0]),
        )
    )
    return gone.rowcount


def heads(tx: Connection) -> Sequence[Version]:
    """Return the heads of all workspaces."""
    query = select(workspace_version).join(
        workspace,
        and_(
            workspace.c.workspace_id == _VERSION.workspace_id,
            workspace.c.head_version == _VERSION.version,
        ),
    )
    return [_record(row) for row in tx.execute(query)]


def replace_manifest(tx: Connection, version: Version, by: Manifest) -> None:
    """Have a version consist of other layers that show the same."""
    tx.execute(
        update(workspace_version)
        .where(_VERSION.workspace_id == version.workspace_id, _VERSION.version == version.version)
        .values(manifest=by.as_json(), size_bytes=by.size_bytes)
    )


def _make(tx: Connection, new: NewVersion) -> WorkspaceId:
    workspace_id = new_workspace_id()
    values = {
        "workspace_id": workspace_id,
        "account_id": new.account_id,
        "name": new.name,
        "head_version": None,
        "created_at": new.at,
        "updated_at": new.at,
    }
    tx.execute(insert(workspace), values)
    return workspace_id


def _holders(tx: Connection, account_id: AccountId) -> dict[str, RequestId]:
    query = (
        select(job.c.workspace_id, job.c.request_id)
        .join(run, _IS_UNFINISHED)
        .where(job.c.account_id == account_id, job.c.workspace_id.is_not(None))
        .order_by(job.c.created_at.desc())
    )
    return {row.workspace_id: RequestId(row.request_id) for row in tx.execute(query)}


def _one(tx: Connection, *conditions: Any) -> Version | None:
    row = tx.execute(select(workspace_version).where(*conditions)).one_or_none()
    return None if row is None else _record(row)


def _record(row: Any) -> Version:
    return Version(
        workspace_id=WorkspaceId(row.workspace_id),
        account_id=AccountId(row.account_id),
        version=row.version,
        state=VersionState(row.state),
        parent=row.parent,
        manifest=Manifest.from_json(row.manifest),
        created_at=row.created_at,
    )


def _workspace(row: Any, in_use_by: RequestId | None) -> Workspace:
    return Workspace(
        workspace_id=WorkspaceId(row.workspace_id),
        name=row.name,
        version=row.version,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        updated_at=row.made,
        in_use_by=in_use_by,
    )
