"""MicroVMs of one template: many at once, none like another, each in its host's time."""

import asyncio
import os
import shutil
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from magsd.aio import SystemClock
from magsd.core import launch
from magsd.engine.base import Handle
from magsd.engine.qemu import QemuEngine
from magsd.guest.shim import ShimConnection
from magsd.model.quota import Limits, completed
from magsd.model.records import JobSpec
from tests import census
from tests.conformance.qemu_host import QemuHost
from tests.conformance.vm import eventually, introduced, journaled, printed, within

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)

LAUNCHES = 1000 if os.environ.get("MAGS_TEST_FULL") == "1" else 25
AT_ONCE = 5
DAY_S = 86_400
CLOSE_S = 2.0
"""So far apart may two looks at a clock be on a busy host."""
SPARE = ("descriptor", "interface", "process mkfs")
SECRETS = """\
head -c 16 /dev/urandom | od -An -tx1
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /etc/machine-id
python3 -c 'import os; print(os.urandom(16).hex()); print(hash("mags"))'
"""


class SetClock(SystemClock):
    """The host's clock, as somebody has set it."""

    offset_s = 0.0

    @override
    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.offset_s)


async def held(engine: QemuEngine, host: QemuHost) -> tuple[Handle, ShimConnection]:
    """Return a VM that waits, as the pool makes it."""
    handle = await engine.launch(host.plan(waits=True))
    connection = await ShimConnection.open(handle.run_directory)
    await launch.hold(connection, "waiting", host.clock)
    await launch.warm(connection, engine.capabilities)
    return handle, connection


async def claimed(
    engine: QemuEngine, host: QemuHost, waiting: tuple[Handle, ShimConnection], script: str
) -> str:
    """Run a script in a VM that waited, to its end, as a job's; return what it printed."""
    handle, connection = waiting
    spec = completed(JobSpec(script), Limits())
    await launch.begin(engine, handle, connection, spec, host.clock)
    state = await within(30, connection.exited(launch.SCRIPT_STREAM))
    await connection.aclose()
    assert state.wait_status == 0
    return journaled(handle).decode()


async def test_none_knows_what_another_knows(host: QemuHost, engine: QemuEngine) -> None:
    waiting = [await held(engine, host) for _ in range(3)]
    printed_by = [await claimed(engine, host, each, SECRETS) for each in waiting]
    lines = [line for text in printed_by for line in text.splitlines()]
    assert len(lines) == len(set(lines)) == 3 * 6
    for handle, _ in waiting:
        await engine.stop(handle)


async def test_the_hosts_clock_may_be_set(host: QemuHost) -> None:
    clock = SetClock()
    host.clock = clock
    async with host.engine() as engine:
        await engine.stop(await engine.launch(host.plan()))
        for offset_s in (DAY_S, -DAY_S):
            # Between a template and what goes on from it,
            clock.offset_s = offset_s
            handle = await engine.launch(host.plan())
            await introduced(handle, clock)
            assert_now(clock, await printed(handle, "date +%s.%N"))
            await engine.stop(handle)
            # and while that waits.
            waiting = await held(engine, host)
            clock.offset_s = offset_s / 2
            assert_now(clock, await claimed(engine, host, waiting, "date +%s.%N"))
            await engine.stop(waiting[0])


def assert_now(clock: SetClock, told: str) -> None:
    assert abs(float(told) - clock.now().timestamp()) < CLOSE_S


async def test_a_burst_at_first_use_has_one_boot(host: QemuHost, engine: QemuEngine) -> None:
    shutil.rmtree(host.data / "templates", ignore_errors=True)
    with capture_logs() as entries:
        plans = [host.plan(waits=number % 2 == 0) for number in range(8)]
        handles = await within(60, asyncio.gather(*(engine.launch(plan) for plan in plans)))
    # Those that wait ended with their maker's connection, or wait still: either is given back.
    for plan, handle in zip(plans, handles, strict=True):
        if not plan.waits:
            assert await printed(handle, "echo well") == "well\n"
        await engine.stop(handle)
    events = [entry["event"] for entry in entries]
    assert events.count("template_made") == 1
    assert "cold_boot" not in events


def descriptors() -> Counter[str]:
    """This process's, by kind."""
    kinds: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(path)
        except FileNotFoundError:
            continue
        is_memory = target.startswith("/memfd:")
        kinds["memory" if is_memory else target.partition(":")[0].partition("/")[0]] += 1
    return kinds


async def test_many_leave_nothing_behind(host: QemuHost, engine: QemuEngine) -> None:
    async def one() -> None:
        handle = await engine.launch(host.plan())
        assert await within(20, printed(handle, "echo well")) == "well\n"
        await engine.stop(handle)

    # Once as many as ever, so that what is kept for the next is there.
    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    before, held_before = census.take(host.data), descriptors()
    for _ in range(LAUNCHES // AT_ONCE):
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    ignored = (*SPARE, "file run/")
    assert not census.left_behind(before, host.data, ignoring=ignored)
    await eventually(lambda: descriptors() <= held_before)
