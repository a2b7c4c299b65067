"""The Engine contract: what goes wrong while a VM is suspended, or goes on, leaves nothing behind."""

import asyncio
import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from magsd.engine import disk_files, snapshot_files
from magsd.engine.base import EndReason, Engine, Handle, SnapshotError
from magsd.engine.memory_image import MachineMemory
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import JobCode, LaunchError
from tests.conformance.shim_host import ShimHost
from tests.conformance.suspended import again, gone_on, launched
from tests.conformance.vm import connected, eventually, printed, record_of, within

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)

MOMENTS = ("copy_ahead", "copy_rest", "commit")


def at_moment(monkeypatch: pytest.MonkeyPatch, moment: str, act: Callable[[], None]) -> None:
    """Have `act` done when a suspension comes to a moment."""
    owner = snapshot_files if moment == "commit" else MachineMemory
    usual = getattr(owner, moment)

    def disturbed(*arguments: object) -> None:
        act()
        usual(*arguments)

    monkeypatch.setattr(owner, moment, disturbed)


def no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("keep_running", [False, True])
async def test_a_full_disk_leaves_it_running(
    host: ShimHost,
    engine: Engine,
    snapshots: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    keep_running: bool,
) -> None:
    plan, folder = host.plan(), snapshots
    async with launched(engine, plan) as handle:
        await printed(handle, "(while :; do echo on; sleep 0.05; done) > /run/log &")
        with monkeypatch.context() as patched:
            at_moment(patched, moment, no_room)
            with pytest.raises(LaunchError) as caught:
                await engine.suspend(handle, folder / "one", keep_running=keep_running)
        assert caught.value.job_code is JobCode.HOST_DISK_FULL
        assert left_in(folder) == []
        assert list(host.disk(handle.vm).parent.glob("*.of")) == []
        await printed(
            handle, "n=$(wc -c < /run/log); until [ $(wc -c < /run/log) != $n ]; do :; done"
        )
        await engine.suspend(handle, folder / "one")
        async with gone_on(engine, folder / "one", again(plan)) as second:
            assert await printed(second, "echo there") == "there\n"


@pytest.mark.parametrize("moment", MOMENTS)
async def test_one_that_is_given_up_goes_on(
    host: ShimHost,
    engine: Engine,
    snapshots: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    async with launched(engine, host.plan()) as handle:
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        at_moment(monkeypatch, moment, lambda: loop.call_soon_threadsafe(reached.set))
        saving = asyncio.ensure_future(engine.suspend(handle, snapshots / "one", keep_running=True))
        await within(20, reached.wait())
        saving.cancel()
        with suppress(asyncio.CancelledError):
            await saving
        assert await printed(handle, "echo on") == "on\n"
        assert [name for name in left_in(snapshots) if name.startswith(".")] == []


async def test_the_end_of_who_saves_it_lets_it_go_on(
    host: ShimHost, engine: Engine, snapshots: Path
) -> None:
    """As when a daemon is killed: only its connections end."""
    async with launched(engine, host.plan()) as handle:
        connection = await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
        await connection.request("quiesce")
        asking = asyncio.ensure_future(printed(handle, "echo on"))
        async with connected(handle) as other:
            with pytest.raises(ShimError, match="being saved"):
                await other.request("quiesce")
            with pytest.raises(ShimError, match="nothing to go on from"):
                await other.request("proceed")
        assert not asking.done()
        await connection.aclose()
        assert await within(20, asking) == "on\n"
        async with connected(handle) as other:
            with pytest.raises(ShimError, match="nothing to go on from"):
                await other.request("proceed")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["shim", "emulator"])
async def test_killed_while_it_is_saved(
    host: ShimHost,
    engine: Engine,
    snapshots: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    victim: str,
) -> None:
    handle = await engine.launch(host.plan())
    pid = _pid_of(host, handle, victim)
    at_moment(monkeypatch, moment, lambda: os.kill(pid, signal.SIGKILL))
    folder = snapshots
    # What was read before can be whole: then it is saved all the same.
    with suppress(LaunchError):
        await within(60, engine.suspend(handle, folder / "one"))
    assert (await within(20, engine.wait(handle))).reason in {
        EndReason.KILLED,
        EndReason.SHIM_DIED,
        EndReason.ENGINE_DIED,
    }
    assert left_in(folder) in ([], ["one"])
    await engine.stop(handle)


def _pid_of(host: ShimHost, handle: Handle, victim: str) -> int:
    if victim == "shim":
        return int(record_of(handle)["shim_pid"])
    (pid,) = host.processes(handle).values()
    return pid


async def test_killed_while_it_goes_on(host: ShimHost, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        await printed(first, "echo kept > /run/file")
        await engine.suspend(first, snapshot)
        for victim in ("shim", "emulator"):
            wanted = again(plan)
            going_on = asyncio.ensure_future(engine.restore(snapshot, wanted))
            handle = Handle(wanted.vm, wanted.epoch, host.data / "run" / wanted.vm)
            await eventually(lambda: host.is_running(wanted))  # noqa: B023 - at once
            os.kill(_pid_of(host, handle, victim), signal.SIGKILL)
            with pytest.raises(LaunchError):
                await within(30, going_on)
            assert not handle.run_directory.exists()
            assert not host.disk(handle.vm).exists()
        # It is as good as it was.
        async with gone_on(engine, snapshot, again(plan)) as second:
            assert await printed(second, "cat /run/file") == "kept\n"


async def test_what_is_damaged_is_refused(host: ShimHost, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        await engine.suspend(first, snapshot)
        for path in (snapshot / "memory", snapshot / "state", host.disk(first.vm)):
            about = path.stat()
            size = about.st_size
            os.truncate(path, size - 1)
            with pytest.raises(SnapshotError, match="damaged"):
                await engine.restore(snapshot, again(plan))
            os.truncate(path, size)
            if path.name != "state":
                # As long as before, and written to.
                with pytest.raises(SnapshotError, match="damaged"):
                    await engine.restore(snapshot, again(plan))
                os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
            else:
                _end_with(path, b"\0")
        (snapshot / "manifest.json").write_text("{}")
        with pytest.raises(SnapshotError, match="damaged"):
            await engine.restore(snapshot, again(plan))


def _end_with(path: Path, last: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + last)


async def test_another_machine_is_refused(host: ShimHost, engine: Engine, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with launched(engine, plan) as first:
        await engine.suspend(first, snapshot)
        with pytest.raises(SnapshotError, match="memory_mb"):
            await engine.restore(snapshot, replace(again(plan), memory_mb=256))
        with pytest.raises(LaunchError, match="id of its own"):
            await engine.restore(snapshot, plan)
        manifest = json.loads((snapshot / "manifest.json").read_text())
        manifest["facts"]["qemu"] = "6.2.0"
        (snapshot / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(SnapshotError, match="another QEMU: start from the disk"):
            await engine.restore(snapshot, again(plan))


async def test_a_later_daemon_goes_on_from_it(host: ShimHost, snapshots: Path) -> None:
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with host.engine() as earlier:
        first = await earlier.launch(plan)
        await printed(first, "echo kept > /run/file")
        await earlier.suspend(first, snapshot)
    async with host.engine() as later:
        assert await later.sweep(frozenset([first.vm])) == []
        async with gone_on(later, snapshot, again(plan)) as second:
            assert await printed(second, "cat /run/file") == "kept\n"
        await later.stop(first)


async def test_one_that_booted_is_saved_too(host: ShimHost, snapshots: Path) -> None:
    """Without a template its memory is all its own."""
    plan, snapshot = host.plan(), snapshots / "snapshot"
    async with host.engine(clone_s=0.001) as engine, launched(engine, plan) as first:
        await printed(first, "echo kept > /run/file")
        await engine.suspend(first, snapshot)
        async with host.engine() as usual, gone_on(usual, snapshot, again(plan)) as second:
            assert await printed(second, "cat /run/file") == "kept\n"
    assert disk_files.UNFINISHED not in left_in(snapshots)
