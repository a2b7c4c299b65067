"""Templates: made once, used again, made anew when anything they depend on changes."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from magsd.engine.qemu import QemuEngine
from magsd.engine.templates import Templates
from magsd.guest import streams
from magsd.guest.shim import ShimError
from magsd.model.errors import LaunchError
from tests.conformance.qemu_host import QemuHost
from tests.conformance.vm import connected, eventually, introduced, printed, within

pytestmark = pytest.mark.parametrize("host", ["qemu"], indirect=True)

UPTIME = "cut -d. -f1 /proc/uptime"


def folders(host: QemuHost) -> list[Path]:
    folder = host.data / "templates"
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


async def kept(host: QemuHost) -> Path:
    """Return the folder of the usual plan's template, once it is whole."""
    return Path(await eventually(host.template))


async def test_clones_share_nothing_that_is_secret(host: QemuHost, engine: QemuEngine) -> None:
    handles = [await engine.launch(host.plan()) for _ in range(3)]
    await asyncio.gather(*(introduced(handle, host.clock) for handle in handles))
    secret = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/boot_id"
    told = await asyncio.gather(*(printed(handle, secret) for handle in handles))
    assert len(set(told)) == 3
    assert len({line for each in told for line in each.splitlines()}) == 6
    for handle in handles:
        await engine.stop(handle)


async def test_what_one_writes_no_other_sees(host: QemuHost, engine: QemuEngine) -> None:
    first = await engine.launch(host.plan())
    assert await printed(first, "echo mine > /root/file; sync; cat /root/file") == "mine\n"
    second = await engine.launch(host.plan())
    assert await printed(second, "ls -A /root; cat /root/file 2>&1 | wc -l") == await printed(
        second, "ls -A /root; echo 1"
    )
    await engine.stop(first)
    third = await engine.launch(host.plan())
    assert "file" not in await printed(third, "ls /root")
    await engine.stop(second)
    await engine.stop(third)


async def test_the_clock_is_right(host: QemuHost, engine: QemuEngine) -> None:
    await engine.stop(await engine.launch(host.plan()))
    handle = await engine.launch(host.plan())
    await introduced(handle, host.clock)
    before = time.time()
    told = float(await printed(handle, "date +%s.%N"))
    assert before - 0.5 < told < time.time() + 0.5
    await engine.stop(handle)


async def test_a_template_is_kept_for_a_later_daemon(host: QemuHost) -> None:
    async with host.engine() as earlier:
        await earlier.stop(await earlier.launch(host.plan()))
        folder = await kept(host)
    made = (folder / "manifest.json").stat().st_mtime_ns
    async with host.engine() as later:
        handle = await later.launch(host.plan())
        assert await printed(handle, "echo well") == "well\n"
        await later.stop(handle)
    assert (folder / "manifest.json").stat().st_mtime_ns == made


@pytest.mark.parametrize("name", ["memory", "state", "disk", "manifest.json"])
async def test_a_damaged_one_is_made_anew(host: QemuHost, name: str) -> None:
    async with host.engine() as earlier:
        await earlier.stop(await earlier.launch(host.plan()))
        folder = await kept(host)
    size_bytes = (folder / name).stat().st_size
    # Others' file is the same by a link.
    (folder / name).unlink()
    (folder / name).touch()
    os.truncate(folder / name, size_bytes // 2)
    damaged = (folder / "manifest.json").stat().st_mtime_ns
    async with host.engine() as later:
        handle = await later.launch(host.plan())
        assert await printed(handle, "echo well") == "well\n"
        await later.stop(handle)
        await eventually(lambda: (folder / "manifest.json").exists())
    assert (folder / "manifest.json").stat().st_mtime_ns != damaged


async def test_one_of_another_build_is_not_used(host: QemuHost) -> None:
    async with host.engine() as earlier:
        await earlier.stop(await earlier.launch(host.plan()))
        folder = await kept(host)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["facts"]["qemu"] = "6.0.0"
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    async with host.engine() as later:
        # It can serve nobody here any more.
        assert not folder.exists()
        handle = await later.launch(host.plan())
        assert await printed(handle, "echo well") == "well\n"
        await later.stop(handle)


async def test_each_size_has_its_own(host: QemuHost, engine: QemuEngine) -> None:
    for changes, check in (
        ({"memory_mb": 256}, "awk '/MemTotal/ {print ($2 < 262144)}' /proc/meminfo"),
        ({"vcpus": 2.0}, "nproc | grep -c 2"),
        ({"disk_gb": 3}, "df -BG --output=size / | grep -c 3G"),
        ({"network": False}, "ip -br -4 addr | grep -vc ' UP '"),
    ):
        handle = await engine.launch(host.plan(**changes))
        assert await printed(handle, check) == "1\n", changes
        await engine.stop(handle)


async def test_many_wait_for_one(host: QemuHost, engine: QemuEngine) -> None:
    shutil.rmtree(host.data / "templates", ignore_errors=True)
    handles = await asyncio.gather(*(engine.launch(host.plan()) for _ in range(4)))
    ages = [int(await printed(handle, UPTIME)) for handle in handles]
    # All of them went on from the same machine.
    boots = await asyncio.gather(*(printed(handle, "dmesg | head -1") for handle in handles))
    assert len(set(boots)) == 1
    assert max(ages) < 120
    await kept(host)
    for handle in handles:
        await engine.stop(handle)


async def test_without_one_a_machine_boots(host: QemuHost, monkeypatch) -> None:
    shutil.rmtree(host.data / "templates", ignore_errors=True)

    async def never(self, plan):
        raise LaunchError("it never comes up")

    monkeypatch.setattr(Templates, "_made", never)
    async with host.engine() as engine:
        handle = await engine.launch(host.plan())
        assert await printed(handle, "echo well") == "well\n"
        await engine.stop(handle)
    assert folders(host) == []


async def test_a_template_that_is_given_up_leaves_nothing(host: QemuHost) -> None:
    shutil.rmtree(host.data / "templates", ignore_errors=True)
    async with host.engine() as engine:
        launching = asyncio.ensure_future(engine.launch(host.plan()))
        await eventually(lambda: list((host.data / "run").glob("*/sock")))
    with pytest.raises((LaunchError, asyncio.CancelledError)):
        await within(20, launching)
    assert list((host.data / "run").iterdir()) == []


async def test_an_emulator_that_is_killed_ends_its_vm(host: QemuHost, engine: QemuEngine) -> None:
    handle = await engine.launch(host.plan())
    pid = next(pid for name, pid in host.processes(handle).items() if name.startswith("qemu"))
    os.kill(pid, signal.SIGKILL)
    ended = await within(10, engine.wait(handle))
    assert ended.reason == "engine_died", ended
    await engine.stop(handle)


async def test_the_emulator_is_confined(host: QemuHost, engine: QemuEngine) -> None:
    handle = await engine.launch(host.plan())
    pid = next(pid for name, pid in host.processes(handle).items() if name.startswith("qemu"))
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    base = host.settings.vm_uid_base
    assert base < int(status["Uid"].split()[0]) < base + 65536
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert os.listdir(f"/proc/{pid}/root") == ["usr", "proc", "dev", "lib64", "lib"] or set(
        os.listdir(f"/proc/{pid}/root")
    ) == {"usr", "proc", "dev", "lib", "lib64"}
    shim = json.loads((handle.run_directory / "record.json").read_text())["uid"]
    assert int(status["Uid"].split()[0]) != shim
    await engine.stop(handle)


async def test_the_disk_ends_where_it_is_to(host: QemuHost, engine: QemuEngine) -> None:
    handle = await engine.launch(host.plan())
    disk = host.disk(handle.vm)
    script = (
        "dd if=/dev/zero of=/dev/vdb bs=1M count=1 seek=3000 2>&1; blockdev --getsize64 /dev/vdb"
    )
    told = await printed(handle, f"{script}; true")
    assert re.search(r"No space|Input/output|Invalid", told)
    assert told.splitlines()[-1] == str(2 << 30)
    assert disk.stat().st_size == 2 << 30
    await engine.stop(handle)


async def test_who_does_not_acknowledge_is_of_no_use(host: QemuHost, engine: QemuEngine) -> None:
    handle = await engine.launch(host.plan())
    async with connected(handle) as connection:
        with pytest.raises(ShimError):
            await streams.control(connection, "identity", entropy="no hex")
    await engine.stop(handle)
