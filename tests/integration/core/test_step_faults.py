"""Each outward step of a job's life fails, or comes to nothing because of a stop, in turn.

A job ends in a documented way or goes on; nothing is left of it, nothing
stays counted for it, and the pool is full again.
"""

import asyncio
import contextlib
import errno
import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog

from magsd.aio import SystemClock
from magsd.core import pool
from magsd.guest.shim import ShimError
from magsd.model.errors import CapacityError, JobCode, LaunchError, NotFoundError
from magsd.model.lifecycle import Goal, Status
from magsd.model.records import JobSpec
from tests.integration.core.kill_points import POOLED, open_gate, quiet, script, waiting
from tests.integration.core.outward_steps import Point, watched
from tests.integration.core.service import DEADLINE_S
from tests.integration.core.wholeness import nothing_counted, processes

SAMPLE = 6
STOPPED = "the job was stopped"
HASTE = 50
HANDS_OVER = ("after launch", "after connect")
"""What these steps return is lost where they are cancelled while they are held, and only there."""
HOLD_S = 0.1
"""A step is held for so long while something else comes up."""


class HastyClock(SystemClock):
    """Makes no pause as long as it is."""

    def monotonic(self) -> float:
        return super().monotonic() * HASTE

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / HASTE)


@pytest.fixture
async def hasty(service, monkeypatch):
    """A service whose pauses are short."""
    monkeypatch.setattr(pool, "_LOOK_S", 0.05)
    service.clock = HastyClock()
    # Tracebacks that are made to be looked at would take most of the time.
    with structlog.testing.capture_logs():
        await service.restart()
        yield service
        await nothing_counted(service)


# What a boundary may raise, by the first word or words of its steps' names.
BROKEN = ShimError("the connection is broken")
BUSY = CapacityError("the service cannot record this now")
UNREADY = LaunchError("the engine is out of order")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAULTS: dict[tuple[str, str], tuple[Exception, ...]] = {
    ("before", "commit"): (BUSY,),
    ("after", "commit"): (BUSY,),
    ("before", "connect"): (BROKEN,),
    ("before", "ask"): (BROKEN, TimeoutError()),
    ("after", "ask"): (BROKEN,),
    ("before", "open the script"): (BROKEN, TimeoutError()),
    ("after", "open the script"): (BROKEN, TimeoutError()),
    ("before", "signal"): (BROKEN,),
    ("before", "control"): (BROKEN, TimeoutError()),
    ("after", "control"): (BROKEN,),
    ("before", "write the script"): (BROKEN,),
    ("after", "write the script"): (BROKEN,),
    ("before", "run a command"): (BROKEN,),
    ("before", "launch"): (UNREADY,),
    ("before", "adopt"): (UNREADY,),
    ("before", "wait"): (UNREADY,),
    ("before", "stop"): (UNREADY,),
    ("before", "open a shim"): (UNREADY,),
    ("before", "start a shim"): (UNREADY,),
    ("after", "start a shim"): (UNREADY,),
    ("before", "make a run directory"): (FULL,),
    ("before", "put away"): (FULL,),
    ("after", "put away"): (FULL,),
    ("before", "remove a file"): (FULL,),
    ("before", "move a journal"): (FULL,),
    ("after", "move a journal"): (FULL,),
    ("before", "store an object"): (BUSY,),
    ("after", "store an object"): (BUSY,),
}


def faults_at(point: str) -> tuple[Exception, ...]:
    when, _, name = point.partition(" ")
    return next((FAULTS[key] for key in FAULTS if key[0] == when and name.startswith(key[1])), ())


class Lives:
    """Jobs of a service, one after the other, each from its submit until nothing is left of it."""

    def __init__(self, service, *, is_stopped: bool = False) -> None:
        self.service = service
        self._is_stopped = is_stopped
        self._number = 0
        self.keeps_gate = asyncio.Event()
        """Set when the job is to end by other means than by itself."""

    @property
    def name(self) -> str:
        """The name of the job that lives now."""
        return f"job-{self._number}"

    async def live(self, at):
        """Live through one job with `at` told of its steps; return how it ended."""
        self._number += 1
        self.keeps_gate.clear()
        with watched(at):
            spec = JobSpec(script(self.service.directory, self.name), name=self.name)
            await self.insist(self.service.app.submit, spec, self.name)
            return await self._lived()

    async def _lived(self):
        status = await self.service.app.status(self.service.principal, self.name)
        while status.status is Status.PENDING:
            status = await self.service.app.status(
                self.service.principal, self.name, wait_s=5, after_generation=status.generation
            )
        if self._is_stopped:
            await self.insist(self.service.app.stop, self.name)
        elif not self.keeps_gate.is_set():
            open_gate(self.service.directory, self.name)
        ended = await self.service.until(self.name)
        await self.settled()
        return ended

    async def settled(self) -> None:
        """Return when nothing is left to be done."""
        await quiet(self.service)
        await self.service.waiting(self.service.settings.pool_min)
        await quiet(self.service)

    async def insist(self, call, *asked):
        """Ask again, as a client does, when the service cannot do it now."""
        for _ in range(5):
            with contextlib.suppress(CapacityError):
                return await call(self.service.principal, *asked)
        raise AssertionError(f"{call} never works")

    async def check(self, ended) -> None:
        """Fail unless a job ended in a documented way, and its log and its effects agree."""
        service = self.service
        marks = service.directory / f"{ended.name}.marks"
        begun = len(marks.read_text().splitlines()) if marks.exists() else 0
        lines = await service.log(ended.request_id)
        printed = [line for source, line in lines if source != "system"]
        system = Counter(line for source, line in lines if source == "system")
        if ended.code is JobCode.STOPPED:
            assert begun <= 1
            assert printed in ([], ["one"], ["one", "two"]), lines
            if ended.vm_id:
                assert system[STOPPED] == 1, lines
        elif ended.code is JobCode.SCRIPT_FAILED:
            assert (ended.exit_code, begun) == (5, 1), ended
            assert printed == ["one", "two"], lines
        else:
            assert ended.code in (JobCode.LAUNCH_FAILED, JobCode.HOST_DISK_FULL), ended
            assert (ended.exit_code, begun, printed) == (None, 0, []), ended
        assert not set(service.node.places.vms()) - waiting(service)
        assert not {line[-8:] for line in processes(service.directory)} - waiting(service)
        await nothing_counted(service)


async def points_of(lives: Lives) -> list[str]:
    """Return all points that a job comes to."""
    found: list[str] = []
    await lives.check(await lives.live(lambda point: found.append(str(point))))
    return found


def chosen(cases: list) -> list:
    """Return all of them, or a part."""
    is_full = os.environ.get("MAGS_TEST_FULL") == "1"
    return cases if is_full else random.sample(cases, min(SAMPLE, len(cases)))


@pytest.mark.parametrize("is_stopped", [False, True], ids=["ends", "is stopped"])
@pytest.mark.parametrize("settings", [{}, POOLED], ids=["launched", "pooled"])
async def test_each_step_fails(hasty, settings, is_stopped):
    await hasty.restart(**settings)
    await hasty.waiting(hasty.settings.pool_min)
    lives = Lives(hasty, is_stopped=is_stopped)
    points = await points_of(lives)
    cases = chosen([(point, error) for point in points for error in faults_at(point)])
    raised = 0
    for point, error in cases:
        is_raised = False

        def at(now: Point, point=point, error=error) -> None:
            nonlocal is_raised
            if str(now) == point and not is_raised:
                is_raised = True
                raise error

        try:
            async with asyncio.timeout(DEADLINE_S):
                await lives.check(await lives.live(at))
        except Exception as found:
            raise AssertionError(f"{error!r} {point}: {found!r}") from found
        raised += is_raised
    assert raised > len(cases) / 2


@pytest.mark.parametrize("settings", [{}, POOLED], ids=["launched", "pooled"])
async def test_a_job_is_stopped_at_each_step(hasty, settings):
    await hasty.restart(**settings)
    await hasty.waiting(hasty.settings.pool_min)
    lives = Lives(hasty)
    loop = asyncio.get_running_loop()
    points = await points_of(lives)
    # Before that nobody knows of it.
    points = points[points.index("after commit Jobs._admit.store 1") + 1 :]
    for point in chosen([point for point in points if not point.startswith(HANDS_OVER)]):
        asked: list[asyncio.Task] = []

        async def stop():
            with contextlib.suppress(NotFoundError):
                lives.keeps_gate.set()
                return await lives.insist(hasty.app.stop, lives.name)
            lives.keeps_gate.clear()
            open_gate(hasty.directory, lives.name)
            return None

        async def held() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S):
                    while not any(
                        actor._row.job.goal is Goal.STOPPED
                        for actor in hasty.app._supervisor._actors.values()
                    ):
                        await asyncio.sleep(0.001)

        def at(now: Point, point=point, asked=asked):
            if str(now) != point or asked:
                return None
            asked.append(None)
            if threading.current_thread() is not threading.main_thread():
                loop.call_soon_threadsafe(lambda: asked.append(loop.create_task(stop())))
                return None
            asked.append(loop.create_task(stop()))
            return held

        try:
            async with asyncio.timeout(DEADLINE_S):
                ended = await lives.live(at)
                told = await asked[1] if len(asked) == 2 else None
                assert told is None or told == ended, (told, ended)
                await lives.check(ended)
        except Exception as found:
            raise AssertionError(f"stopped {point}: {found!r}") from found


@pytest.mark.parametrize("settings", [{}, POOLED], ids=["launched", "pooled"])
async def test_the_service_is_stopped_at_each_step(hasty, settings):
    await hasty.restart(**settings)
    await hasty.waiting(hasty.settings.pool_min)
    lives = Lives(hasty)
    loop = asyncio.get_running_loop()
    points = await points_of(lives)
    for point in chosen([point for point in points if not point.startswith(HANDS_OVER)]):
        threads = ThreadPoolExecutor(8)
        loop.set_default_executor(threads)
        closing: list[asyncio.Task] = []

        async def held(closing=closing) -> None:
            await asyncio.wait(closing, timeout=HOLD_S)

        def at(now: Point, point=point, closing=closing):
            if str(now) != point or closing:
                return None
            if threading.current_thread() is not threading.main_thread():
                loop.call_soon_threadsafe(
                    lambda: closing or closing.append(loop.create_task(hasty.app.aclose()))
                )
                return None
            closing.append(loop.create_task(hasty.app.aclose()))
            return held

        try:
            async with asyncio.timeout(DEADLINE_S):
                living = loop.create_task(lives.live(at))
                while not living.done() and not closing:
                    await asyncio.wait([living], timeout=0.005)
                if closing:
                    await closing[0]
                living.cancel()
                await asyncio.wait([living])
                # As at the end of the process.
                threads.shutdown()
                loop.set_default_executor(ThreadPoolExecutor(8))
                await hasty.restart()
                for status in await unended(hasty):
                    open_gate(hasty.directory, status.name)
                with contextlib.suppress(NotFoundError):
                    ended = await hasty.until(lives.name)
                    await lives.settled()
                    await lives.check(ended)
                await lives.settled()
        except Exception as found:
            raise AssertionError(f"service stopped {point}: {found!r}") from found


async def unended(service) -> list:
    """Return the jobs that are not over."""
    page = await service.app.list_jobs(service.principal, page=1, page_size=100)
    return [status for status in page.jobs if not status.is_final]
