"""Which layers accounts have, and which of them somebody needs.

A layer is needed while a version or a run that has not ended names it. Naming
and removing them must not meet: that is for the callers to see to.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select, true

from magsd.db.schema import layer, run, workspace_version
from magsd.model.layers import Layer, Manifest
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId
from magsd.model.records import VersionState

_VERSION: Final = workspace_version.c


def name(tx: Connection, account_id: AccountId, manifest: Manifest, at: datetime) -> None:
    """Take note that an account has the own layers of a manifest."""
    shas = {each.sha256: each.size_bytes for each in manifest.own_layers}
    its = layer.c.account_id == account_id
    known = set(tx.execute(select(layer.c.sha256).where(its, layer.c.sha256.in_(shas))).scalars())
    for sha256 in shas.keys() - known:
        values = {"account_id": account_id, "sha256": sha256, "size_bytes": shas[sha256]}
        tx.execute(insert(layer), values | {"state": VersionState.LIVE, "created_at": at})


def accounts(tx: Connection) -> Sequence[AccountId]:
    """Return the accounts that have layers."""
    return [
        AccountId(found) for found in tx.execute(select(layer.c.account_id).distinct()).scalars()
    ]


def unneeded(tx: Connection, account_id: AccountId, limit: int) -> Sequence[Layer]:
    """Return layers of an account that no version and no unfinished run of it names."""
    names = _named(tx, _VERSION.account_id == account_id, run.c.account_id == account_id)
    query = select(layer.c.sha256, layer.c.size_bytes).where(layer.c.account_id == account_id)
    found = (Layer(row.sha256, row.size_bytes) for row in tx.execute(query))
    return [each for each in found if each.sha256 not in names][:limit]


def forget(tx: Connection, account_id: AccountId, sha256s: Sequence[str]) -> None:
    """Take note that an account has these layers no more."""
    tx.execute(delete(layer).where(layer.c.account_id == account_id, layer.c.sha256.in_(sha256s)))


def named(tx: Connection) -> set[str]:
    """Return the layers that versions and unfinished runs of any account name."""
    return _named(tx, true(), true())


def in_use(tx: Connection) -> set[str]:
    """Return the layers that must lie here: of unfinished runs, and of versions not stored yet."""
    return _named(tx, _VERSION.state == VersionState.PENDING, true())


def _named(
    tx: Connection, of_versions: ColumnElement[bool], of_runs: ColumnElement[bool]
) -> set[str]:
    kept = select(_VERSION.manifest).where(of_versions)
    used = select(run.c.manifest).where(run.c.state != RunState.ENDED, of_runs)
    found = [*tx.execute(kept).scalars(), *tx.execute(used).scalars()]
    manifests = [Manifest.from_json(record) for record in found if record is not None]
    return {each.sha256 for manifest in manifests for each in manifest.layers}
