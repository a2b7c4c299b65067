"""What a VM has changed, at one moment: what is in it, of what lives and of what has ended."""

import asyncio
import re
import time

import pytest

from magsd.engine import shim_engine
from magsd.engine.base import Engine, Handle
from magsd.engine.disks import Disks
from magsd.model.errors import LaunchError
from magsd.model.names import VmId
from tests.conformance.host import Host
from tests.conformance.shim_host import ShimHost
from tests.conformance.test_engine import LEFT_AFTER_STOP
from tests.conformance.tree import Entry, Tree, read
from tests.conformance.vm import begin, connected, eventually, printed, within

WRITE = "echo one > /root/file"


async def tree_of(engine: Engine, handle: Handle) -> Tree:
    async with engine.still(handle) as capture:
        return await within(60, read(capture))


def files(tree: Tree) -> dict[str, bytes]:
    return {path: entry.content for path, entry in tree.items() if entry.kind == "file"}


async def test_one_that_changed_nothing_has_changed_nothing(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    assert list(await tree_of(engine, handle)) == ["."]
    await engine.stop(handle, keep_changes=True)
    assert list(await tree_of(engine, handle)) == ["."]
    await engine.stop(handle)


async def test_what_a_live_one_has_written(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE)
    assert files(await tree_of(engine, handle)) == {"root/file": b"one\n"}
    # It goes on, and what it does then is not in what was captured before.
    async with engine.still(handle) as capture:
        await printed(handle, "echo two > /root/file; echo three > /root/other")
        assert files(await read(capture)) == {"root/file": b"one\n"}
    later = files(await tree_of(engine, handle))
    assert later == {"root/file": b"two\n", "root/other": b"three\n"}
    await engine.stop(handle)
    assert host.files(handle) == LEFT_AFTER_STOP


async def test_nothing_that_was_written_since_is_missed(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE)
    async with engine.still(handle) as first:
        stamp = first.stamp
    async with engine.still(handle, stamp) as same:
        assert same.is_unchanged or files(await read(same)) == {"root/file": b"one\n"}
    for content in ("two", "three"):
        await printed(handle, f"echo {content} > /root/file")
        async with engine.still(handle, stamp) as later:
            assert not later.is_unchanged
            assert files(await read(later)) == {"root/file": f"{content}\n".encode()}
            stamp = later.stamp
    await engine.stop(handle, keep_changes=True)
    assert files(await tree_of(engine, handle)) == {"root/file": b"three\n"}
    await engine.stop(handle)


@pytest.mark.parametrize("host", ["gvisor"], indirect=True)
async def test_what_wrote_nothing_is_not_read_again(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE)
    stamp, is_unchanged = "", False
    # A tick of the clock may be missed, and the filesystem itself write once more.
    for _ in range(5):
        async with engine.still(handle, stamp) as capture:
            stamp, is_unchanged = capture.stamp, capture.is_unchanged
        if is_unchanged:
            break
    assert is_unchanged
    await engine.stop(handle)


async def test_what_an_ended_one_has_written_is_kept(host: Host) -> None:
    async with host.engine() as earlier:
        handle = await earlier.launch(host.plan())
        await printed(handle, WRITE)
        await earlier.stop(handle, keep_changes=True)
        assert files(await tree_of(earlier, handle)) == {"root/file": b"one\n"}
    async with host.engine() as later:
        assert await later.adopt(handle.run_directory) is None
        for _ in range(2):
            assert await later.sweep(frozenset([handle.vm])) == []
            assert files(await tree_of(later, handle)) == {"root/file": b"one\n"}
            await later.stop(handle, keep_changes=True)
        await later.stop(handle)
        with pytest.raises(LookupError):
            await tree_of(later, handle)
        await later.stop(handle, keep_changes=True)
        assert host.files(handle) == LEFT_AFTER_STOP


async def test_one_that_has_ended_by_itself_is_kept(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE + "; sync; true")
    await host.lose_shim(handle)
    await within(5, engine.wait(handle))
    await engine.stop(handle, keep_changes=True)
    assert files(await tree_of(engine, handle)) == {"root/file": b"one\n"}
    await engine.stop(handle)


async def test_a_plain_stop_keeps_nothing(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE)
    await asyncio.gather(engine.stop(handle), engine.stop(handle, keep_changes=True))
    await engine.stop(handle)
    with pytest.raises(LookupError):
        await tree_of(engine, handle)


async def test_a_sweep_drops_what_nobody_keeps(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE)
    await engine.stop(handle, keep_changes=True)
    (line,) = await engine.sweep(frozenset())
    assert handle.vm in line
    with pytest.raises(LookupError):
        await tree_of(engine, handle)


async def test_one_that_is_given_up_leaves_a_vm_that_lives(host: Host, engine: Engine) -> None:
    handle = await engine.launch(host.plan())
    await printed(handle, WRITE)
    for turns in (0, 1, 10, 200, 1000):
        capturing = asyncio.ensure_future(tree_of(engine, handle))
        for _ in range(turns):
            await asyncio.sleep(0)
        capturing.cancel()
        await asyncio.wait([capturing])
        assert await within(10, printed(handle, "echo well > /root/file; cat /root/file")) == (
            "well\n"
        )
    assert files(await tree_of(engine, handle)) == {"root/file": b"well\n"}
    await engine.stop(handle)


class TestRealFiles:
    """What only a guest with a filesystem can change."""

    pytestmark = pytest.mark.parametrize("host", ["gvisor", "qemu"], indirect=True)

    CHANGES = """
    set -e
    cd /root
    mkdir -m 0751 folder
    echo content > folder/file
    ln folder/file folder/same
    ln -s 'no where' link
    chown 12:34 folder/file
    chmod 4711 folder/file
    touch -d @1600000000 folder/file
    printf x > "$(printf 'a\\nb\\377')"
    echo mine >> /etc/profile
    rm /etc/issue
    rm -r /etc/skel
    rm -r /etc/terminfo
    mkdir /etc/terminfo
    echo new > /etc/terminfo/new
    mv /etc/debian_version /etc/moved
    truncate -s 10G sparse
    printf begin | dd of=sparse conv=notrunc status=none
    """

    async def test_everything_is_as_it_was_made(self, host: Host, engine: Engine) -> None:
        handle = await engine.launch(host.plan())
        await printed(handle, self.CHANGES)
        live = await tree_of(engine, handle)
        await engine.stop(handle, keep_changes=True)
        ended = await tree_of(engine, handle)
        await engine.stop(handle)
        assert live == ended
        assert set(live) == {
            ".",
            "etc",
            "etc/debian_version",
            "etc/issue",
            "etc/moved",
            "etc/profile",
            "etc/skel",
            "etc/terminfo",
            "etc/terminfo/new",
            "root",
            "root/a\nb\udcff",
            "root/folder",
            "root/folder/file",
            "root/folder/same",
            "root/link",
            "root/sparse",
        }
        file = live["root/folder/file"]
        assert file == live["root/folder/same"]
        assert file == Entry(
            "file", 0o4711, (12, 34), 1_600_000_000, b"content\n", "root/folder/file"
        )
        assert (live["root/folder"].kind, live["root/folder"].mode) == ("folder", 0o751)
        assert (live["root/link"].kind, live["root/link"].content) == ("link", b"no where")
        for path in ("etc/issue", "etc/skel", "etc/debian_version"):
            assert live[path].kind == "whiteout"
        assert (live["etc/terminfo"].kind, live["etc/terminfo"].is_opaque) == ("folder", True)
        assert not live["etc"].is_opaque
        assert live["etc/profile"].content.endswith(b"mine\n")

    async def test_special_files_as_the_capabilities_say(self, host: Host, engine: Engine) -> None:
        handle = await engine.launch(host.plan())
        script = """
        cd /root; mkfifo fifo; echo x > file
        python3 -c 'import os; os.setxattr("file", "user.mine", b"a\\0b")' && echo set
        """
        told = await printed(handle, f"({script}) 2> /dev/null; true")
        tree = await tree_of(engine, handle)
        await engine.stop(handle)
        is_kept = engine.capabilities.special_files_kept
        assert ("root/fifo" in tree) == is_kept
        # What cannot be kept cannot be set.
        assert told == ("set\n" if is_kept else "")
        assert tree["root/file"].attributes == (
            frozenset([("user.mine", b"a\0b")]) if is_kept else frozenset()
        )

    async def test_it_is_one_moment(self, host: Host, engine: Engine) -> None:
        """A process writes a number to two files, in turn: in one moment they differ by one."""
        handle = await engine.launch(host.plan())
        script = """
        exec python3 -u -c '
        import os
        def put(name, number):
            with open(name + ".new", "w") as file:
                file.write(str(number))
            os.rename(name + ".new", name)
        number = 0
        while True:
            number += 1
            put("/root/a", number)
            put("/root/b", number)
            if number == 1: print("began")
        '"""
        async with connected(handle) as connection:
            await begin(connection, re.sub("^        ", "", script, flags=re.MULTILINE))
            seen = []
            for _ in range(3):
                found = files(await tree_of(engine, handle))
                first, second = int(found["root/a"]), int(found["root/b"])
                assert first - second in (0, 1)
                seen.append(first)
            # It went on each time.
            assert seen == sorted(set(seen))
        await engine.stop(handle)

    async def test_one_whose_copy_takes_longer_than_it_is_usually_held(
        self, host: Host, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = await engine.launch(host.plan())
        await printed(handle, WRITE)
        copies = []
        copy_unnamed = Disks.copy_unnamed

        def slow(disks: Disks, vm: VmId, image: int) -> int:
            copy = copy_unnamed(disks, vm, image)
            time.sleep(0.5)  # As a disk in a great many pieces would take.
            copies.append(copy)
            return copy

        monkeypatch.setattr(Disks, "copy_unnamed", slow)
        assert files(await tree_of(engine, handle)) == {"root/file": b"one\n"}
        # The second time it is held for as long as that takes.
        assert len(copies) == 2
        await engine.stop(handle)

    async def test_what_it_deletes_is_given_back_to_the_host(
        self, host: Host, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(host, ShimHost)
        monkeypatch.setattr(shim_engine, "_GIVE_BACK_S", 0.2)
        handle = await engine.launch(host.plan())
        image = host.disk(handle.vm)
        await printed(handle, "dd if=/dev/urandom of=/root/large bs=1M count=64 2>&1; sync; true")
        assert image.stat().st_blocks > 64 << 11
        await printed(handle, "rm /root/large; sync; true")
        await eventually(lambda: image.stat().st_blocks < 32 << 11)
        await engine.stop(handle)

    async def test_a_disk_that_was_tampered_with(self, host: Host, engine: Engine) -> None:
        """Nothing of what an image holds leads the host elsewhere."""
        handle = await engine.launch(host.plan())
        await engine.stop(handle, keep_changes=True)
        assert isinstance(host, ShimHost)
        image = host.disk(handle.vm)
        for content in ("link", "nothing", "garbage"):
            await make_image(image, content)
            with pytest.raises(LaunchError):
                await tree_of(engine, handle)
        await engine.stop(handle)


async def make_image(image, content: str) -> None:
    size = image.stat().st_size
    image.unlink()
    with image.open("wb") as file:
        file.truncate(size)
        if content == "garbage":
            file.write(b"\xa5" * 65536)
            return
    await run("mkfs.ext4", "-q", "-F", str(image))
    if content == "link":
        await run("debugfs", "-w", "-R", "symlink upper /etc", str(image))


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
