"""Layers made of directories and archives: whole and durable, or nothing is left."""

import asyncio
import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from magsd.model.errors import CapacityError, InvalidError, MagsError
from magsd.storage.layers import LayerStore, TarLimits
from magsd.storage.pipelines import Command, run_pipeline
from tests.integration.storage.held_parts import packed

LARGE = os.urandom(3 << 20)


async def stream(*entries, content=b"x"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    whole = buffer.getvalue()
    for at in range(0, len(whole), 1000):
        yield whole[at : at + 1000]


async def test_a_directory_becomes_the_same_layer_each_time(layers, upper):
    one = await packed(layers, upper, a=LARGE, b=b"small")
    path = layers.path(one.sha256)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == one.sha256
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (one.size_bytes, 0o400)
    inode = path.stat().st_ino
    assert await packed(layers, upper) == one
    assert path.stat().st_ino == inode
    (upper / "b").write_bytes(b"other")
    assert await packed(layers, upper) != one


async def test_nothing_makes_no_layer(layers, upper):
    assert await layers.pack_directory(upper) is None
    assert await layers.pack_tar(stream(), TarLimits()) is None


async def test_a_directory_is_found_by_a_descriptor_of_this_process(layers, upper):
    (upper / "a").write_text("content")
    descriptor = os.open(upper, os.O_PATH)
    try:
        by_descriptor = await layers.pack_directory(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    assert by_descriptor == await layers.pack_directory(upper)


async def test_a_directory_that_is_gone(layers, upper):
    with pytest.raises(MagsError, match="cannot be read"):
        await layers.pack_directory(upper / "gone")


async def test_an_archive_that_is_refused_leaves_nothing(layers, tmp_path):
    assert await layers.pack_tar(stream("a"), TarLimits()) is not None
    before = sorted((tmp_path / "data/layers").iterdir())
    for hostile in (stream("../a"), stream("a", "a")):
        with pytest.raises(InvalidError, match="the entry"):
            await layers.pack_tar(hostile, TarLimits())
    assert sorted((tmp_path / "data/layers").iterdir()) == before


async def test_a_refused_archive_is_not_waited_for(layers):
    """Also when whoever sends it goes silent."""

    async def silent():
        async for piece in stream("../a", content=b"x" * 100):
            yield piece
        yield bytes(1 << 20)
        await asyncio.Event().wait()

    async with asyncio.timeout(30):
        with pytest.raises(InvalidError):
            await layers.pack_tar(silent(), TarLimits())


async def test_an_archive_that_breaks_off(layers):
    async def broken():
        async for piece in stream("a", content=LARGE):
            yield piece
            raise ConnectionError("the guest is gone")

    with pytest.raises(ConnectionError, match="the guest is gone"):
        await layers.pack_tar(broken(), TarLimits())


def children():
    """The processes that this one has begun and not reaped."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


async def test_programs_do_not_wait_for_each_other_all_the_time(tmp_path):
    """Pipes that are wide for them; what they hold is told by the one in the middle."""
    told = tmp_path / "told"
    look = (
        "import fcntl, sys; held = [fcntl.fcntl(each, fcntl.F_GETPIPE_SZ) for each in (0, 1)]; "
        "open(sys.argv[1], 'w').write(str(min(held)))"
    )

    async def nothing():
        yield b"x"

    commands = [Command([sys.executable, "-c", look, str(told)]), Command(["cat"])]
    ended = await run_pipeline(commands, nothing())
    assert [each.exit_code for each in ended] == [0, 0]
    assert int(told.read_text()) == 1 << 20


async def test_a_cancelled_pack_leaves_no_process(layers, tmp_path):
    is_reading = asyncio.Event()

    async def endless():
        async for piece in stream("a"):
            yield piece
            is_reading.set()
            await asyncio.Event().wait()

    before = children()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(layers.pack_tar(endless(), TarLimits()))
        await is_reading.wait()
        task.cancel()
    assert [path.suffix for path in (tmp_path / "data/layers").glob("*.sqfs")] == []
    assert children() <= before


async def test_a_machine_without_memory_is_told_from_changes_that_cannot_be_packed(layers):
    """The kernel kills whoever is largest; nobody is to lose changes for that."""
    before = children()

    async def interrupted():
        async for piece in stream("a"):
            yield piece
            for pid in children() - before:
                os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(CapacityError, match="memory"):
        await layers.pack_tar(interrupted(), TarLimits())


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOSPC, errno.ENOENT])
async def test_a_program_that_cannot_be_started(layers, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refused)
    expected = MagsError if number == errno.ENOENT else CapacityError
    with pytest.raises(MagsError) as caught:
        await layers.pack_tar(stream("a"), TarLimits())
    assert type(caught.value) is expected


async def test_what_a_dead_process_left_half_done_is_cleared(tmp_path, objects, clock):
    staging = tmp_path / "data/layers/.staging"
    (staging / "old").mkdir(parents=True)
    (staging / "old/packed").write_bytes(b"half")
    LayerStore(tmp_path / "data", objects, clock, cache_bytes=0)
    assert list(staging.iterdir()) == []
