"""The shim with the real agent as its engine: durable streams, start and end."""

import hashlib
import itertools
import os
import signal
import struct
import time
from pathlib import Path

import pytest

from magsd.guest import streams
from magsd.guest.journal import JournalReader, append_note
from magsd.guest.shim import ShimError
from magsd.guest.state import EndCode, read_state, read_stream
from magsd.guest.wire import Channel, pack_fields, parse_fields
from tests.integration.shim_process import (
    AGENT,
    ShimProcess,
    ended,
    journaled,
    killed,
    memfd,
    scripted_agent,
    shell,
    system_lines,
)

PATH = {"PATH": "/usr/bin:/bin"}


async def test_a_durable_exec_is_journaled_and_its_exit_recorded(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.open_durable(5, shell("echo out; echo err >&2; exit 3"))
        state = await shim.control.exited(5)
        assert os.waitstatus_to_exitcode(state.wait_status) == 3
        assert (state.out_bytes, state.err_bytes, state.has_timed_out) == (4, 4, False)
        assert journaled(tmp_path, 5) == b"out\n"
        assert journaled(tmp_path, 5, Channel.ERR) == b"err\n"
        records, end = JournalReader(tmp_path).read(0)
        assert (records[-1].kind, records[-1].stream) == (3, 5)
        assert parse_fields(records[-1].payload).get("status") == str(3 << 8)
        assert await shim.control.journal_grown(0) == end

        recorded = read_stream(tmp_path, 5)
        assert recorded.is_over
        assert recorded.wait_status == state.wait_status
        assert recorded.ended_ns == state.ended_ns >= recorded.opened_ns > 0


async def test_asking_for_a_known_durable_stream_runs_nothing_again(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        other = await shim.connect()
        for connection in (shim.control, other, shim.control):
            await connection.open_durable(1, shell(f"echo x >> {tmp_path}/runs"))
            await connection.exited(1)
        assert (tmp_path / "runs").read_text() == "x\n"


@pytest.mark.parametrize(
    "payload",
    [
        pack_fields(("control", "stats")),
        pack_fields("exec", [("arg", "/bin/cat"), ("stdin", "open")]),
        b"",
        b"exec",
    ],
)
async def test_what_cannot_be_durable_is_refused(tmp_path, payload):
    async with await ShimProcess.open(tmp_path) as shim:
        with pytest.raises(ShimError):
            await shim.control.open_durable(1, payload)
        assert read_stream(tmp_path, 1) is None


async def test_output_goes_on_without_any_connection(tmp_path):
    lines = 400_000
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.open_durable(1, shell(f"seq {lines}; exit 7"))
        await shim.control.journal_grown(16)
        await shim.control.aclose()
        again = await shim.connect()
        state = await again.exited(1)
        assert os.waitstatus_to_exitcode(state.wait_status) == 7
        expected = "".join(f"{n}\n" for n in range(1, lines + 1)).encode()
        assert hashlib.sha256(journaled(tmp_path, 1)).digest() == hashlib.sha256(expected).digest()
        assert state.out_bytes == len(expected)

        late = await shim.connect()
        assert late.durable(1) == again.durable(1)
        assert late.journal_end == JournalReader(tmp_path).end()


async def test_the_journal_keeps_its_head_and_its_last_segments(tmp_path):
    size = 40 << 20
    script = f"yes 0123456789abcde | head -c {size}"
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.open_durable(1, shell(script))
        state = await shim.control.exited(1)
        assert state.out_bytes == size
        records, position = [], 0
        reader = JournalReader(tmp_path)
        while batch := reader.read(position)[0]:
            records += batch
            position = batch[-1].end_position
        data = [r for r in records if r.kind == 1]
        assert data[0].offset == 0
        line = b"0123456789abcde\n" * 4097
        assert all(line[r.offset % 16 :].startswith(r.payload) for r in data)
        assert data[-1].offset + len(data[-1].payload) == size
        jumps = [
            (a, b) for a, b in itertools.pairwise(data) if a.offset + len(a.payload) != b.offset
        ]
        assert len(jumps) == 1
        before, after = jumps[0]
        assert before.offset + len(before.payload) > (1 << 20) - (128 << 10)
        assert size - after.offset >= 15 * ((1 << 20) - (64 << 10))
        assert position == shim.control.journal_end
        files = [f for f in tmp_path.iterdir() if f.name.startswith("journal.")]
        assert len(files) == 17
        assert max(f.stat().st_size for f in files) <= 1 << 20


async def test_the_journal_goes_on_where_the_daemon_left_it(tmp_path):
    append_note(tmp_path, "before", time.time_ns())
    with (tmp_path / "journal.head").open("ab") as file:
        file.write(struct.pack("<IBBHQQ", 100, 1, 1, 1, 0, 0) + b"torn")
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.request("note", text="while it runs")
        await killed(shim)
    append_note(tmp_path, "after", time.time_ns())
    assert system_lines(tmp_path) == "before\nwhile it runs\nafter\n"


async def test_a_signal_reaches_a_durable_stream(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.open_durable(1, shell("echo on; exec sleep 60"))
        await shim.control.journal_grown(16)
        await shim.control.signal(1, signal.SIGTERM)
        assert (await shim.control.exited(1)).wait_status == signal.SIGTERM


async def test_a_deadline_ends_a_stream_first_kindly(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.open_durable(
            1, shell("trap 'echo bye; exit 4' TERM; sleep 60 & wait"), 0.2
        )
        await shim.control.open_durable(2, shell("trap '' TERM; while :; do sleep 60; done"), 0.2)
        await shim.control.open_durable(3, shell("true"), 60)
        kind, stubborn, quick = [await shim.control.exited(stream) for stream in (1, 2, 3)]
        assert (os.waitstatus_to_exitcode(kind.wait_status), kind.has_timed_out) == (4, True)
        assert journaled(tmp_path, 1) == b"bye\n"
        assert (stubborn.wait_status, stubborn.has_timed_out) == (signal.SIGKILL, True)
        assert not quick.has_timed_out
        assert read_stream(tmp_path, 2).has_timed_out


async def test_a_stream_that_outlives_its_sigkill_ends_the_vm(tmp_path):
    agent = scripted_agent("join()\nwhile True: take()")
    async with await ShimProcess.open(tmp_path, agent) as shim:
        await shim.control.open_durable(1, shell("true"), 0.1)
        await ended(shim, EndCode.KILLED)
        state = read_stream(tmp_path, 1)
        assert (state.is_over, state.wait_status, state.has_timed_out) == (
            True,
            signal.SIGKILL,
            True,
        )


async def test_many_durable_streams_are_told_to_who_comes_late(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        for stream in range(1, 101):
            await shim.control.open_durable(stream, shell(f"exit {stream}"))
            await shim.control.exited(stream)
        late = await shim.connect()
        for stream in range(1, 101):
            assert os.waitstatus_to_exitcode(late.durable(stream).wait_status) == stream
            assert read_stream(tmp_path, stream).is_over


async def test_a_stream_that_the_agent_refuses_is_over(tmp_path):
    agent = scripted_agent(
        "join()\nframe = take()\n"
        "send(Kind.RESET, frame.stream, payload=pack_fields('', [('error', 'no room')]))\ntake()"
    )
    async with await ShimProcess.open(tmp_path, agent) as shim:
        await shim.control.open_durable(9, shell("true"))
        assert os.waitstatus_to_exitcode((await shim.control.exited(9)).wait_status) == 127
        assert "no room" in system_lines(tmp_path)


async def test_an_engine_that_cannot_be_started_says_why(tmp_path):
    shim = await ShimProcess.open(tmp_path, ["/nowhere/engine"], start=False)
    async with shim:
        with pytest.raises(ShimError, match="/nowhere/engine: No such file"):
            await shim.control.request("start")
        assert "/nowhere/engine" in await ended(shim, EndCode.ENGINE_DIED)


async def test_streams_before_the_start_are_refused(tmp_path):
    async with await ShimProcess.open(tmp_path, start=False) as shim:
        await shim.control.hello("vm-1", 7)
        stream = await shim.control.open_stream(shell("true"))
        with pytest.raises(ShimError, match="not joined"):
            await stream.exit()
        with pytest.raises(ShimError, match="not joined"):
            await shim.control.open_durable(1, shell("true"))
        with pytest.raises(ShimError, match="first connection"):
            await (await shim.connect()).request("start")


async def test_without_its_starter_an_unstarted_vm_ends(tmp_path):
    async with await ShimProcess.open(tmp_path, start=False) as shim:
        await shim.control.aclose()
        await ended(shim, EndCode.KILLED)


@pytest.mark.parametrize(
    ("script", "end", "text"),
    [
        ("exit 3", EndCode.AGENT_DIED, "exited with code 3"),
        ("exit 128", EndCode.ENGINE_DIED, "exited with code 128"),
        ("kill -9 $$", EndCode.ENGINE_DIED, "killed by signal 9"),
        ("echo it is broken >&2; exit 0", EndCode.AGENT_DIED, "it is broken"),
        ("seq 5000 >&2; echo last words >&2; exit 0", EndCode.AGENT_DIED, "last words"),
    ],
)
async def test_how_the_engine_ended_decides_the_reason(tmp_path, script, end, text):
    arguments = ["/bin/sh", "-c", f"{AGENT}; {script}"]
    async with await ShimProcess.open(
        tmp_path, arguments, steps=[("engine_failed", "125"), ("engine_failed", "128")]
    ) as shim:
        await shim.control.open_durable(1, shell("echo on; sleep 60"))
        await shim.control.journal_grown(16)
        agent = next(
            pid for pid in shim.processes() if "mags-agent" in Path(f"/proc/{pid}/comm").read_text()
        )
        os.kill(agent, signal.SIGKILL)
        assert text in await ended(shim, end)
        stream = read_stream(tmp_path, 1)
        assert (stream.is_over, stream.out_bytes) == (False, 3)


async def test_the_engine_killed_from_outside_died(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        os.kill(shim.engine(), signal.SIGKILL)
        assert "signal 9" in await ended(shim, EndCode.ENGINE_DIED)
        assert os.WTERMSIG(read_state(tmp_path).engine_status) == signal.SIGKILL
        await shim.control.closed()


@pytest.mark.parametrize(
    ("field", "content", "end"),
    [
        ("oom", b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", EndCode.OUT_OF_MEMORY),
        ("oom", b"oom 4\noom_kill 0\n", EndCode.ENGINE_DIED),
        ("pids", b"max 1\n", EndCode.TOO_MANY_PROCESSES),
        ("pids", b"max 0\n", EndCode.ENGINE_DIED),
    ],
)
async def test_a_limit_that_was_hit_is_the_reason(tmp_path, field, content, end):
    events = memfd(content)
    async with await ShimProcess.open(
        tmp_path, steps=[(field, str(events))], descriptors=[events]
    ) as shim:
        os.kill(shim.engine(), signal.SIGKILL)
        await ended(shim, end)


@pytest.mark.parametrize("reason", [end for end in EndCode if end])
async def test_kill_records_its_reason(tmp_path, reason):
    async with await ShimProcess.open(tmp_path) as shim:
        with pytest.raises(ShimError):
            await shim.control.request("kill", reason=reason.name.lower())
        await ended(shim, reason)


async def test_a_fence_that_is_not_renewed_ends_the_vm(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.request("fence", deadline_ms="1")
        await ended(shim, EndCode.FENCED)


async def test_a_fence_can_be_renewed_and_taken_away(tmp_path):
    async with await ShimProcess.open(tmp_path) as shim:
        await shim.control.request("fence", deadline_ms="60000")
        await shim.control.request("fence", deadline_ms="0")
        await shim.control.request("note", text="alive")
        assert (await streams.run(shim.control, ["/bin/true"], environment=PATH)).wait_status == 0
