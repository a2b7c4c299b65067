"""What an agent can be asked, with the real agent behind the real shim."""

import asyncio
import contextlib
import hashlib
import os
import signal
from contextlib import aclosing

import pytest
import uvloop

from magsd.guest import streams
from magsd.guest.journal import JournalReader
from magsd.guest.shim import ShimError
from magsd.guest.wire import WINDOW_BYTES, Channel, pack_fields
from tests.integration.shim_process import DEADLINE_S, ShimProcess

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
BIG = os.urandom(1 << 16) * 50 + b"and a bit"


@pytest.fixture
async def vm(tmp_path):
    """A connection to a VM that sees the host's files; its end ends every wait."""
    async with await ShimProcess.open(tmp_path) as shim:
        loop = asyncio.get_running_loop()
        too_late = loop.call_later(DEADLINE_S, os.kill, shim.pid, signal.SIGKILL)
        yield await shim.connect()
        too_late.cancel()


def exec_of(script, **more):
    pairs = [("arg", "/bin/sh"), ("arg", "-c"), ("arg", script), ("env", "PATH=/usr/bin:/bin")]
    return pack_fields("exec", [*pairs, *more.items()])


async def sh(vm, script, **options):
    return await streams.run(vm, ["sh", "-c", script], environment=ENVIRONMENT, **options)


async def test_a_command_prints_and_ends(vm):
    done = await sh(vm, "echo out; echo err >&2; pwd; exit 3", cwd="/usr")
    assert done == streams.ExecResult(3 << 8, b"out\n/usr\n", b"err\n", False)


async def test_the_environment_is_exactly_what_is_given(vm):
    done = await streams.run(vm, ["/usr/bin/env"], environment={"A": "x=y\nz", "B": ""})
    assert sorted(done.stdout.splitlines()) == [b"A=x=y", b"B=", b"z"]


async def test_a_command_that_is_not_there(vm):
    done = await streams.run(vm, ["no-such-program"], environment=ENVIRONMENT)
    assert os.waitstatus_to_exitcode(done.wait_status) == 127
    assert b"no-such-program" in done.stderr


async def test_a_command_that_a_signal_ends(vm):
    assert os.waitstatus_to_exitcode((await sh(vm, "kill -9 $$")).wait_status) == -9


async def test_input_comes_out_again(vm):
    done = await streams.run(vm, ["cat"], environment=ENVIRONMENT, stdin=BIG)
    assert (done.stdout, done.is_truncated) == (BIG, False)


async def test_a_command_that_leaves_its_input_alone(vm):
    assert (await sh(vm, "exec 0<&-; exit 0", stdin=BIG)).wait_status == 0


async def test_output_beyond_the_limit_is_dropped_not_waited_for(vm):
    script = "head -c 3000000 /dev/zero; head -c 10 /dev/zero >&2"
    done = await sh(vm, script, output_max=1000)
    assert (len(done.stdout), len(done.stderr), done.is_truncated) == (1000, 10, True)


async def test_a_file_goes_in_and_out(vm, tmp_path):
    path = str(tmp_path / "deep/er/file")
    await streams.write_file(vm, path, BIG, mode=0o640)
    assert (tmp_path / "deep/er/file").stat().st_mode & 0o7777 == 0o640
    digest = hashlib.sha256()
    async for piece in streams.read_file(vm, path):
        assert len(piece) <= WINDOW_BYTES
        digest.update(piece)
    assert digest.digest() == hashlib.sha256(BIG).digest()


async def test_an_empty_file(vm, tmp_path):
    await streams.write_file(vm, str(tmp_path / "empty"), b"")
    assert (tmp_path / "empty").read_bytes() == b""
    assert [piece async for piece in streams.read_file(vm, str(tmp_path / "empty"))] == []


async def test_content_that_breaks_off_leaves_the_file_as_it_was(vm, tmp_path):
    async def broken():
        yield b"new"
        raise LookupError

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(LookupError):
        await streams.write_file(vm, str(tmp_path / "file"), broken())
    assert (await sh(vm, f"ls -A {tmp_path} | grep -c file")).stdout == b"1\n"
    assert (tmp_path / "file").read_bytes() == b"old"


async def test_files_that_cannot_be_had(vm, tmp_path):
    with pytest.raises(ShimError, match="No such file"):
        await anext(streams.read_file(vm, str(tmp_path / "none")))
    with pytest.raises(ShimError, match="Is a directory"):
        await anext(streams.read_file(vm, str(tmp_path)))
    with pytest.raises(ShimError, match=r"."):
        await streams.write_file(vm, "/proc/none/file", BIG)


async def test_control(vm):
    stats = await streams.control(vm, "stats")
    assert stats.number("processes") >= 0
    assert stats.get("cpu_ns")
    with pytest.raises(ShimError, match="no-such-thing"):
        await streams.control(vm, "no-such-thing")


async def test_what_is_not_asked_for_by_any_word(vm):
    async with await vm.open_stream(pack_fields("dance")) as stream:
        with pytest.raises(ShimError, match=r"."):
            await stream.exit()


async def test_a_cancelled_command_is_killed(vm, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    # The FIFO is open for writing as long as the command and its child live.
    running = asyncio.create_task(sh(vm, f"exec 3>{tmp_path}/fifo; sleep 1000 & sleep 1000"))
    with await asyncio.to_thread(open, tmp_path / "fifo", "rb") as fifo:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await asyncio.to_thread(fifo.read) == b""
    assert (await sh(vm, "echo usable")).stdout == b"usable\n"


async def test_a_stream_that_is_not_read_holds_no_other(vm):
    async with await vm.open_stream(exec_of("yes")) as stalled:
        assert await stalled.read() != b""
        for number in range(5):
            assert (await sh(vm, f"echo {number}")).stdout == f"{number}\n".encode()
        assert await stalled.read() != b""


async def test_a_dialogue_and_a_signal(vm):
    script = "trap 'echo caught; exit 4' TERM; while read line; do echo got $line; done"
    async with await vm.open_stream(exec_of(script, stdin="open")) as stream:
        for word in (b"one", b"two"):
            await stream.write(word + b"\n")
            assert await stream.read() == b"got " + word + b"\n"
        await stream.signal(15)
        assert await stream.read() == b"caught\n"
        assert await stream.read(Channel.ERR) == b""
        assert os.waitstatus_to_exitcode((await stream.exit()).value) == 4


async def test_many_at_once(vm):
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(sh(vm, f"head -c {number * 10_000} /dev/zero | wc -c"))
            for number in range(30)
        ]
    counts = [int(task.result().stdout) for task in tasks]
    assert counts == [number * 10_000 for number in range(30)]


async def test_streams_end_with_their_connection_and_durable_ones_do_not(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    async with await ShimProcess.open(tmp_path) as shim, asyncio.timeout(DEADLINE_S):
        first = await shim.connect()
        script = f"echo begun; cat {tmp_path}/fifo"
        await first.open_durable(1, exec_of(script))
        await first.journal_grown(0)
        stream = await first.open_stream(exec_of("sleep 1000"))
        await first.aclose()
        with pytest.raises(ShimError):
            await stream.exit()

        second = await shim.connect()
        assert not second.durable(1).is_over
        await asyncio.to_thread((tmp_path / "fifo").write_bytes, b"after\n")
        ended = await second.exited(1)
        assert (ended.wait_status, ended.out_bytes) == (0, len(b"begun\nafter\n"))
        records, _ = JournalReader(tmp_path).read(0)
        assert b"".join(one.payload for one in records if one.kind == 1) == b"begun\nafter\n"
        assert JournalReader(tmp_path).end() == second.journal_end


async def test_the_end_of_the_vm_ends_all(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim, asyncio.timeout(DEADLINE_S):
        connection = await shim.connect()
        async with aclosing(streams.read_file(connection, "/dev/null")) as reading:
            with contextlib.suppress(ShimError, StopAsyncIteration):
                await anext(reading)
        running = asyncio.create_task(sh(connection, "sleep 1000"))
        with pytest.raises(ShimError):
            await connection.request("kill")
        with pytest.raises(ShimError):
            await running
        await connection.closed()


def test_on_uvloop(tmp_path):
    """The daemon's own event loop."""

    async def talk():
        async with await ShimProcess.open(tmp_path) as shim, asyncio.timeout(DEADLINE_S):
            vm = await shim.connect()
            done = await streams.run(vm, ["cat"], environment=ENVIRONMENT, stdin=BIG)
            assert done.stdout == BIG
            await streams.write_file(vm, str(tmp_path / "file"), BIG)
            read = [piece async for piece in streams.read_file(vm, str(tmp_path / "file"))]
            assert b"".join(read) == BIG

    uvloop.run(talk())
