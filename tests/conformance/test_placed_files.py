"""Uploads in a guest: in `/root`, shown in `/uploads`, and nothing else of what it changed."""

import hashlib
import os
from pathlib import Path

import pytest

from magsd.core import launch
from magsd.core.placed_files import LocalFile, place_files
from magsd.engine.base import Engine
from magsd.guest.shim import ShimConnection
from magsd.model.errors import LaunchError
from magsd.model.quota import Limits, completed
from magsd.model.records import JobSpec
from tests.conformance.roots import WITH_ROOTS
from tests.conformance.shim_host import ShimHost
from tests.conformance.vm import journaled, printed, within

pytestmark = pytest.mark.parametrize("host", WITH_ROOTS, indirect=True)

CONTENT = os.urandom(5_000_000)
NAME = "näh er.bin"
LOOK = """\
cd /uploads && sha256sum "näh er.bin" | cut -d' ' -f1
wc -c < /root/empty
ls -A /uploads /root | sort
stat -c '%a %u %F' /root/empty
"""


@pytest.fixture
def files(tmp_path: Path) -> list[LocalFile]:
    (tmp_path / "1").write_bytes(CONTENT)
    (tmp_path / "2").write_bytes(b"")
    return [
        LocalFile(NAME, tmp_path / "1", len(CONTENT)),
        LocalFile("empty", tmp_path / "2", 0),
    ]


def seen(output: bytes) -> None:
    digest, size, *names, kind = output.decode().splitlines()
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert size == "0"
    assert [name for name in names if name in (NAME, "empty")] == ["empty"] * 2 + [NAME] * 2
    assert kind == "644 0 regular empty file"


async def test_a_script_finds_its_files(
    host: ShimHost, engine: Engine, files: list[LocalFile]
) -> None:
    plan = host.plan()
    spec = completed(JobSpec(LOOK), Limits())
    connection = await launch.start(engine, plan, spec, host.clock, files)
    try:
        state = await within(60, connection.exited(launch.SCRIPT_STREAM))
    finally:
        await connection.aclose()
    handle = await engine.adopt(host.data / "run" / plan.vm)
    assert handle is not None
    assert state.wait_status == 0, journaled(handle, channel=2)
    seen(journaled(handle, channel=1))
    await engine.stop(handle)


async def test_a_vm_that_waited_has_them_too_and_uploads_is_no_part_of_its_disk(
    host: ShimHost, engine: Engine, files: list[LocalFile]
) -> None:
    handle = await engine.launch(host.plan(waits=True))
    connection = await ShimConnection.open(handle.run_directory)
    await launch.hold(connection, "mags-waiting", host.clock)
    await launch.warm(connection, engine.capabilities)
    spec = completed(JobSpec(f"{LOOK}touch /uploads/mine; df /uploads | tail -1 >&2"), Limits())
    await launch.begin(engine, handle, connection, spec, host.clock, files)
    try:
        state = await within(60, connection.exited(launch.SCRIPT_STREAM))
    finally:
        await connection.aclose()
    assert state.wait_status == 0, journaled(handle, channel=2)
    seen(journaled(handle, channel=1))
    assert await printed(handle, "stat -c %d /uploads") == await printed(
        handle, "stat -c %d /run/mags"
    )
    await engine.stop(handle)


async def test_a_file_that_has_no_place_is_named(
    host: ShimHost, engine: Engine, files: list[LocalFile]
) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, f"mkdir '/root/{NAME}'")
    connection = await ShimConnection.open(handle.run_directory)
    try:
        with pytest.raises(LaunchError, match=f"'{NAME}'"):
            await place_files(connection, files)
    finally:
        await connection.aclose()
    await engine.stop(handle)
