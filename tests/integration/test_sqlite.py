"""What only a file can be asked for, and what can be wrong with one."""

import sqlite3
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from magsd.db import accounts
from magsd.db.database import Database
from magsd.db.schema import account
from magsd.model.errors import CapacityError

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path):
    database = await Database.open(f"sqlite:///{tmp_path}/mags.db")
    yield database
    await database.aclose()


async def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(CapacityError) as caught:
        await Database.open(f"sqlite:///{tmp_path}/missing/mags.db")
    assert "unable to open" in caught.value.detail


async def test_writes_are_durable(database, tmp_path):
    def pragma(name):
        return lambda tx: tx.exec_driver_sql(f"PRAGMA {name}").scalar_one()

    assert await database.write(pragma("synchronous")) == 2
    assert await database.write(pragma("journal_mode")) == "wal"
    assert await database.write(pragma("foreign_keys")) == 1
    await database.write(lambda tx: accounts.ensure(tx, "default", NOW))
    other = sqlite3.connect(tmp_path / "mags.db")
    assert other.execute("SELECT count(*) FROM account").fetchone() == (1,)
    other.close()


async def test_a_database_that_cannot_be_written_says_so_until_it_can(database, tmp_path):
    await database.write(lambda tx: tx.exec_driver_sql("PRAGMA busy_timeout=0") and None)
    other = sqlite3.connect(tmp_path / "mags.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CapacityError) as caught:
        await database.write(lambda tx: accounts.ensure(tx, "default", NOW))
    assert "locked" in caught.value.detail
    assert "locked" in database.trouble
    assert await database.read(lambda tx: accounts.by_name(tx, "default")) is None
    await database.probe()
    assert database.trouble is not None
    other.close()
    await database.probe()
    assert database.trouble is None
    await database.write(lambda tx: accounts.ensure(tx, "default", NOW))
    assert database.trouble is None


async def test_a_full_disk_is_a_capacity_error(database):
    def limit(tx):
        pages = tx.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill(tx):
        for number in range(2000):
            accounts.ensure(tx, f"{number:0128}", NOW)

    await database.write(limit)
    with pytest.raises(CapacityError) as caught:
        await database.write(fill)
    assert "full" in caught.value.detail
    assert await database.read(lambda tx: tx.execute(select(account)).all()) == []
    assert "full" in database.trouble
