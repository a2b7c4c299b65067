"""Two daemons with one PostgreSQL and one bucket, and a workspace that both would change."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import insert

from magsd.aio import SystemClock
from magsd.core.workspace_uploads import WorkspaceUploads
from magsd.db import workspaces
from magsd.db.database import Database
from magsd.db.schema import account
from magsd.model.layers import Manifest
from magsd.model.names import AccountId
from magsd.model.records import Version, VersionState
from magsd.storage.layers import LayerStore
from magsd.storage.objects import ObjectStoreSettings, open_store
from tests.integration.core.kept_files import files_of
from tests.integration.s3_server import BUCKET, S3Server, s3_server
from tests.integration.storage.held_parts import ACCOUNT

ROUNDS = 20 if os.environ.get("MAGS_TEST_FULL") == "1" else 4


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


class Daemon:
    """What of a daemon stores versions."""

    def __init__(self, folder, database: Database, objects, node: str) -> None:
        self.folder = folder
        self.database = database
        self.objects = objects
        self.node = node
        self.clock = SystemClock()
        self.layers = LayerStore(folder / node, objects, self.clock, cache_bytes=0)
        self.uploads = WorkspaceUploads(database, self.layers, self.clock, node=node, keep=100)

    async def captured(self, parent: Version | None, name: str) -> Version:
        """Add a version made of another."""
        upper = self.folder / f"{self.node} {name}"
        upper.mkdir()
        (upper / name).write_text(self.node)
        layer = await self.layers.pack_directory(upper)
        manifest = Manifest("image", ()) if parent is None else parent.manifest
        new = workspaces.NewVersion(
            account_id=AccountId(ACCOUNT),
            name="shared",
            node=self.node,
            parent=None if parent is None else parent.version,
            manifest=manifest.with_layer(layer),
            run_id=None,
            capture=None,
            at=self.clock.now(),
        )
        return await self.database.write(lambda tx: workspaces.add(tx, new))


@pytest.fixture
async def daemons(tmp_path, postgres_url, server) -> AsyncIterator[list[Daemon]]:
    url = f"s3://{BUCKET}/{os.urandom(4).hex()}"
    async with AsyncExitStack() as stack:
        found = []
        for node in ("one", "other"):
            database = await Database.open(postgres_url, node)
            stack.push_async_callback(database.aclose)
            objects = open_store(ObjectStoreSettings(url, server.aws))
            stack.push_async_callback(objects.aclose)
            daemon = Daemon(tmp_path, database, objects, node)
            stack.push_async_callback(daemon.uploads.aclose)
            found.append(daemon)
        await found[0].database.write(_add_account)
        yield found


def _add_account(tx) -> None:
    values = {"account_id": ACCOUNT, "name": "tests", "created_at": SystemClock().now()}
    tx.execute(insert(account), values)


async def test_one_wins_each_time_and_the_other_is_told(daemons):
    one, other = daemons
    head = await one.captured(None, "first")
    assert (await one.uploads.stored(head))[0] is VersionState.LIVE
    for number in range(ROUNDS):
        name = f"round {number}"
        made = await asyncio.gather(*(each.captured(head, name) for each in daemons))
        assert len({version.version for version in made}) == len(made)
        ends = await asyncio.gather(
            *(each.uploads.stored(version) for each, version in zip(daemons, made, strict=True))
        )
        told = [state for state, _ in ends]
        assert sorted(told) == [VersionState.ASIDE, VersionState.LIVE]
        winner = told.index(VersionState.LIVE)
        head = made[winner]
        newest = await other.database.read(lambda tx: workspaces.newest(tx, ACCOUNT, "shared"))
        assert newest is not None
        assert newest.version == head.version
        # Both are there, whole: whoever lost may be restored.
        for daemon, version in zip(daemons, made, strict=True):
            held = await files_of(one.objects, version)
            assert held[name] == daemon.node
