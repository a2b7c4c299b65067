"""A job's log, read while it grows and afterwards."""

import asyncio

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
