"""The same application on the engine that it has in service: one pass through everything."""

import asyncio
import os
import shutil
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from magsd import app
from magsd.aio import SystemClock
from magsd.config import Settings
from magsd.model.errors import JobCode
from magsd.model.lifecycle import Status
from magsd.storage.build import build_standard
from magsd.storage.images import ImageStore
from tests import census
from tests.integration.core.service import RESTARTED, Service

IMAGES = Path(__file__).parents[3] / "build/images"
SLOT_NET = "198.19.248.0/26"


class GvisorService(Service):
    """A service as the composition root builds it, without its HTTP face."""

    async def start(self) -> None:
        self._undo = AsyncExitStack()
        async with AsyncExitStack() as undo:
            undo.enter_context(app.data_directory(self.directory))
            settings = Settings(data_dir=self.directory, slot_net=SLOT_NET)
            images = ImageStore(self.directory)
            self.app = await undo.enter_async_context(app.opened(settings, images, SystemClock()))
            await self.sign_in()
            self._undo = undo.pop_all()

    async def stop(self) -> None:
        await self._undo.aclose()

    async def begin_and_end(self) -> None:
        await self.start()
        await self.stop()


@pytest.fixture
async def gvisor(tmp_path):
    data = tmp_path / "data"
    build_standard(ImageStore(data), IMAGES, False, print)
    service = GvisorService(data)
    # What this process keeps for good, such as the object store's threads, is there before.
    await service.begin_and_end()
    before = census.take(data)
    await service.start()
    try:
        yield service
        for job in (await service.app.list_jobs(service.principal, page=1, page_size=100)).jobs:
            await service.app.stop(service.principal, job.request_id)
        await service.at_rest()
    finally:
        await service.stop()
    census.assert_same(before, data)
    shutil.rmtree(data)


async def test_jobs_live_and_end_as_they_should(gvisor):
    script = "echo out; echo err >&2; id -u; hostname; printf last; exit 3"
    ended = await gvisor.run(script, environment={"A": "b"})
    assert (ended.exit_code, ended.code, ended.engine) == (3, JobCode.SCRIPT_FAILED, "gvisor")
    assert ended.isolation != "none"
    log = await gvisor.log(ended.request_id)
    assert sorted(log) == sorted(
        [
            ("stdout", "out"),
            ("stderr", "err"),
            ("stdout", "0"),
            ("stdout", f"mags-{ended.vm_id}"),
            ("stdout", "last"),
        ]
    )

    several = [await gvisor.submit(f"echo {n}") for n in range(6)]
    for n, job in enumerate(several):
        assert (await gvisor.until(job.request_id)).status is Status.COMPLETED
        assert await gvisor.log(job.request_id) == [("stdout", str(n))]

    late = await gvisor.run("echo begun; sleep 100", timeout_s=1)
    assert (late.exit_code, late.code) == (124, JobCode.TIMEOUT)

    job = await gvisor.running("echo ready; sleep 100")
    await gvisor.printed(job.request_id, "ready")
    first, second = await asyncio.gather(
        *(gvisor.app.stop(gvisor.principal, job.request_id) for _ in range(2))
    )
    assert first == second
    assert (first.exit_code, first.code) == (143, JobCode.STOPPED)

    job = await gvisor.running("echo ready; sleep 100")
    await gvisor.printed(job.request_id, "ready")
    os.kill(gvisor.record(job.vm_id).shim_pid, signal.SIGKILL)
    ended = await gvisor.until(job.request_id)
    assert (ended.exit_code, ended.code) == (137, JobCode.SHIM_DIED)
    assert await gvisor.log(job.request_id) == [("stdout", "ready"), ("system", ended.error)]


async def test_jobs_go_on_while_no_daemon_runs(gvisor):
    ends, goes_on, dies = [
        await gvisor.running(script)
        for script in (
            "echo one; sleep 8; echo two; exit 5",
            "echo one; for n in $(seq 500); do echo tick; sleep 0.1; done",
            "echo one; sleep 100",
        )
    ]
    for job in (ends, goes_on, dies):
        await gvisor.printed(job.request_id, "one")
    await gvisor.stop()
    pid = gvisor.record(dies.vm_id).shim_pid
    os.kill(pid, signal.SIGKILL)
    # In service its parent would be gone too.
    await asyncio.to_thread(os.waitpid, pid, 0)
    await gvisor.script_over(ends.vm_id)
    await gvisor.start()

    ended = await gvisor.until(ends.request_id)
    assert ended.exit_code == 5
    assert await gvisor.log(ends.request_id) == [("stdout", "one"), ("stdout", "two")]
    ended = await gvisor.until(dies.request_id)
    assert (ended.exit_code, ended.code) == (137, JobCode.SHIM_DIED)

    now = await gvisor.app.status(gvisor.principal, goes_on.request_id)
    assert (now.status, now.vm_id) == (Status.RUNNING, goes_on.vm_id)
    await gvisor.printed(goes_on.request_id, RESTARTED)
    ended = await gvisor.app.stop(gvisor.principal, goes_on.request_id)
    assert ended.exit_code == 143
    log = [text for _, text in await gvisor.log(goes_on.request_id)]
    ticks = log.count("tick")
    assert ticks > 5
    assert [text for text in log if text != "tick"] == ["one", RESTARTED, "the job was stopped"]
