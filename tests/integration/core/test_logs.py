"""A job's log, read while it grows and afterwards."""

import asyncio

from magsd.core.log_reader import LogReader
from magsd.model.records import LogSource
from tests.integration.core.service import DEADLINE_S


async def test_a_line_is_put_together_across_many_writes_and_a_restart(service):
    script = f"printf 'a'; {service.wait_at('gate')}; printf 'b\\n'; printf '\\377x'"
    job = await service.running(script)
    async with asyncio.timeout(DEADLINE_S):
        while await service.log(job.request_id) != [("stdout", "a")]:
            await asyncio.sleep(0.01)
    assert await service.log(job.request_id, after=0) == []
    await service.restart()
    await service.open_gate("gate")
    await service.until(job.request_id)
    log = await service.log(job.request_id, source=LogSource.STDOUT)
    assert log == [("stdout", "ab"), ("stdout", "\ufffdx")]


async def test_more_lines_than_are_shown_are_said_to_be_there(service):
    ended = await service.run("seq 60000")
    page = await service.app.logs(service.principal, ended.request_id)
    assert page.truncated
    assert [line.message for line in page.lines] == [str(n) for n in range(10001, 60001)]
    first = await service.app.logs(service.principal, ended.request_id, after=0)
    assert first.truncated
    assert [line.message for line in first.lines] == [str(n) for n in range(1, 50001)]
    rest = await service.app.logs(service.principal, ended.request_id, after=first.lines[-1].seq)
    assert not rest.truncated
    assert [line.message for line in rest.lines] == [str(n) for n in range(50001, 60001)]
    followed = await service.followed(ended.request_id)
    assert [text for _, text in followed] == [str(n) for n in range(1, 60001)]


async def test_followers_see_each_line_once_wherever_they_go_on(service):
    job = await service.running(f"seq 1000; {service.wait_at('gate')}; seq 1001 2000")
    seen = []
    async for lines in service.app.follow_logs(service.principal, job.request_id):
        seen += lines
        if len(seen) == 1000:
            break
    others = [
        asyncio.create_task(service.followed(job.request_id, after=seen[n].seq))
        for n in (0, 499, 999)
    ]
    await service.open_gate("gate")
    for start, task in zip((1, 500, 1000), others, strict=True):
        assert [text for _, text in await task] == [str(n) for n in range(start + 1, 2001)]


async def test_what_the_log_has_no_room_for_is_told_in_its_place(service):
    ended = await service.run("seq 3000000; echo last >&2")
    lines = [text for _, text in await service.followed(ended.request_id)]
    (gap,) = [n for n, text in enumerate(lines) if "missing" in text]
    assert lines[: gap - 1] == [str(n) for n in range(1, gap)]
    lost = int(lines[gap].split()[0])
    kept = sum(len(text) + 1 for text in (*lines[:gap], *lines[gap + 1 : -1]))
    printed = sum(len(str(n)) + 1 for n in range(1, 3000001))
    # The lines on both sides of the gap may have been cut by it: one has no end of its own.
    assert kept - 1 <= printed - lost <= kept
    assert lines[-2:] == ["3000000", "last"] or lines[-1] == "3000000"
    page = await service.app.logs(service.principal, ended.request_id)
    assert page.truncated
    assert [line.message for line in page.lines] == lines[-50_000:]


async def test_a_hundred_followers_get_every_line_for_one_reading(service, monkeypatch):
    reads = []
    step = LogReader.step

    def counted(reader, place, run, **limits):
        found = step(reader, place, run, **limits)
        reads.append(0 if found is None else len(found.entries))
        return found

    monkeypatch.setattr(LogReader, "step", counted)
    script = f"{service.wait_at('gate')}; for i in 1 2 3 4 5 6 7 8; do seq 500; done"
    job = await service.running(script)
    followers = [asyncio.create_task(service.followed(job.request_id)) for _ in range(100)]
    async with asyncio.timeout(DEADLINE_S):
        with service.node.log_pulses.listen(job.request_id) as pulse:
            while pulse.listeners <= 100:
                await asyncio.sleep(0.01)
    await service.open_gate("gate")
    expected = [("stdout", str(number)) for _ in range(8) for number in range(1, 501)]
    for follower in followers:
        assert await follower == expected
    # Some may come a step too late to share it; each on its own would be 400 000.
    assert sum(reads) < 10 * len(expected)


async def test_a_follower_who_stays_away_goes_on_and_hinders_nobody(service):
    wait = service.wait_at("gate")
    job = await service.running(f"seq 1000; {wait}; seq -f %0200.0f 1001 150000")
    away = service.app.follow_logs(service.principal, job.request_id)
    seen = list(await anext(away))
    await service.open_gate("gate")
    others = await service.followed(job.request_id)
    assert others[-1] == ("stdout", "150000".zfill(200))
    async for lines in away:
        seen += lines
    texts = [line.message for line in seen]
    assert texts[:1000] == [str(number) for number in range(1, 1001)]
    assert any("missing" in text for text in texts)
    assert texts[-1] == others[-1][1]
    seqs = [line.seq for line in seen]
    assert seqs == sorted(set(seqs))
