"""Programs that somebody talks to, with and without a terminal: the real agent and shim."""

import asyncio
import os
import signal
import struct

import pytest

from magsd.guest import streams
from magsd.guest.process import Terminal, spawn
from magsd.guest.wire import Channel
from tests.integration.shim_process import DEADLINE_S, ShimProcess

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PS1": "", "ENV": ""}
XTERM = Terminal("xterm-256color", 100, 30)


@pytest.fixture
async def vm(tmp_path):
    """A connection to a VM that sees the host's files; its end ends every wait."""
    async with await ShimProcess.open(tmp_path) as shim:
        loop = asyncio.get_running_loop()
        too_late = loop.call_later(DEADLINE_S, os.kill, shim.pid, signal.SIGKILL)
        yield await shim.connect()
        too_late.cancel()


async def start(vm, script, terminal=XTERM, **options):
    argv = ["/bin/sh", "-c", script]
    return await spawn(vm, argv, environment=ENVIRONMENT, terminal=terminal, **options)


async def read_until(process, text):
    content = b""
    while text not in content:
        piece = await process.read_any()
        assert piece is not None, content
        assert piece[0] is Channel.OUT
        content += piece[1]
    return content


async def finish(process):
    """Return what a program printed, both channels, and its exit code."""
    content = {Channel.OUT: b"", Channel.ERR: b""}
    async with process:
        while piece := await process.read_any():
            content[piece[0]] += piece[1]
        code = os.waitstatus_to_exitcode(await process.wait())
    return content[Channel.OUT], content[Channel.ERR], code


async def test_a_terminal_is_one(vm):
    script = "tty; stty size; echo $TERM; echo err >&2; test -t 0 && test -t 1 && test -t 2; exit 3"
    out, err, code = await finish(await start(vm, script))
    name, size, *rest = out.split(b"\r\n")
    assert name.startswith(b"/dev/pts/")
    assert (size, rest, err, code) == (b"30 100", [b"xterm-256color", b"err", b""], b"", 3)


async def test_a_session_of_its_own(vm):
    script = "ps -o sid=,pgid=,tpgid=,pid= -p $$; : > /dev/tty && echo controlled"
    out, _, code = await finish(await start(vm, script))
    ids, said, _ = out.split(b"\r\n")
    assert len(set(ids.split())) == 1
    assert (said, code) == (b"controlled", 0)


async def test_without_a_terminal_channels_are_apart(vm):
    process = await start(vm, "test -t 0 || cat; echo err >&2", terminal=None)
    await process.write(b"typed")
    await process.write_eof()
    assert await finish(process) == (b"typed", b"err\n", 0)


async def test_a_dialogue(vm):
    process = await start(vm, "while read line; do echo got $line; done; echo over")
    await process.write(b"one\n")
    assert b"got one" in await read_until(process, b"got one\r\n")
    await process.write_eof()
    out, _, code = await finish(process)
    assert out.endswith(b"over\r\n")
    assert code == 0


async def test_the_keyboard_interrupts(vm):
    process = await start(vm, "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done")
    await read_until(process, b"ready")
    await process.write(b"\x03")
    out, _, code = await finish(process)
    assert b"^C" in out
    assert code == 9


async def test_a_signal_goes_to_the_foreground(vm):
    script = "set -m; (trap 'echo caught; exit 5' TERM; echo ready; sleep 1000 & wait); echo $?"
    process = await start(vm, script)
    await read_until(process, b"ready")
    await process.signal(signal.SIGTERM)
    out, _, code = await finish(process)
    assert (out, code) == (b"caught\r\n5\r\n", 0)


async def test_a_signal_ends_it(vm):
    process = await start(vm, "echo ready; exec sleep 1000")
    await read_until(process, b"ready")
    await process.signal(signal.SIGKILL)
    assert await finish(process) == (b"", b"", -signal.SIGKILL)


async def test_a_new_size_is_told(vm):
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    process = await start(vm, script)
    await read_until(process, b"ready\r\n")
    await process.resize(132, 50)
    out, _, code = await finish(process)
    assert (out, code) == (b"50 132\r\n", 0)


async def test_sizes_that_are_none(vm):
    process = await start(vm, "echo ready; read x; stty size", Terminal("vt100", -1, 1 << 20))
    await read_until(process, b"ready\r\n")
    await process.resize(70000, -5)
    await process.write(b"\n")
    out, _, code = await finish(process)
    assert (out.split(b"\r\n")[-2], code) == (b"0 65535", 0)


async def test_modes_are_the_clients(vm):
    modes = b"".join(
        struct.pack(">BI", *mode) for mode in [(1, 7), (53, 0), (72, 0), (200, 1), (50, 0), (0, 0)]
    )
    process = await start(vm, "stty -a", Terminal("xterm", modes=modes))
    out, _, _ = await finish(process)
    assert b"intr = ^G" in out
    words = out.replace(b";", b"").split()
    assert {b"-echo", b"-onlcr", b"isig"} <= set(words)  # what is behind an unknown form is not


@pytest.mark.parametrize("modes", [b"\x01", b"\x01\0\0", b"\xff" * 999, bytes(2000), b"\x35"])
async def test_modes_that_are_none(vm, modes):
    out, _, code = await finish(await start(vm, "echo fine", Terminal("xterm", modes=modes)))
    assert (out, code) == (b"fine\r\n", 0)


async def test_all_output_comes_before_the_end(vm):
    out, _, code = await finish(await start(vm, "seq 1 20000; exit 4"))
    assert out.split() == [str(number).encode() for number in range(1, 20001)]
    assert code == 4


async def test_output_that_is_not_read_waits(vm):
    process = await start(vm, "yes")
    assert await process.read_any() is not None
    done = await streams.run(vm, ["echo", "on"], environment=ENVIRONMENT)
    assert done.stdout == b"on\n"
    await process.aclose()


async def test_what_stays_behind_does_not_hold_it(vm, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = f"nohup sh -c 'exec 3>{tmp_path}/fifo; sleep 1000' & exec 4<{tmp_path}/fifo; echo gone"
    out, _, code = await finish(await start(vm, script))
    assert b"gone" in out
    assert code == 0


async def test_a_closed_stream_hangs_up(vm, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = f"trap 'echo hung up >&5; exit' HUP; exec 5>{tmp_path}/fifo; echo ready; read line"
    process = await start(vm, script)
    with await asyncio.to_thread(open, tmp_path / "fifo", "rb") as fifo:
        await read_until(process, b"ready")
        await process.aclose()
        assert await asyncio.to_thread(fifo.read) == b"hung up\n"


async def test_who_does_not_hang_up_is_killed(vm, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = f"trap '' HUP; exec 5>{tmp_path}/fifo; echo ready; while :; do sleep 0.1; done"
    process = await start(vm, script)
    with await asyncio.to_thread(open, tmp_path / "fifo", "rb") as fifo:
        await read_until(process, b"ready")
        await process.aclose()
        # Open for writing as long as anyone of the group lives.
        assert await asyncio.to_thread(fifo.read) == b""


async def test_a_login_shell(vm):
    process = await start(vm, "echo $0", terminal=None, login_name="-sh", cwd="/usr")
    assert await finish(process) == (b"-sh\n", b"", 0)


async def test_a_program_that_is_not_there(vm):
    process = await spawn(vm, ["no-such-program"], environment=ENVIRONMENT, terminal=XTERM)
    out, err, code = await finish(process)
    assert b"no-such-program" in out
    assert (err, code) == (b"", 127)


async def test_many_terminals(vm):
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(finish(await start(vm, f"stty size; echo {number}")))
            for number in range(40)
        ]
    assert [task.result()[0] for task in tasks] == [
        f"30 100\r\n{number}\r\n".encode() for number in range(40)
    ]
