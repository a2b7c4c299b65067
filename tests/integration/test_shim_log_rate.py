"""A bound on what durable streams print: who floods waits, and nobody else does.

That it is neither more nor less than the rate, by a clock that is moved, is shown
by `guest/fuzz/fuzz_log_rate.c`.
"""

import asyncio
import os
import signal

from magsd.guest import streams
from magsd.guest.journal import JournalReader
from magsd.guest.state import read_stream
from magsd.guest.wire import Channel
from tests.integration.shim_process import DEADLINE_S, ShimProcess, journaled, killed, shell

PATH = {"PATH": "/usr/bin:/bin"}
FIRST_CREDIT = 256 << 10
WINDOW = 1 << 20
BURST_MIN = 64 << 10
FLOOD = "exec cat /dev/zero"
HARDLY = 1
"""A rate (bytes a second) at which a flood's first credit is all there is during a test."""


async def limited(directory, rate: int, burst: int = BURST_MIN) -> ShimProcess:
    return await ShimProcess.open(directory, steps=[("log_rate", f"{rate}:{burst}")])


async def held(shim: ShimProcess, stream: int = 1) -> None:
    """Wait until a stream has used up its first credit."""
    while len(journaled(shim.directory, stream)) < FIRST_CREDIT:
        await shim.control.journal_grown(shim.control.journal_end)


async def test_a_flood_is_no_faster_than_the_rate_and_whole(tmp_path):
    size, rate, burst = 200_000_000, 100_000_000, 8 << 20
    async with await limited(tmp_path, rate, burst) as shim:
        await shim.control.open_durable(1, shell(f"exec head -c {size} /dev/zero"))
        state = await shim.control.exited(1)
        assert (state.wait_status, state.out_bytes, state.err_bytes) == (0, size, 0)
        began_ns = read_stream(tmp_path, 1).opened_ns
        reader, position, last = JournalReader(tmp_path), 0, 0
        while records := reader.read(position)[0]:
            position = records[-1].end_position
            for record in (record for record in records if record.kind == 1):
                last = record.offset + len(record.payload)
                assert last <= burst + 2 * WINDOW + rate * (record.at_ns - began_ns) / 1e9
        assert last == size


async def test_more_than_the_burst_comes_in_time(tmp_path):
    size = 700_000
    async with await limited(tmp_path, 1 << 20) as shim:
        script = f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2; exit 3"
        await shim.control.open_durable(1, shell(script))
        state = await shim.control.exited(1)
        assert os.waitstatus_to_exitcode(state.wait_status) == 3
        assert (state.out_bytes, state.err_bytes) == (size, size)
        for channel in (Channel.OUT, Channel.ERR):
            assert len(journaled(tmp_path, 1, channel)) == size


async def test_others_answer_while_output_is_held_back(tmp_path):
    async with await limited(tmp_path, HARDLY) as shim:
        await shim.control.open_durable(1, shell(FLOOD))
        await held(shim)
        result = await streams.run(
            shim.control, ["/bin/sh", "-c", f"head -c {4 * WINDOW} /dev/zero"], environment=PATH
        )
        assert len(result.stdout) == 4 * WINDOW
        await shim.control.open_durable(2, shell("echo on; exit 5"))
        assert os.waitstatus_to_exitcode((await shim.control.exited(2)).wait_status) == 5
        assert journaled(tmp_path, 2) == b"on\n"
        await shim.control.request("note", text="alive")
        assert len(journaled(tmp_path, 1)) == FIRST_CREDIT
        await killed(shim)


async def test_a_signal_ends_a_stream_that_is_held_back(tmp_path):
    async with await limited(tmp_path, HARDLY) as shim:
        await shim.control.open_durable(1, shell(FLOOD))
        await held(shim)
        await shim.control.signal(1, signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            state = await shim.control.exited(1)
        assert state.wait_status == signal.SIGTERM
        assert state.out_bytes == len(journaled(tmp_path, 1)) == read_stream(tmp_path, 1).out_bytes
        assert FIRST_CREDIT < state.out_bytes <= FIRST_CREDIT + WINDOW


async def test_a_deadline_ends_a_stream_that_is_held_back(tmp_path):
    async with await limited(tmp_path, HARDLY) as shim:
        await shim.control.open_durable(1, shell(FLOOD), 0.5)
        async with asyncio.timeout(DEADLINE_S):
            state = await shim.control.exited(1)
        assert (state.wait_status, state.has_timed_out) == (signal.SIGTERM, True)
        assert state.out_bytes == len(journaled(tmp_path, 1))
        await shim.control.request("note", text="alive")
