"""A PostgreSQL server that goes away, loses answers, is set up wrongly, and is shared."""

import asyncio
import dataclasses
from contextlib import asynccontextmanager, suppress

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from magsd.db import accounts, jobs, postgres, postgres_connection, runs
from magsd.db.database import Database
from magsd.db.postgres_connection import PatientConnection
from magsd.db.schema import account
from magsd.model.errors import CapacityError, ConflictError, InvalidError
from magsd.model.lifecycle import RunState
from tests.integration.postgres_proxy import AFTER, BEFORE, proxied
from tests.integration.test_database import NOW, SPEC, made
from tests.postgres import PASSWORD, QUOTED_PASSWORD, USER, cluster

DEADLINE_S = 30


@pytest.fixture
async def database(postgres_url):
    database = await Database.open(postgres_url)
    yield database
    await database.aclose()


@pytest.fixture
async def other(postgres_url, database):
    """What another daemon has open."""
    other = await Database.open(postgres_url)
    yield other
    await other.aclose()


@pytest.fixture(scope="module")
def fallible_cluster():
    """A server that every test leaves running, and may stop."""
    with cluster() as running:
        yield running


@pytest.fixture
def fallible(fallible_cluster):
    name = fallible_cluster.create()
    yield name
    fallible_cluster.drop(name)


@pytest.fixture
async def fallible_database(fallible_cluster, fallible):
    database = await Database.open(fallible_cluster.url(fallible), "node")
    yield database
    await database.aclose()


@asynccontextmanager
async def opened(url, node=None):
    database = await Database.open(url, node)
    try:
        yield database
    finally:
        await database.aclose()


def add(name):
    return lambda tx: accounts.ensure(tx, name, NOW)


def names(tx):
    return set(tx.execute(select(account.c.name)).scalars())


def shown(name):
    return lambda tx: tx.exec_driver_sql(f"SHOW {name}").scalar_one()


# --- transactions ------------------------------------------------------------------


async def test_a_commit_is_durable_and_a_view_consistent(postgres_cluster, postgres_url, database):
    name = conninfo_to_dict(postgres_url)["dbname"]
    postgres_cluster.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    other = await Database.open(postgres_url)
    assert await other.write(shown("synchronous_commit")) == "on"
    assert await other.write(shown("transaction_isolation")) == "serializable"
    assert await other.read(shown("transaction_isolation")) == "repeatable read"
    assert await other.read(shown("transaction_read_only")) == "on"
    await other.aclose()


async def test_what_failed_is_not_committed_by_who_went_on(database):
    def careless(tx):
        add("default")(tx)
        with suppress(DBAPIError):
            tx.exec_driver_sql("SELECT 1 / 0")

    with pytest.raises(DBAPIError, match="aborted"):
        await database.write(careless)
    assert await database.read(names) == set()


@pytest.mark.parametrize("code", ["53100", "53200", "57014", "58030", "25006", "40001", "55P03"])
async def test_what_the_server_cannot_do_now_is_a_capacity_error(database, code):
    failing = f"DO $$ BEGIN RAISE EXCEPTION 'no more' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(CapacityError) as caught:
        await database.write(lambda tx: tx.exec_driver_sql(failing) and None)
    assert (caught.value.detail, database.trouble) == ("no more", "no more")
    await database.probe()
    assert database.trouble is None


async def test_a_capacity_error_of_a_write_itself_is_no_trouble(database):
    def full(_tx):
        raise CapacityError("the queue is full")

    with pytest.raises(CapacityError, match="queue"):
        await database.write(full)
    assert database.trouble is None


async def test_a_statement_that_hangs_is_given_up(database):
    def sleep(tx):
        tx.exec_driver_sql("SET LOCAL statement_timeout = 100")
        tx.exec_driver_sql("SELECT pg_sleep(60)")

    with pytest.raises(CapacityError):
        await database.write(sleep)


# --- several daemons ---------------------------------------------------------------


async def test_what_was_read_is_still_so_when_it_is_written(database, other):
    def count_on(tx):
        accounts.ensure(tx, f"account {len(names(tx))}", NOW)

    await asyncio.gather(*(each.write(count_on) for _ in range(30) for each in (database, other)))
    assert await database.read(names) == {f"account {n}" for n in range(60)}


async def test_a_key_belongs_to_one_job_whichever_daemon_is_asked(database, other):
    owner = await database.write(add("default"))
    key = jobs.Idempotency("key", "digest")

    def submit():
        job, run = made(owner)

        def store(tx):
            known = jobs.by_idempotency_key(tx, owner.account_id, "key")
            if known is None:
                jobs.add(tx, job, run, SPEC, "local", key)
            return known[0] if known else job.request_id

        return store

    found = await asyncio.gather(
        *(each.write(submit()) for _ in range(10) for each in (database, other))
    )
    assert len(set(found)) == 1


async def test_one_of_several_daemons_has_a_run(database, other):
    owner = await database.write(add("default"))
    job, run = made(owner)
    await database.write(lambda tx: jobs.add(tx, job, run, SPEC, "local"))
    claimed = dataclasses.replace(run, epoch=2, state=RunState.LAUNCHING)

    def claim(tx):
        return runs.save(tx, claimed, epoch=1, generation=2)

    won = await asyncio.gather(*(each.write(claim) for _ in range(4) for each in (database, other)))
    assert sorted(won) == [False] * 7 + [True]


async def test_daemons_may_start_at_the_same_time(postgres_url):
    opened = await asyncio.gather(*(Database.open(postgres_url, f"node {n}") for n in range(4)))
    for number, database in enumerate(opened):
        await database.write(add(str(number)))
    assert await opened[0].read(names) == {"0", "1", "2", "3"}
    for database in opened:
        await database.aclose()


async def test_a_node_has_one_daemon(postgres_url, monkeypatch):
    database = await Database.open(postgres_url, "node")
    session = postgres_connection._SESSION.replace("lock_timeout = '10s'", "lock_timeout = '50ms'")
    monkeypatch.setattr(postgres_connection, "_SESSION", session)
    with pytest.raises(ConflictError, match="another magsd"):
        await Database.open(postgres_url, "node")
    beside = await Database.open(postgres_url)
    await beside.write(add("default"))
    await beside.aclose()
    await database.aclose()
    await (await Database.open(postgres_url, "node")).aclose()


# --- a server that goes away -------------------------------------------------------


async def test_a_server_that_was_restarted_is_not_noticed(fallible_cluster, fallible_database):
    await fallible_database.write(add("before"))
    await fallible_database.read(names)
    for end in (fallible_cluster.stop, fallible_cluster.crash):
        end()
        fallible_cluster.start()
        assert "before" in await fallible_database.read(names)
        end()
        fallible_cluster.start()
        await fallible_database.write(add("after"))
    assert await fallible_database.read(names) == {"before", "after"}


async def test_a_server_that_is_away_is_told_until_it_is_back(fallible_cluster, fallible_database):
    await fallible_database.write(add("before"))
    fallible_cluster.stop()
    for ask in (fallible_database.write, fallible_database.read):
        with pytest.raises(CapacityError) as caught:
            await ask(names)
        assert "refused" in caught.value.detail
        assert PASSWORD not in f"{caught.value.detail} {caught.value}"
        assert "refused" in fallible_database.trouble
    await fallible_database.probe()
    assert fallible_database.trouble is not None
    fallible_cluster.start()
    await fallible_database.probe()
    assert fallible_database.trouble is None
    await fallible_database.write(add("after"))
    assert await fallible_database.read(names) == {"before", "after"}


async def test_what_was_acknowledged_survives_crashes(fallible_cluster, fallible_database):
    acknowledged, refused = set(), 0
    is_over = asyncio.Event()

    async def write(who):
        nonlocal refused
        number = 0
        while not is_over.is_set():
            number += 1
            try:
                await fallible_database.write(add(f"{who}/{number}"))
                acknowledged.add(f"{who}/{number}")
            except CapacityError:
                refused += 1
                await asyncio.sleep(0.01)

    async with asyncio.timeout(DEADLINE_S * 2), asyncio.TaskGroup() as group:
        for who in range(4):
            group.create_task(write(who))
        for _ in range(3):
            known = len(acknowledged)
            while len(acknowledged) < known + 20:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(fallible_cluster.crash)
            fallible_cluster.launch()
            await asyncio.to_thread(fallible_cluster.wait)
        is_over.set()
    found = await fallible_database.read(names)
    # Nothing more either: what was refused did not happen.
    assert found == acknowledged


async def test_a_frozen_server_is_given_up(fallible_cluster, fallible, monkeypatch):
    async with opened(f"{fallible_cluster.url(fallible)}?connect_timeout=2", "node") as database:
        await database.write(add("before"))
        await database.read(names)
        monkeypatch.setattr(PatientConnection, "patience_s", 0.5)
        with fallible_cluster.frozen():
            for ask in (database.write, database.read):
                with pytest.raises(CapacityError):
                    await ask(names)
        monkeypatch.undo()
        await database.write(add("after"))
        assert await database.read(names) == {"before", "after"}


# --- a commit without an answer ------------------------------------------------------


@pytest.mark.parametrize("node", [None, "node"])
@pytest.mark.parametrize("cut", [BEFORE, AFTER])
async def test_a_commit_without_an_answer_happens_once(postgres_url, cut, node):
    times = []

    def insert(tx):
        times.append(tx)
        tx.execute(account.insert(), {"account_id": "one", "name": "one", "created_at": NOW})

    async with proxied(postgres_url) as (proxy, url), opened(url, node) as database:
        proxy.cut = cut
        await database.write(insert)
        assert (proxy.cut, len(times)) == (None, 2 if cut == BEFORE else 1)
        assert await database.read(names) == {"one"}
        assert database.trouble is None


async def test_a_commit_that_nobody_can_tell_of_is_not_done_again(postgres_url, monkeypatch):
    monkeypatch.setattr(postgres, "_OUTCOME_S", 0.5)
    async with proxied(postgres_url) as (proxy, url), opened(url) as database:
        proxy.cut, proxy.refuses = AFTER, True
        with pytest.raises(CapacityError) as caught:
            await database.write(add("one"))
        assert "not known" in caught.value.detail
        proxy.heal()
        assert await database.read(names) == {"one"}


# --- how it is set up ----------------------------------------------------------------


async def refusal(url, kind=InvalidError):
    with pytest.raises(kind) as caught:
        await Database.open(url)
    told = f"{caught.value.message} ({caught.value.detail})"
    assert PASSWORD not in told
    assert QUOTED_PASSWORD not in told
    return told


async def test_the_forms_of_a_url(postgres_cluster, postgres_url):
    name = conninfo_to_dict(postgres_url)["dbname"]
    port, sockets = postgres_cluster.port, postgres_cluster.sockets
    for url in (
        postgres_url.replace("postgresql://", "postgres://"),
        f"postgresql://{USER}@/{name}?host={sockets}&port={port}",
        f"postgresql:///{name}?host={sockets}&port={port}&user={USER}",
        postgres_url.replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:") + "?application_name=mine",
    ):
        await (await Database.open(url)).aclose()


async def test_what_is_wrong_is_told_with_what_to_do(postgres_cluster, postgres_url):
    name = conninfo_to_dict(postgres_url)["dbname"]
    at = f"127.0.0.1:{postgres_cluster.port}"
    assert "are wrong" in await refusal(f"postgresql://{USER}:guessed@{at}/{name}")
    assert "asks for a password" in await refusal(f"postgresql://{USER}@{at}/{name}")
    assert "CREATE DATABASE" in await refusal(postgres_url.replace(f"/{name}", "/absent"))
    local = f"host={postgres_cluster.sockets}&port={postgres_cluster.port}"
    assert "CREATE ROLE" in await refusal(f"postgresql://nobody@/{name}?{local}")
    away = f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:1/{name}"
    assert "refused" in await refusal(away, CapacityError)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://mags:se@cret@host/mags",
        "postgresql://mags:se/cret@host/mags",
        "postgresql://mags:se%cret@host/mags",
        "postgresql://mags:12/se@cret@host/mags",
        "postgresql://host/mags?nonsense=secret",
    ],
)
async def test_a_url_that_cannot_be_read_is_not_quoted(url):
    told = await refusal(url)
    assert "cret" not in told
    assert "%40" in told


async def test_a_role_that_may_not_make_tables(postgres_cluster, postgres_url):
    name = conninfo_to_dict(postgres_url)["dbname"]
    postgres_cluster.execute("CREATE ROLE guest LOGIN")
    try:
        local = f"host={postgres_cluster.sockets}&port={postgres_cluster.port}"
        assert "owner" in await refusal(f"postgresql://guest@/{name}?{local}")
    finally:
        postgres_cluster.execute("DROP ROLE guest")


async def test_a_database_that_cannot_hold_every_text(postgres_cluster):
    name = postgres_cluster.create("ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' "
                                   "TEMPLATE template0")  # fmt: skip
    try:
        assert "ENCODING 'UTF8'" in await refusal(postgres_cluster.url(name))
    finally:
        postgres_cluster.drop(name)


def test_a_server_that_is_too_old():
    postgres_connection.check_version(140000)
    with pytest.raises(InvalidError, match="PostgreSQL 13: version 14 or newer"):
        postgres_connection.check_version(130014)


async def test_marks_of_daemons_that_are_gone_are_forgotten(postgres_cluster, postgres_url):
    name = conninfo_to_dict(postgres_url)["dbname"]
    for _ in range(2):
        await (await Database.open(postgres_url)).aclose()
        postgres_cluster.execute("UPDATE magsd_commit SET at = now() - interval '8 days'", name)
    rows = postgres_cluster.execute("SELECT count(*) FROM magsd_commit", name)
    assert rows == [(1,)]
