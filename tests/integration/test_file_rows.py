"""Rows of uploads, in each kind of database."""

from datetime import UTC, datetime, timedelta

import pytest

from magsd.db import accounts, files
from magsd.db.database import Database
from magsd.model.names import new_file_id
from magsd.model.uploads import StoredFile, UploadedFile

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
async def database(database_url):
    database = await Database.open(database_url)
    yield database
    await database.aclose()


@pytest.fixture
async def owner(database):
    return (await database.write(lambda tx: accounts.ensure(tx, "owner", NOW))).account_id


@pytest.fixture
async def other(database):
    return (await database.write(lambda tx: accounts.ensure(tx, "other", NOW))).account_id


@pytest.fixture
def store(database, owner):
    """Return a function that stores an upload of so long ago."""

    async def store(ago=timedelta(), size_bytes=1 << 40, *, is_stored=True):
        file = UploadedFile(new_file_id(), "a name", size_bytes, "ab" * 32)
        await database.write(lambda tx: files.add(tx, StoredFile(file, owner, NOW - ago)))
        if is_stored:
            await database.write(lambda tx: files.set_stored(tx, file.file_id))
        return file

    return store


async def withdrawn(database, *, used_before=None, limit=10):
    found = await database.write(
        lambda tx: files.withdraw(tx, used_before=used_before, begun_before=NOW - HOUR, limit=limit)
    )
    return [each.file for each in found]


async def test_only_its_owner_finds_a_file_and_only_when_it_is_there(database, owner, other, store):
    here, coming = await store(), await store(is_stored=False)
    ids = [here.file_id, coming.file_id, "file_of_nobody"]
    assert await database.read(lambda tx: files.of_account(tx, owner, ids)) == {here.file_id: here}
    assert await database.read(lambda tx: files.of_account(tx, other, ids)) == {}
    assert await database.read(lambda tx: files.size_bytes(tx, owner)) == 2 << 40
    assert await database.read(lambda tx: files.size_bytes(tx, other)) == 0
    assert await database.write(lambda tx: files.use(tx, owner, [here.file_id], NOW))
    for account, ids in ((owner, [here.file_id, coming.file_id]), (other, [here.file_id])):
        assert not await database.write(lambda tx, a=account, i=ids: files.use(tx, a, i, NOW))


async def test_what_nobody_used_goes_and_what_never_came(database, owner, store):
    old, new, used = await store(8 * DAY), await store(6 * DAY), await store(9 * DAY)
    lost, coming = [await store(ago, is_stored=False) for ago in (2 * HOUR, HOUR / 2)]
    await database.write(lambda tx: files.use(tx, owner, [used.file_id], NOW))
    assert await withdrawn(database) == [lost]
    before = NOW - 7 * DAY
    assert await withdrawn(database, used_before=before, limit=1) == [old]
    # Nobody gets it any more, also while its object is still there; and it is found again.
    assert await database.read(lambda tx: files.of_account(tx, owner, [old.file_id])) == {}
    assert set(await withdrawn(database, used_before=before)) == {old, lost}
    await database.write(lambda tx: files.remove(tx, [old.file_id, lost.file_id]))
    assert await withdrawn(database, used_before=before) == []
    ids = [each.file_id for each in (new, used, coming)]
    assert set(await database.read(lambda tx: files.of_account(tx, owner, ids))) == set(ids[:2])
