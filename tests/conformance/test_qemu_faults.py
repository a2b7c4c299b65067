"""MicroVMs that hang or die at the worst moment: what was asked for comes up all the same, or
fails with a reason, and nothing is left."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from magsd.core import launch
from magsd.engine.base import EndReason, Handle
from magsd.engine.qemu import QemuEngine
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError
from magsd.model.names import VmId
from tests import census
from tests.conformance.qemu_host import QemuHost
from tests.conformance.vm import begin, connected, eventually, printed, within

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)

SPARE = ("descriptor", "interface", "process mkfs")
_MONITOR_IN_USE = re.compile(r" 03 +\d+ \S+/qmp$", re.MULTILINE)


def emulators(host: QemuHost) -> dict[int, VmId]:
    """All that run, by process id."""
    found = {}
    for path in (host.data / "run").iterdir():
        # Its group comes after its directory, and goes before it.
        with contextlib.suppress(FileNotFoundError):
            vm = VmId(path.name)
            processes = host.processes(Handle(vm, 1, path))
            found.update({pid: vm for name, pid in processes.items() if "qemu" in name})
    return found


async def another(host: QemuHost, known: set[int]) -> int:
    """Return an emulator as soon as it runs, and add it to those that are known."""
    (pid, *_) = await eventually(lambda: emulators(host).keys() - known)
    known.add(pid)
    return int(pid)


def forget_templates(host: QemuHost) -> None:
    shutil.rmtree(host.data / "templates", ignore_errors=True)


def folders(host: QemuHost) -> list[Path]:
    return [path for path in (host.data / "templates").glob("*") if len(path.name) == 32]


@contextlib.contextmanager
def nothing_new(host: QemuHost) -> Iterator[None]:
    """Fail when what stands in the block leaves anything, spare disks and slots aside."""
    before = census.take(host.data)
    yield
    ignored = (*SPARE, "file run/")
    assert not census.left_behind(before, host.data, ignoring=ignored)


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """The names of what is logged."""
    names: list[str] = []
    with capture_logs() as entries:
        yield names
    names += [entry["event"] for entry in entries]


async def stopped(engine: QemuEngine, handle: Handle) -> EndReason:
    return (await within(20, engine.stop(handle))).reason


async def stop_well(engine: QemuEngine, handle: Handle) -> None:
    assert await within(20, printed(handle, "echo well")) == "well\n"
    await stopped(engine, handle)


@contextlib.asynccontextmanager
async def held(engine: QemuEngine, host: QemuHost) -> AsyncIterator[tuple[Handle, ShimConnection]]:
    """A VM that waits, as the pool has it."""
    handle = await engine.launch(host.plan(waits=True))
    connection = await ShimConnection.open(handle.run_directory)
    try:
        await launch.hold(connection, "waiting", host.clock)
        await launch.warm(connection, engine.capabilities)
        yield handle, connection
    finally:
        await connection.aclose()


# --- a machine that hangs ---------------------------------------------------------


async def test_a_template_that_hangs_twice_fails_the_launches_that_wait(host: QemuHost) -> None:
    forget_templates(host)
    async with host.engine(boot_s=1.0) as engine:
        with nothing_new(host), told() as events:
            known: set[int] = set()
            launching = [asyncio.ensure_future(engine.launch(host.plan())) for _ in range(3)]
            for _ in range(2):
                os.kill(await another(host, known), signal.SIGSTOP)
            failed = await within(30, asyncio.gather(*launching, return_exceptions=True))
        for error in failed:
            assert isinstance(error, LaunchError)
            assert "hung twice" in error.message
        assert events.count("boot_hung") == 1
        assert events.count("template_failed") == 1
        assert len(known) == 2
        assert list((host.data / "run").iterdir()) == []
    assert folders(host) == []


async def test_a_boot_that_hangs_once_is_done_again(host: QemuHost) -> None:
    forget_templates(host)
    async with host.engine(boot_s=6.0) as engine:
        with nothing_new(host), told() as events:
            known: set[int] = set()
            launching = asyncio.ensure_future(engine.launch(host.plan()))
            os.kill(await another(host, known), signal.SIGKILL)
            # There is no template, so this one is the VM itself.
            pid = await another(host, known)
            vm = emulators(host)[pid]
            os.kill(pid, signal.SIGSTOP)
            handle = await within(60, launching)
            assert handle.vm == vm
            await stop_well(engine, handle)
        assert [name for name in events if "boot" in name] == ["cold_boot", "boot_hung"]


async def test_a_clone_that_does_not_answer_is_thrown_away(host: QemuHost) -> None:
    async with host.engine() as engine:
        await stop_well(engine, await engine.launch(host.plan()))
    async with host.engine(clone_s=1.0) as engine:
        with nothing_new(host), told() as events:
            launching = asyncio.ensure_future(engine.launch(host.plan()))
            pid = await another(host, set())
            os.kill(pid, signal.SIGSTOP)
            handle = await within(60, launching)
            assert pid not in emulators(host)
            await stop_well(engine, handle)
        assert events == ["clone_failed", "cold_boot"]


async def test_a_template_that_is_no_use_is_made_anew(host: QemuHost) -> None:
    async with host.engine() as engine:
        await stop_well(engine, await engine.launch(host.plan()))
        folder = await eventually(host.template)
    # Whole, as far as anybody can see, and nothing that a machine could go on from.
    nonsense = b"no state of any machine"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state"] = hashlib.sha256(nonsense).hexdigest()
    for name, content in (("state", nonsense), ("manifest.json", json.dumps(manifest).encode())):
        # Others' files are the same by links.
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    async with host.engine() as engine:
        with nothing_new(host), told() as events:
            launching = [engine.launch(host.plan()) for _ in range(2)]
            for handle in await within(60, asyncio.gather(*launching)):
                await stop_well(engine, handle)
            await stop_well(engine, await engine.launch(host.plan()))
        assert events.count("clone_failed") == events.count("cold_boot") == 2
        assert events.count("template_removed") == events.count("template_made") == 1
        await eventually(host.template)
    assert (folder / "state").stat().st_size > 1000


async def test_an_emulator_that_stands_still_can_be_ended(
    host: QemuHost, engine: QemuEngine
) -> None:
    handle = await engine.launch(host.plan())
    with nothing_new(host):
        running = await engine.launch(host.plan())
        async with connected(running) as connection:
            await begin(connection, "echo begun; sleep 600")
            os.kill(await another(host, {*pids_of(host, handle)}), signal.SIGSTOP)
            assert await stopped(engine, running) is EndReason.KILLED
        async with held(engine, host) as (waiting, _):
            os.kill(await another(host, {*pids_of(host, handle)}), signal.SIGSTOP)
            assert await stopped(engine, waiting) is EndReason.KILLED
    await stop_well(engine, handle)


def pids_of(host: QemuHost, handle: Handle) -> list[int]:
    return [pid for pid, vm in emulators(host).items() if vm == handle.vm]


# --- a machine that dies ----------------------------------------------------------


async def test_killed_while_it_boots(host: QemuHost) -> None:
    forget_templates(host)
    async with host.engine() as engine:
        with nothing_new(host):
            known: set[int] = set()
            launching = asyncio.ensure_future(engine.launch(host.plan()))
            for _ in range(2):
                os.kill(await another(host, known), signal.SIGKILL)
            with pytest.raises(LaunchError):
                await within(30, launching)
            assert list((host.data / "run").iterdir()) == []


async def test_killed_while_its_template_is_saved(host: QemuHost) -> None:
    forget_templates(host)
    async with host.engine() as engine:
        with nothing_new(host), told() as events:
            launching = asyncio.ensure_future(engine.launch(host.plan()))
            pid = await another(host, set())
            await eventually(lambda: _MONITOR_IN_USE.search(Path("/proc/net/unix").read_text()))
            os.kill(pid, signal.SIGKILL)
            await stop_well(engine, await within(60, launching))
        assert events == ["template_failed", "cold_boot"]
    assert folders(host) == []


async def test_killed_while_it_loads(host: QemuHost, engine: QemuEngine) -> None:
    await stop_well(engine, await engine.launch(host.plan()))
    with nothing_new(host), told() as events:
        launching = asyncio.ensure_future(engine.launch(host.plan()))
        os.kill(await another(host, set()), signal.SIGKILL)
        await stop_well(engine, await within(60, launching))
    assert events == ["clone_failed", "cold_boot"]


async def test_killed_while_it_waits(host: QemuHost, engine: QemuEngine) -> None:
    kept = await engine.launch(host.plan())
    with nothing_new(host):
        async with held(engine, host) as (handle, connection):
            os.kill(await another(host, {*pids_of(host, kept)}), signal.SIGKILL)
            with contextlib.suppress(ShimError):
                await connection.request("claim")
            ended = await within(20, engine.wait(handle))
        assert ended.reason is EndReason.ENGINE_DIED, ended
        await stopped(engine, handle)
    await stop_well(engine, kept)


async def test_killed_while_it_runs_a_script(host: QemuHost, engine: QemuEngine) -> None:
    kept = await engine.launch(host.plan())
    with nothing_new(host):
        handle = await engine.launch(host.plan())
        async with connected(handle) as connection:
            await begin(connection, "echo begun; sleep 600")
            os.kill(await another(host, {*pids_of(host, kept)}), signal.SIGKILL)
            ended = await within(20, engine.wait(handle))
        assert ended.reason is EndReason.ENGINE_DIED, ended
        assert await stopped(engine, handle) is EndReason.ENGINE_DIED
    await stop_well(engine, kept)


async def test_killed_while_it_is_stopped(host: QemuHost, engine: QemuEngine) -> None:
    kept = await engine.launch(host.plan())
    with nothing_new(host):
        handle = await engine.launch(host.plan())
        pid = await another(host, {*pids_of(host, kept)})
        stopping = asyncio.ensure_future(engine.stop(handle))
        await asyncio.sleep(0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended: Any = await within(20, stopping)
        assert ended.reason in {EndReason.KILLED, EndReason.ENGINE_DIED}
        assert (await engine.wait(handle)).reason is ended.reason
    await stop_well(engine, kept)
