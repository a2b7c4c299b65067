"""Commands in VMs that run: real shims and agents."""

import asyncio
import os
import signal

import pytest

from magsd.core import idle_connections
from magsd.core.execs import AT_ONCE_MAX
from magsd.guest.shim import ShimConnection
from magsd.model.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    TooLargeError,
)
from tests.integration.core.service import DEADLINE_S


@pytest.fixture
async def job(service):
    return await service.running("sleep infinity", persistent=True, environment={"A": "of it"})


@pytest.fixture
def execute(service, job):
    async def run(command, timeout_s=DEADLINE_S, ref=None):
        return await service.app.execs.run(
            service.principal, ref or job.request_id, command, timeout_s
        )

    return run


async def until(check):
    async with asyncio.timeout(DEADLINE_S):
        while not check():
            await asyncio.sleep(0.01)


def lives_inside(pid: bytes) -> bool:
    """Say whether a process with that number lives in a pid namespace of an agent."""
    for folder in os.listdir("/proc"):
        if not folder.isdigit():
            continue
        try:
            with open(f"/proc/{folder}/status") as file:
                fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        numbers = fields.get("NSpid", "").split()
        if len(numbers) > 1 and numbers[-1].encode() == pid and "Z" not in fields["State"]:
            return True
    return False


def running(arguments: bytes) -> bool:
    """Say whether a process of this host has these arguments."""
    for folder in os.listdir("/proc"):
        try:
            with open(f"/proc/{folder}/cmdline", "rb") as file:
                if file.read() == arguments:
                    return True
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError, PermissionError):
            continue
    return False


async def test_a_command_has_its_output_its_exit_code_and_the_jobs_environment(execute):
    done = await execute("echo $A in $PWD as $(id -un); echo oops >&2; cat; exit 7")
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"of it in /root as root\n", b"oops\n")
    assert done.duration_ms >= 0
    assert not done.is_truncated


async def test_a_signal_is_128_and_its_number(execute):
    assert (await execute("kill -9 $$")).exit_code == 137
    assert (await execute("no-such-command")).exit_code == 127


async def test_a_name_means_the_job(service, execute, job):
    assert (await execute("echo hi", ref=job.name)).stdout == b"hi\n"
    with pytest.raises(NotFoundError):
        await execute("true", ref="nobody")


async def test_a_one_shot_job_that_runs_takes_commands_too(service, execute):
    other = await service.running("sleep 100", environment={"A": "another"})
    assert (await execute("echo $A", ref=other.request_id)).stdout == b"another\n"


async def test_what_took_too_long_is_killed_with_what_it_began(execute):
    command = "echo so far; echo no >&2; sleep 1000 & echo $! $$; wait"
    done = await execute(command, timeout_s=1)
    assert (done.exit_code, done.stderr) == (124, b"no\n")
    so_far, pids = done.stdout.splitlines()
    assert so_far == b"so far"
    for pid in pids.split():
        await until(lambda pid=pid: not lives_inside(pid))


async def test_a_daemon_that_a_command_leaves_lives_on(execute):
    done = await execute("nohup sleep 1000 > /dev/null 2>&1 & echo $!")
    pid = done.stdout.strip()
    assert done.exit_code == 0
    assert lives_inside(pid)
    # With the command's own output in hand it holds it up for moments only.
    done = await execute("sleep 1000 & echo $!")
    assert lives_inside(done.stdout.strip())
    assert lives_inside(pid)


async def test_much_output_is_cut_and_the_command_goes_to_its_end(execute):
    done = await execute("head -c 5000000 /dev/zero; echo end >&2; exit 5")
    assert (len(done.stdout), done.stderr, done.exit_code) == (4 << 20, b"end\n", 5)
    assert done.is_truncated
    assert not (await execute(f"head -c {4 << 20} /dev/zero")).is_truncated


async def test_commands_that_flood_share_what_memory_there_is(service, execute):
    memory = service.app.execs._memory
    had = memory.free_bytes
    memory.free_bytes = 1 << 20
    several = await asyncio.gather(*(execute("head -c 3000000 /dev/zero") for _ in range(4)))
    assert sum(len(done.stdout) for done in several) <= (1 << 20) + 4 * (64 << 10)
    assert all(done.is_truncated and len(done.stdout) >= 64 << 10 for done in several)
    assert memory.free_bytes == 0
    del several
    await until(lambda: memory.free_bytes == 1 << 20)
    memory.free_bytes = had


async def test_fifty_at_once(execute):
    done = await asyncio.gather(*(execute(f"sleep 0.2; echo {n}") for n in range(50)))
    assert [one.stdout for one in done] == [b"%d\n" % n for n in range(50)]


async def test_one_too_many_is_told(service, execute):
    running = [asyncio.ensure_future(execute("sleep 2")) for _ in range(AT_ONCE_MAX)]
    await asyncio.sleep(0)
    await until(lambda: service.app.execs._running.total() == AT_ONCE_MAX)
    with pytest.raises(CapacityError, match="60 commands"):
        await execute("true")
    assert {done.exit_code for done in await asyncio.gather(*running)} == {0}
    assert (await execute("echo again")).stdout == b"again\n"


async def test_whoever_goes_away_ends_the_command(service, execute):
    waiting = asyncio.ensure_future(execute("sleep 4321"))
    mark = b"sleep\x004321\x00"
    await until(lambda: running(mark))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not running(mark))
    assert not service.app.execs._running


async def test_a_vm_that_dies_under_a_command_is_told(service, execute, job):
    waiting = asyncio.ensure_future(execute("sleep 4322"))
    await until(lambda: running(b"sleep\x004322\x00"))
    os.kill(service.record(job.vm_id).shim_pid, signal.SIGKILL)
    with pytest.raises(ConflictError, match="lost with its VM: the VM's shim"):
        await waiting


async def test_a_stop_ends_commands(service, execute, job):
    waiting = asyncio.ensure_future(execute("sleep 4323"))
    await until(lambda: running(b"sleep\x004323\x00"))
    await service.app.stop(service.principal, job.request_id)
    with pytest.raises(ConflictError, match="ended while the command ran"):
        await waiting
    with pytest.raises(ConflictError, match="is over"):
        await execute("true")


async def test_a_job_without_a_vm_takes_none(service, execute):
    service.engine.may_launch.clear()
    waiting = await service.submit("true")
    with pytest.raises(ConflictError, match="no VM yet"):
        await execute("true", ref=waiting.request_id)
    service.engine.may_launch.set()
    await service.until(waiting.request_id)


async def test_what_cannot_be_run_is_refused(execute):
    for command in ("", " \n", "a\0b", "half \ud800"):
        with pytest.raises(InvalidError, match="command"):
            await execute(command)
    for timeout_s in (0, -1, 10**9):
        with pytest.raises(InvalidError, match="timeout"):
            await execute("true", timeout_s)
    with pytest.raises(TooLargeError, match="file"):
        await execute("x" * 66_000)
    long = "true " + "x" * 60_000
    assert (await execute(long)).exit_code == 0


# --- connections -------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """The connections that were opened, in order."""
    connections = []
    real = ShimConnection.open

    async def opening(*arguments):
        connection = await real(*arguments)
        connections.append(connection)
        return connection

    monkeypatch.setattr(idle_connections.ShimConnection, "open", opening)
    return connections


async def test_commands_one_after_another_share_a_connection(execute, opened):
    for number in range(3):
        assert (await execute(f"exit {number}")).exit_code == number
    assert len(opened) == 1


async def test_commands_at_once_have_connections_of_their_own_and_one_is_kept(execute, opened):
    await asyncio.gather(*(execute("sleep 0.2") for _ in range(4)))
    assert len(opened) == 4
    await until(lambda: sum(connection.is_open for connection in opened) == 1)


async def test_a_connection_ends_with_a_command_that_was_given_up(execute, opened):
    await execute("true")
    task = asyncio.ensure_future(execute("sleep 1001"))
    await until(lambda: running(b"sleep\x001001\x00"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not opened[0].is_open
    assert (await execute("exit 3")).exit_code == 3
    assert len(opened) == 2


async def test_a_connection_that_broke_is_not_used_again(execute, opened):
    await execute("true")
    await opened[0].aclose()
    assert (await execute("exit 4")).exit_code == 4


# --- what is left behind -------------------------------------------------------------


async def test_a_daemon_that_goes_on_printing_lives(execute):
    # To a pipe that nobody reads it would print once more and die.
    noise = "while echo noise && echo oops >&2; do date >> beats; sleep 0.02; done"
    assert (await execute(f"cd /tmp && rm -f beats && ({noise}) & sleep 0.1")).exit_code == 0
    beats = int((await execute("wc -l < /tmp/beats")).stdout)
    async with asyncio.timeout(DEADLINE_S):
        while int((await execute("wc -l < /tmp/beats")).stdout) < beats + 20:
            await asyncio.sleep(0.05)


async def test_only_so_many_leftovers_are_read(execute):
    """The oldest lose their reader, and end as they print; the agent goes on."""
    await execute("rm -f /tmp/ended")
    for first in range(0, 70, 10):
        loop = f"while echo noise; do sleep 0.05; done; echo {first} >> /tmp/ended"
        command = f"(trap '' PIPE; {loop}) 2>/dev/null &"
        done = await asyncio.gather(*(execute(command) for _ in range(10)))
        assert {each.exit_code for each in done} == {0}
    ended = ""
    async with asyncio.timeout(DEADLINE_S):
        while not ended:
            ended = (await execute("cat /tmp/ended 2>/dev/null")).stdout.decode()
            await asyncio.sleep(0.05)
    assert set(ended.split()) == {"0"}
