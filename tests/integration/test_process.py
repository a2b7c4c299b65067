import asyncio
import os
import signal
import sys

import pytest

from magsd.engine.process import Detached, ProcessError, read_start_time, run, start_detached
from tests.integration.network.world import eventually

PYTHON = [sys.executable, "-I", "-S", "-c"]


async def test_a_program_is_run_to_its_end():
    completed = await run(["cat"], input=b"text\n", timeout_s=10)
    assert (completed.exit_code, completed.stdout, completed.text) == (0, b"text\n", "text")


async def test_without_input_standard_input_is_empty():
    assert (await run(["cat"], timeout_s=10)).stdout == b""


async def test_where_it_runs_and_what_it_inherits_is_given(tmp_path):
    reader, writer = os.pipe()
    try:
        os.write(writer, b"passed")
        os.close(writer)
        completed = await run(
            ["sh", "-c", f'pwd; echo "$NAME $HOME"; cat /proc/self/fd/{reader}'],
            timeout_s=10,
            cwd=tmp_path,
            env={"NAME": "value", "PATH": os.environ["PATH"]},
            pass_fds=[reader],
        )
    finally:
        os.close(reader)
    assert completed.text == f"{tmp_path}\nvalue \npassed"


async def test_a_failure_says_which_program_and_keeps_the_rest_for_the_log():
    with pytest.raises(ProcessError, match=r"^sh failed with exit status 3$") as caught:
        await run(["sh", "-c", "echo why >&2; exit 3"], timeout_s=10)
    assert caught.value.detail.endswith(": why")
    completed = await run(["sh", "-c", "exit 3"], timeout_s=10, check=False)
    assert completed.exit_code == 3


async def test_a_program_that_is_not_there_is_said():
    with pytest.raises(ProcessError, match=r"^no-such-program is not installed$"):
        await run(["no-such-program"], timeout_s=10)
    with pytest.raises(ProcessError, match=r"^no-such-program is not installed$"):
        start_detached(["no-such-program"])


async def test_at_the_timeout_all_of_it_is_killed(tmp_path):
    note = tmp_path / "pid"
    with pytest.raises(ProcessError, match=r"sh did not end within 0.5 s"):
        await run(["sh", "-c", f"sleep 1000 & echo $! > {note}; wait"], timeout_s=0.5)
    child = int(note.read_text())
    await eventually(lambda: read_start_time(child) is None)


async def test_on_cancellation_all_of_it_is_killed(tmp_path):
    note = tmp_path / "pid"
    async with asyncio.TaskGroup() as group:
        work = group.create_task(
            run(["sh", "-c", f"sleep 1000 & echo $! > {note}; wait"], timeout_s=100)
        )
        await eventually(lambda: note.exists() and note.read_text())
        work.cancel()
    assert work.cancelled()
    child = int(note.read_text())
    await eventually(lambda: read_start_time(child) is None)


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancellation_while_it_starts_leaves_nothing(tmp_path, steps):
    note = tmp_path / "pid"
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        work = group.create_task(run(["sh", "-c", f"echo $$ > {note}; sleep 1000"], timeout_s=100))
        for _ in range(steps):
            await asyncio.sleep(0)
        work.cancel()
    assert work.cancelled()
    if note.exists() and (text := note.read_text()):
        await eventually(lambda: read_start_time(int(text)) is None)


@pytest.fixture
async def detach():
    started = []

    def start(*arguments, **options):
        process = start_detached(*arguments, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.fileno() >= 0:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            process.close()


async def test_a_detached_process_leads_a_session_and_is_found_again(detach):
    process = detach(["sleep", "1000"])
    assert os.getsid(process.pid) == process.pid
    found = Detached.find(process.pid, process.start_time)
    assert found is not None
    found.send_signal(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    assert await process.wait() == -signal.SIGTERM
    assert await found.wait() is None
    found.close()
    found.close()
    assert Detached.find(process.pid, process.start_time) is None


async def test_another_process_with_the_same_pid_is_not_it(detach):
    process = detach(["sleep", "1000"])
    assert Detached.find(process.pid, process.start_time - 1) is None


async def test_several_may_wait_for_the_end(detach):
    process = detach(["sh", "-c", "read line; exit 7"])
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waits = [group.create_task(process.wait()) for _ in range(3)]
    assert [wait.result() for wait in waits] == [7, 7, 7]


async def test_a_wait_that_is_cancelled_harms_no_other(detach):
    process = detach(["sleep", "1000"])
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        impatient = group.create_task(process.wait())
        patient = group.create_task(process.wait())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait([impatient])
        process.send_signal(signal.SIGKILL)
    assert patient.result() == -signal.SIGKILL


async def test_a_detached_process_has_the_descriptors_it_was_given_and_no_others(detach, tmp_path):
    output = tmp_path / "output"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    program = "import os; print([n for n in range(200) if os.path.exists(f'/proc/self/fd/{n}')])"
    try:
        with output.open("wb") as file:
            process = detach(
                [*PYTHON, program], pass_fds=[reader], cwd=tmp_path, env={}, output=file.fileno()
            )
        assert await process.wait() == 0
    finally:
        os.close(reader)
        os.close(writer)
    assert output.read_text() == f"{[0, 1, 2, reader]}\n"
