"""The route of usage."""

import pytest

from magsd.api.usage import UsageReply

USAGE = "/api/v1/mags-jobs/usage"


async def test_usage_of_ones_own(client, app, admin, stranger):
    await admin.run("exit 0")
    await admin.run("exit 3")
    running = await admin.running()
    found = UsageReply.model_validate((await client.get(USAGE)).json())
    assert (found.window_days, len(found.by_day)) == (30, 30)
    assert (found.total_jobs, found.completed_jobs, found.failed_jobs) == (3, 1, 1)
    assert found.running_jobs == 1
    assert found.vm_seconds > 0
    assert sum(day.jobs for day in found.by_day) == 3
    await client.post(f"/api/v1/mags-jobs/{running.request_id}/stop")
    await admin.until(running.request_id)
    found = UsageReply.model_validate((await client.get(f"{USAGE}?window_days=1")).json())
    assert (found.failed_jobs, found.running_jobs, len(found.by_day)) == (2, 0, 1)
    theirs = (await client.get(USAGE, headers=stranger.headers)).json()
    assert (theirs["total_jobs"], theirs["vm_seconds"]) == (0, 0)


async def test_an_upload_takes_storage(client, admin):
    await client.post("/api/v1/mags-files", files={"file": ("f", b"x" * 1234)})
    assert (await client.get(USAGE)).json()["storage_bytes"] == 1234


@pytest.mark.parametrize("days", ["0", "367", "x", "-1", ""])
async def test_windows_that_are_none(client, days):
    reply = await client.get(f"{USAGE}?window_days={days}")
    assert reply.status_code == 400
    assert "window_days" in reply.json()["error"]
