"""Freezing a VM, holding and claiming it: with the kernel's freezers, and with files in their place
where the moment between "asked" and "stopped" must last."""

import asyncio
import os
import uuid
from pathlib import Path

import pytest

from magsd.engine.cgroup import Cgroup, Controller, find_controllers
from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.guest.state import EndCode
from tests.integration.shim_process import (
    ShimProcess,
    ended,
    killed,
    memfd,
    processes_of,
    shell,
    until,
)

UNCLAIMED = "nobody claimed it"


async def output(shim: ShimProcess, script: str) -> str:
    """Run a script in the VM and return what it printed."""
    result = await streams.run(
        shim.control, ["/bin/sh", "-ec", script], environment={"PATH": "/usr/bin:/bin"}
    )
    return result.stdout.decode()


# --- freezing ----------------------------------------------------------------------


async def test_a_frozen_vm_stands_still_until_it_is_thawed(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        await shim.control.request("freeze", deadline_ms="60000")
        assert freezer.is_frozen()
        stream = await shim.control.open_stream(shell("echo on"))
        other = await shim.connect()
        with pytest.raises(ShimError, match="another"):
            await other.request("freeze", deadline_ms="1")
        await other.request("thaw")
        assert await stream.read() == b"on\n"
        assert not freezer.is_frozen()


async def test_a_freeze_is_answered_when_all_tasks_have_stopped(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        await shim.control.open_durable(
            1, shell("for i in 1 2 3 4; do (while :; do :; done)& done; wait")
        )
        await until(lambda: len(shim.processes()) >= 6)
        for _ in range(20):
            await shim.control.request("freeze", deadline_ms="0")
            assert freezer.is_frozen()
            await shim.control.request("thaw")


async def test_a_freeze_is_undone_at_its_deadline(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        await shim.control.request("freeze", deadline_ms="50")
        assert await output(shim, "echo on") == "on\n"
        assert not freezer.is_frozen()


async def test_a_freeze_ends_with_its_connection(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        other = await shim.connect()
        await other.request("freeze", deadline_ms="0")
        assert freezer.is_frozen()
        await other.aclose()
        assert await output(shim, "echo on") == "on\n"


async def test_a_frozen_vm_can_be_killed(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        namespace = os.readlink(f"/proc/{shim.pid}/ns/pid")
        await shim.control.request("freeze", deadline_ms="0")
        await killed(shim)
        assert processes_of(namespace) == []


async def test_a_fence_ends_a_frozen_vm(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        await shim.control.request("freeze", deadline_ms="0")
        await shim.control.request("fence", deadline_ms="20")
        await ended(shim, EndCode.FENCED)


async def test_a_freeze_waits_for_the_last_task(tmp_path, slow_freezer):
    async with await slow_freezer.vm(tmp_path) as shim:
        freeze = asyncio.ensure_future(shim.control.request("freeze", deadline_ms="0"))
        await until(lambda: slow_freezer.asked() == "1")
        await shim.control.request("note", text="while it is being frozen")
        assert not freeze.done()
        slow_freezer.settle()
        await freeze
        assert slow_freezer.asked() == "1"


async def test_a_freeze_that_does_not_come_to_pass_is_undone(tmp_path, slow_freezer):
    async with await slow_freezer.vm(tmp_path) as shim:
        with pytest.raises(ShimError, match="could not be frozen"):
            await shim.control.request("freeze", deadline_ms="0")
        assert slow_freezer.asked() == "0"


# --- holding and claiming ----------------------------------------------------------


async def test_a_vm_that_nobody_claims_ends_with_its_holder(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        namespace = os.readlink(f"/proc/{shim.pid}/ns/pid")
        holder = await shim.connect()
        await holder.request("hold")
        await holder.aclose()
        assert await ended(shim, EndCode.KILLED) == UNCLAIMED
        assert processes_of(namespace) == []


async def test_a_frozen_vm_ends_with_its_holder(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        namespace = os.readlink(f"/proc/{shim.pid}/ns/pid")
        await shim.control.request("hold")
        await shim.control.request("freeze", deadline_ms="0")
        assert freezer.is_frozen()
        await shim.control.aclose()
        assert await ended(shim, EndCode.KILLED) == UNCLAIMED
        assert processes_of(namespace) == []
        assert not freezer.is_frozen()


async def test_a_vm_that_another_froze_ends_with_its_holder(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        namespace = os.readlink(f"/proc/{shim.pid}/ns/pid")
        await (await shim.connect()).request("freeze", deadline_ms="0")
        await shim.control.request("hold")
        await shim.control.aclose()
        assert await ended(shim, EndCode.KILLED) == UNCLAIMED
        assert processes_of(namespace) == []


async def test_a_vm_that_is_just_being_frozen_ends_with_its_holder(tmp_path, slow_freezer):
    async with await slow_freezer.vm(tmp_path) as shim:
        await shim.control.request("hold")
        freeze = asyncio.ensure_future(shim.control.request("freeze", deadline_ms="0"))
        await until(lambda: slow_freezer.asked() == "1")
        await shim.control.aclose()
        with pytest.raises(ShimError, match="closed here"):
            await freeze
        assert await ended(shim, EndCode.KILLED) == UNCLAIMED
        assert slow_freezer.asked() == "0"


async def test_a_claimed_vm_outlives_the_connection(tmp_path, freezer):
    async with await freezer.vm(tmp_path) as shim:
        holder = await shim.connect()
        await holder.request("hold")
        await holder.request("freeze", deadline_ms="0")
        await holder.request("claim")
        assert not freezer.is_frozen()
        await holder.aclose()
        assert await output(shim, "echo on") == "on\n"
        with pytest.raises(ShimError, match="does not hold"):
            await shim.control.request("claim")


async def test_a_claim_undoes_a_freeze_that_is_not_answered_yet(tmp_path, slow_freezer):
    async with await slow_freezer.vm(tmp_path) as shim:
        await shim.control.request("hold")
        freeze = asyncio.ensure_future(shim.control.request("freeze", deadline_ms="0"))
        await until(lambda: slow_freezer.asked() == "1")
        await shim.control.request("claim")
        with pytest.raises(ShimError, match="thawed meanwhile"):
            await freeze
        assert slow_freezer.asked() == "0"


async def test_a_vm_has_one_holder_at_a_time(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        other = await shim.connect()
        with pytest.raises(ShimError, match="does not hold"):
            await shim.control.request("claim")
        await shim.control.request("hold")
        await shim.control.request("hold")
        with pytest.raises(ShimError, match="does not hold"):
            await other.request("claim")
        # The control connection gives its hold to whoever asks, and to nobody else after that.
        await other.request("hold")
        third = await shim.connect()
        for late in (shim.control, third):
            with pytest.raises(ShimError, match="another connection holds"):
                await late.request("hold")
            with pytest.raises(ShimError, match="does not hold"):
                await late.request("claim")
        await third.aclose()
        await other.request("claim")
        with pytest.raises(ShimError, match="does not hold"):
            await other.request("claim")
        await other.aclose()
        again = await shim.connect()
        await again.request("hold")
        await again.aclose()
        assert await ended(shim, EndCode.KILLED) == UNCLAIMED


async def test_a_scoped_connection_may_neither_hold_nor_claim(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        other = await shim.connect()
        await other.request("scope")
        for verb in ("hold", "claim"):
            with pytest.raises(ShimError, match="streams only"):
                await other.request(verb)
        await other.aclose()
        assert await shim.control.request("note", text="alive")


# --- what the host offers ----------------------------------------------------------


class KernelFreezer:
    """A group of the host that can be frozen."""

    def __init__(self, root: Path, version: int) -> None:
        self._group = root / f"mags-test-{uuid.uuid4().hex[:8]}"
        self._freezer = Cgroup({"freezer": Controller(self._group, version)}).freezer
        self._group.mkdir()

    async def vm(self, directory: Path) -> ShimProcess:
        members = os.open(self._group / "cgroup.procs", os.O_WRONLY)
        state = os.open(self._freezer.file, os.O_RDWR)
        words = f"{state}:{self._freezer.frozen}:{self._freezer.thawed}"
        steps, descriptors = [("cgroup", str(members)), ("freezer", words)], [members, state]
        if self._freezer.events is not None:
            descriptors.append(os.open(self._freezer.events, os.O_RDONLY))
            steps.append(("freezer_events", str(descriptors[-1])))
        return await ShimProcess.open(directory, steps=steps, descriptors=descriptors)

    def is_frozen(self) -> bool:
        if self._freezer.events is not None:
            return "frozen 1" in self._freezer.events.read_text().splitlines()
        return self._freezer.file.read_text().strip() == self._freezer.frozen

    async def remove(self) -> None:
        self._freezer.file.write_text(self._freezer.thawed)
        await until(lambda: not (self._group / "cgroup.procs").read_text())
        self._group.rmdir()


class SlowFreezer:
    """Files like a freezer's, with which nothing is frozen before the test says so."""

    def __init__(self) -> None:
        self._state, self._events = memfd(b"0"), memfd(b"populated 1\nfrozen 0\n")

    async def vm(self, directory: Path) -> ShimProcess:
        state, events = os.dup(self._state), os.dup(self._events)
        steps = [("freezer", f"{state}:1:0"), ("freezer_events", str(events))]
        return await ShimProcess.open(directory, steps=steps, descriptors=[state, events])

    def asked(self) -> str:
        return os.pread(self._state, 100, 0).decode()

    def settle(self) -> None:
        os.pwrite(self._events, b"populated 1\nfrozen 1\n", 0)

    def close(self) -> None:
        os.close(self._state)
        os.close(self._events)


def hierarchies() -> dict[str, Controller]:
    """Return where this host can freeze groups, by the kind of the file system."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {
        kind: find_controllers("\n".join(line for line in lines if f" - {kind} " in line))
        for kind in ("cgroup", "cgroup2")
    }
    return {kind: names["freezer"] for kind, names in found.items() if "freezer" in names}


@pytest.fixture(params=hierarchies().values(), ids=hierarchies().keys())
async def freezer(request):
    freezer = KernelFreezer(request.param.root, request.param.version)
    yield freezer
    await freezer.remove()


@pytest.fixture
def slow_freezer():
    freezer = SlowFreezer()
    yield freezer
    freezer.close()
