"""A log before, while and after it goes to the object store, and back when somebody reads it."""

import asyncio
import dataclasses
import shutil
from datetime import timedelta

import pytest

from magsd.aio import SystemClock
from magsd.core import log_copies
from magsd.core.retention import Retention
from magsd.db import log_index
from magsd.model.errors import CapacityError, MagsError, NotFoundError
from magsd.model.names import RequestId
from magsd.model.records import LogSource
from tests.integration.core.service import DEADLINE_S
from tests.unit.guest.journal_writer import JournalWriter


@pytest.fixture
async def service(service, monkeypatch):
    """One that keeps no copy much longer than somebody reads it."""
    monkeypatch.setattr(log_copies, "GRACE_S", 0.05)
    service.settings = dataclasses.replace(service.settings, logs_cache_mb=0)
    await service.restart()
    return service


async def rows(service, job):
    return await service.database.read(lambda tx: log_index.of_job(tx, job))


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def stored(service, job, epochs=1):
    """Wait until the store has all of a job's logs."""

    async def check():
        found = await rows(service, job)
        return len(found) == epochs and all(row.stored for row in found.values())

    await until(check)


async def dropped(service, job):
    """Wait until this node has no copy."""

    async def check():
        return not (service.directory / "logs" / job).exists()

    await until(check)


async def archived(service, script):
    """Run a script; return its job once its log is in the store alone."""
    job = (await service.run(script)).request_id
    await stored(service, job)
    await dropped(service, job)
    return job


def object_of(service, job, epoch=1):
    account = service.principal.account_id
    return service.directory / "objects/logs" / account / job / str(epoch)


class Later(SystemClock):
    """The host's clock, some days on."""

    def __init__(self, days):
        self.shift = timedelta(days=days)

    def now(self):
        return super().now() + self.shift


# --- to the store and back ---------------------------------------------------------


async def test_a_log_is_the_same_wherever_it_is(service):
    gate = service.wait_at("gate")
    script = f"echo one; echo two >&2; {gate}; seq 1000; printf 'half ä'; exit 3"
    job = (await service.running(script)).request_id
    await service.printed(job, "two")
    follower = asyncio.create_task(service.followed(job))
    await service.open_gate("gate")
    await service.until(job)
    at_end = await service.app.logs(service.principal, job, after=0)
    await stored(service, job)
    await dropped(service, job)
    assert await follower == await service.followed(job)
    for _ in range(2):
        await dropped(service, job)
        assert (await service.app.logs(service.principal, job, after=0)).lines == at_end.lines
    after = at_end.lines[500].seq
    found = await service.app.logs(service.principal, job, after=after)
    assert found.lines == at_end.lines[501:]
    errors = await service.log(job, source=LogSource.STDERR)
    assert errors == [("stderr", "two")]
    await service.restart()
    await dropped(service, job)
    assert (await service.app.logs(service.principal, job, after=0)).lines == at_end.lines


async def test_what_the_journal_had_no_room_for_is_told_from_the_store_too(service):
    ended = await service.run("seq -f %0200.0f 150000; echo last >&2")
    before = await service.followed(ended.request_id)
    assert any("missing" in text for source, text in before if source == "system")
    await stored(service, ended.request_id)
    await dropped(service, ended.request_id)
    assert await service.followed(ended.request_id) == before
    page = await service.app.logs(service.principal, ended.request_id)
    assert page.truncated
    assert [line.message for line in page.lines] == [text for _, text in before[-50_000:]]


async def test_a_reader_goes_on_when_the_copy_is_dropped_under_it(service):
    job = await archived(service, "seq 20000")
    seen, dropped_times = [], 0
    async for lines in service.app.follow_logs(service.principal, job):
        seen += [line.message for line in lines]
        if dropped_times < 3:
            await dropped(service, job)
            dropped_times += 1
    assert seen == [str(number) for number in range(1, 20001)]


async def test_many_readers_bring_it_back_once(service):
    job = await archived(service, "seq 3000")
    fetched = []
    get = service.objects.get

    async def watched(key, into, **limit):
        fetched.append(key)
        return await get(key, into, **limit)

    service.objects.get = watched
    async with asyncio.timeout(DEADLINE_S):
        logs = await asyncio.gather(*(service.log(job, after=0) for _ in range(20)))
    assert all(log == [("stdout", str(number)) for number in range(1, 3001)] for log in logs)
    assert len(fetched) == 1
    assert list((service.directory / "tmp").iterdir()) == []


async def test_the_logs_of_all_lives_of_a_job_are_one(service):
    job = await archived(service, "echo second life, out; echo second life, err >&2")
    await service.stop()
    # What it was is now its third, before which there was one that ended early. Not its first:
    # a copy of that may just be on its way out.
    object_of(service, job).rename(object_of(service, job, 3))
    await service.start()
    await service.change("UPDATE log_index SET epoch = 3 WHERE request_id = ?", job)
    await service.change("UPDATE run SET epoch = 3 WHERE request_id = ?", job)
    first = service.directory / "logs" / job / "2"
    first.mkdir(parents=True)
    journal = JournalWriter(first)
    journal.add(b"first life, out\n")
    journal.add(b"first life, err\nand half", channel=2)
    account, node = service.principal.account_id, service.settings.node
    size = {"size_bytes": 1, "at": service.node.clock.now(), "node": node, "account_id": account}
    await service.database.write(lambda tx: log_index.add(tx, request_id=job, epoch=2, **size))
    service.node.archive.want()
    await stored(service, job, epochs=2)
    await dropped(service, job)
    lines = (await service.app.logs(service.principal, job, after=0)).lines
    assert [line.message for line in lines] == [
        "first life, out",
        "first life, err",
        "and half",
        "second life, out",
        "second life, err",
    ]
    for number, line in enumerate(lines):
        await dropped(service, job)
        found = await service.app.logs(service.principal, job, after=line.seq)
        assert found.lines == lines[number + 1 :]
    errors = await service.log(job, source=LogSource.STDERR)
    assert [text for _, text in errors] == ["first life, err", "and half", "second life, err"]
    assert [text for _, text in await service.followed(job)] == [line.message for line in lines]


# --- when the store is away, or lies -----------------------------------------------


async def test_a_store_that_is_away_delays_nobody_and_gets_everything_later(service):
    await service.stop()
    shutil.rmtree(service.directory / "objects", ignore_errors=True)
    (service.directory / "objects/logs").parent.mkdir()
    (service.directory / "objects/logs").write_text("in the way")
    await service.start()
    jobs = [(await service.run(f"echo {n}")).request_id for n in range(3)]

    async def is_known():
        return service.node.archive.trouble is not None

    await until(is_known)
    assert "object store" in service.app.warning()
    assert service.app.readiness() is None
    await service.restart()
    for number, job in enumerate(jobs):
        assert await service.log(job) == [("stdout", str(number))]
        assert [row.stored for row in (await rows(service, job)).values()] == [None]
    (service.directory / "objects/logs").unlink()
    for number, job in enumerate(jobs):
        await stored(service, job)
        await dropped(service, job)
        assert await service.log(job) == [("stdout", str(number))]
    assert service.app.warning() is None


async def test_what_is_only_in_a_store_that_is_away_can_be_read_later(service):
    job = await archived(service, "echo kept")
    folder = service.directory / "objects/logs"
    folder.rename(service.directory / "away")
    folder.write_text("in the way")
    with pytest.raises(CapacityError):
        await service.log(job)
    folder.unlink()
    (service.directory / "away").rename(folder)
    assert await service.log(job) == [("stdout", "kept")]


@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "gone"])
async def test_a_damaged_object_is_named_and_harms_no_other(service, damage):
    job = await archived(service, "echo damaged")
    other = await archived(service, "echo sound")
    path = object_of(service, job)
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-1])
        case "changed":
            path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
        case "longer":
            path.write_bytes(content + bytes(3 << 20))
        case "gone":
            path.unlink()
    with pytest.raises(MagsError, match=job) as caught:
        await service.log(job)
    assert f"/{job}/1" in caught.value.detail
    with pytest.raises(MagsError, match=job):
        await service.followed(job)
    assert await service.log(other) == [("stdout", "sound")]
    assert list((service.directory / "tmp").iterdir()) == []
    if damage != "gone":
        path.write_bytes(content)
        assert await service.log(job) == [("stdout", "damaged")]


async def test_a_log_that_cannot_be_read_keeps_no_other_from_the_store(service):
    await service.stop()
    (service.directory / "objects/logs").write_text("in the way")
    await service.start()
    job = (await service.run("echo one")).request_id
    other = (await service.run("echo two")).request_id
    await service.gone("*")
    journal = service.directory / "logs" / job / "1/journal.head"
    journal.rename(journal.with_name("journal.x"))
    (journal.with_name("journal.x")).chmod(0)
    journal.mkdir()
    (service.directory / "objects/logs").unlink()
    await stored(service, other)


# --- what is old --------------------------------------------------------------------


async def test_old_jobs_and_logs_go_and_what_lives_or_is_referred_to_stays(service):
    gate = service.wait_at("gate")
    old = [await archived(service, f"echo old {number}") for number in range(3)]
    referred = await archived(service, "echo referred to")
    await service.change(
        "INSERT INTO grant (grant_id, account_id, request_id, kind, port, created_at) "
        "VALUES ('g', ?, ?, 'http', 80, 0)",
        service.principal.account_id,
        referred,
    )
    live = await service.running(f"echo live; {gate}")
    service.node.clock = Later(days=29)
    sweep = Retention(service.node, service.node.archive).sweep
    await sweep()
    assert await service.log(old[0]) == [("stdout", "old 0")]
    service.node.clock = Later(days=31)
    await sweep()
    for job in old:
        assert not object_of(service, job).exists()
        with pytest.raises(NotFoundError):
            await service.app.status(service.principal, job)
        with pytest.raises(NotFoundError):
            await service.log(job)
        assert await rows(service, job) == {}
    assert (await service.app.status(service.principal, referred)).is_final
    assert await service.log(referred) == []
    assert await service.log(live.request_id) == [("stdout", "live")]
    await service.open_gate("gate")
    await service.until(live.request_id)
    await stored(service, live.request_id)
    assert not list((service.directory / "objects/logs").rglob(old[0]))


async def test_logs_may_go_before_their_jobs(service):
    job = await archived(service, "echo old")
    service.node.settings = dataclasses.replace(service.settings, retention_jobs_days=0)
    service.node.clock = Later(days=3000)
    await Retention(service.node, service.node.archive).sweep()
    assert (await service.app.status(service.principal, job)).exit_code == 0
    assert await service.log(job) == []
    assert await service.followed(job) == []


async def test_for_ever_is_for_ever(service):
    job = await archived(service, "echo old")
    service.node.settings = dataclasses.replace(
        service.settings, retention_jobs_days=0, retention_logs_days=0
    )
    service.node.clock = Later(days=30_000)
    await Retention(service.node, service.node.archive).sweep()
    assert await service.log(job) == [("stdout", "old")]


async def test_a_log_that_is_read_goes_the_next_time(service):
    job = await archived(service, "seq 20000")
    found = await service.database.read(
        lambda tx: tx.exec_driver_sql("SELECT count(*) FROM job").scalar_one()
    )
    assert found == 1
    lines = service.app.follow_logs(service.principal, job)
    await anext(lines)
    service.node.clock = Later(days=31)
    retention = Retention(service.node, service.node.archive)
    run = (await service.app._jobs.load(service.principal, job))[1]
    async with service.node.archive.hold(run):
        await retention.sweep()
        assert len(await service.log(job)) == 20000
    await lines.aclose()
    await retention.sweep()
    with pytest.raises(NotFoundError):
        await service.log(job)


async def test_many_old_jobs_go_in_small_transactions(service):
    job = await archived(service, "echo old")
    copied = [RequestId(f"{number:036}") for number in range(450)]
    await service.database.write(lambda tx: _copy(tx, job, copied))
    service.node.clock = Later(days=31)
    await Retention(service.node, service.node.archive).sweep()
    left = await service.database.read(
        lambda tx: [
            tx.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()
            for name in ("job", "run", "log_index")
        ]
    )
    assert left == [0, 0, 0]


def _copy(tx, job, copies):
    """Make more jobs of one, with runs and logs that were never stored."""
    for table, own in (("job", ("subdomain",)), ("run", ("run_id",)), ("log_index", ())):
        row = tx.exec_driver_sql(f"SELECT * FROM {table} WHERE request_id = ?", (job,)).mappings()
        values = dict(row.one())
        if table == "log_index":
            values |= {"stored_at": None, "object_bytes": None, "object_sha256": None}
        for number, name in enumerate(copies):
            each = values | {"request_id": name} | dict.fromkeys(own, f"{number:08}")
            if table == "job":
                each["run_id"] = f"{number:08}"
            columns = ", ".join(each)
            marks = ", ".join("?" * len(each))
            tx.exec_driver_sql(
                f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(each.values())
            )


async def test_files_that_no_row_knows_go(service):
    left = service.directory / "logs" / "00000000-0000-0000-0000-000000000000" / "1"
    left.mkdir(parents=True)
    (left / "journal.head").write_text("")
    await Retention(service.node, service.node.archive).sweep()
    assert not left.parent.exists()


async def test_a_store_that_is_away_keeps_the_rows_of_what_it_holds(service):
    job = await archived(service, "echo old")
    folder = service.directory / "objects/logs"
    folder.rename(service.directory / "away")
    folder.write_text("in the way")
    service.node.clock = Later(days=31)
    sweep = Retention(service.node, service.node.archive).sweep
    with pytest.raises(CapacityError):
        await sweep()
    assert await rows(service, job)
    folder.unlink()
    (service.directory / "away").rename(folder)
    await sweep()
    assert not object_of(service, job).exists()
    assert not await rows(service, job)
