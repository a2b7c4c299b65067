"""What callers can ask about workspaces, and who may have one: one job at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core.node import Node
from magsd.core.workspace_upkeep import WorkspaceUpkeep
from magsd.db import workspaces
from magsd.model.errors import ConflictError, NotFoundError, WorkspaceInUseError
from magsd.model.lifecycle import status_of
from magsd.model.names import AccountId, WorkspaceId, check_workspace_name
from magsd.model.records import Job, Principal, Version, Workspace

_NAME_SHOWN: Final = 64


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted because nothing needs it."""

    versions: int
    layers: int
    freed_bytes: int
    """In the object store; layers may have shared parts with others that are still there."""


class Workspaces:
    """The workspaces of a node, as accounts see them."""

    def __init__(self, node: Node, upkeep: WorkspaceUpkeep) -> None:
        self._node = node
        self._upkeep = upkeep

    async def listed(
        self, principal: Principal, *, page: int, page_size: int
    ) -> tuple[Sequence[Workspace], int]:
        """Return page `page` (from 1) of the caller's workspaces, and how many there are."""
        return await self._node.database.read(
            lambda tx: workspaces.listed(
                tx, principal.account_id, offset=(page - 1) * page_size, limit=page_size
            )
        )

    async def versions(self, principal: Principal, name: str) -> Sequence[Version]:
        """Return the versions of a workspace, the newest first. Raises `NotFoundError`."""
        account_id = principal.account_id
        return await self._node.database.read(
            lambda tx: workspaces.versions(tx, _found(tx, account_id, name))
        )

    async def delete(self, principal: Principal, name: str) -> None:
        """Delete a workspace with all versions. Raises `NotFoundError` and `ConflictError`."""
        account_id = principal.account_id

        def work(tx: Connection) -> None:
            workspace_id = _found(tx, account_id, name)
            _check_unused(tx, account_id, name)
            workspaces.remove(tx, workspace_id)

        await self._node.database.write(work)
        self._node.uploads.has_changed.set()

    async def restore(self, principal: Principal, name: str, version: int) -> Version:
        """Make an earlier version the newest again, as a version of its own.

        Raises `NotFoundError`, and `ConflictError` while a job has the workspace.
        """
        account_id = principal.account_id

        def work(tx: Connection) -> Version:
            workspace_id = _found(tx, account_id, name)
            _check_unused(tx, account_id, name)
            wanted = workspaces.get(tx, workspace_id, version)
            if wanted is None:
                raise NotFoundError(f"workspace {name!r} has no version {version}")
            return self._added(tx, account_id, name, wanted)

        return await self._write(work)

    async def fork(
        self, principal: Principal, name: str, into: str, version: int | None
    ) -> Version:
        """Make a new workspace that begins as a version of another, by default its newest.

        Raises `NotFoundError`, and `ConflictError` when there is one of that name.
        """
        check_workspace_name("workspace_id", into)
        account_id = principal.account_id

        def work(tx: Connection) -> Version:
            source = found_version(tx, account_id, name, version)
            check_new(tx, account_id, into)
            return self._added(tx, account_id, into, source)

        return await self._write(work)

    async def collect(self, principal: Principal, keep: int | None) -> Collected:
        """Delete the account's versions but the newest `keep` of each workspace, by default as many
        as are kept in any case, and the layers that nothing needs then.

        Versions that are not stored yet stay, as do the newest ones. Raises
        `CapacityError` while the object store is away: what is left goes later.
        """
        account_id = principal.account_id
        kept = keep or self._node.settings.versions_kept

        def work(tx: Connection) -> int:
            found, _ = workspaces.listed(tx, account_id)
            return sum(workspaces.trim(tx, each.workspace_id, kept) for each in found)

        versions = await finish(self._node.database.write(work))
        layers = await self._upkeep.delete_unneeded_of(account_id)
        return Collected(versions, len(layers), sum(layer.size_bytes for layer in layers))

    async def _write(self, work: Callable[[Connection], Version]) -> Version:
        async with self._node.layer_names:
            version = await finish(self._node.database.write(work))
        self._node.uploads.want(version.workspace_id)
        return version

    def _added(self, tx: Connection, account_id: AccountId, name: str, source: Version) -> Version:
        last = workspaces.newest(tx, account_id, name)
        new = workspaces.NewVersion(
            account_id=account_id,
            name=name,
            node=self._node.settings.node,
            parent=None if last is None else last.version,
            manifest=source.manifest,
            run_id=None,
            capture=None,
            at=self._node.clock.now(),
        )
        return workspaces.add(tx, new)


def found_version(tx: Connection, account_id: AccountId, name: str, version: int | None) -> Version:
    """Return a version of a workspace, by default the newest. Raises `NotFoundError`."""
    workspace_id = _found(tx, account_id, name)
    if version is None:
        found = workspaces.newest(tx, account_id, name)
    else:
        found = workspaces.get(tx, workspace_id, version)
    if found is None:
        raise NotFoundError(f"workspace {name!r} has no version {version}: see the list of them")
    return found


def check_new(tx: Connection, account_id: AccountId, name: str) -> None:
    """Raise `ConflictError` when there is a workspace of that name, or a job is making it.

    Also one that is being stopped: what it changed would be set aside.
    """
    is_there = workspaces.find(tx, account_id, name) is not None
    if is_there:
        raise ConflictError(
            f"there is a workspace {name!r} already: take another name, or delete it first"
        )
    _check_unused(tx, account_id, name)


def check_free(tx: Connection, job: Job) -> None:
    """Raise `WorkspaceInUseError` when another job has the workspace of `job`.

    One that is being stopped does not count: `job` waits for it. Raises
    `NotFoundError` where its base is missing.
    """
    account_id, name, base = job.account_id, job.workspace_id, job.base_workspace_id
    if name is not None:
        held = workspaces.holder(tx, account_id, name)
        if held is not None:
            request_id, state = held
            status = status_of(state, has_failed=False)
            raise WorkspaceInUseError(
                f"workspace '{name}' is already in use by job {request_id} (status: {status}); "
                f"use 'mags exec {name} <command>' to run commands on it, or 'mags ssh {name}' "
                "to connect interactively"
            )
    is_needed = name is None or workspaces.newest(tx, account_id, name) is None
    if base is not None and is_needed and workspaces.newest(tx, account_id, base) is None:
        raise NotFoundError(f"base workspace {base[:_NAME_SHOWN]!r} does not exist")


def _found(tx: Connection, account_id: AccountId, name: str) -> WorkspaceId:
    workspace_id = workspaces.find(tx, account_id, name)
    if workspace_id is None:
        raise NotFoundError(f"there is no workspace {name[:_NAME_SHOWN]!r}: see the list of them")
    return workspace_id


def _check_unused(tx: Connection, account_id: AccountId, name: str) -> None:
    users = workspaces.users(tx, account_id, name)
    if users:
        raise ConflictError(
            f"workspace {name!r} is in use by job {users[0]}: stop it first, or wait for its end"
        )
