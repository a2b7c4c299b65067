"""Commands by OpenSSH's client through the gateway, in a VM that is a process."""

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import pytest

from magsd.guest.shim import ShimError
from tests.integration.shim_process import is_alive, resident_bytes, until
from tests.integration.ssh_world import PATIENCE_S, world

MEGABYTE = 1 << 20


@pytest.fixture
async def vm(tmp_path):
    async with world(tmp_path) as made:
        yield made


async def test_output_errors_and_exit_codes_come_apart(vm):
    done = await vm.ssh("echo out; echo err >&2; exit 3")
    assert (done.code, done.out, done.err) == (3, b"out\n", b"err\n")
    assert (await vm.ssh("exit 255")).code == 255
    assert (await vm.ssh("no-such-program")).code == 127
    assert vm.node.leased == ["01234567-89ab-cdef-0123-456789abcdef"] * 3


async def test_a_command_that_a_signal_ends(vm):
    done = await vm.ssh("kill -TERM $$", options=("LogLevel=DEBUG1",))
    assert done.code == 255
    assert b"exit-signal" in done.err


async def test_the_environment(vm):
    env = {"LANG": "de_DE.UTF-8", "LC_TIME": "C", "LD_LIBRARY_PATH": "/nowhere"}
    done = await vm.ssh("env", env=env, options=("SendEnv=LANG LC_* LD_*",))
    lines = done.out.decode().splitlines()
    assert {"OF_JOB=a b", "LANG=de_DE.UTF-8", "LC_TIME=C", "USER=root", "LOGNAME=root"} <= set(
        lines
    )
    assert not any(line.startswith(("LD_", "TERM=")) for line in lines)
    assert any(line.startswith("SSH_CONNECTION=127.0.0.1 ") for line in lines)


async def test_a_command_that_is_no_text(vm):
    words = vm.ssh_words(os.fsdecode(b"printf %s '\xff\xfe'"))
    assert (await vm.run(words)).out == b"\xff\xfe"


async def test_fifty_megabytes_in_and_out(vm):
    data = os.urandom(MEGABYTE) * 50
    done = await vm.ssh("tee /dev/stderr | md5sum", input=data)
    assert done.out.split()[0].decode() == hashlib.md5(data).hexdigest()
    assert hashlib.md5(done.err).digest() == hashlib.md5(data).digest()


async def test_a_command_that_does_not_read_its_input(vm):
    done = await vm.ssh("exec 0<&-; echo done", input=bytes(20 * MEGABYTE))
    assert (done.code, done.out) == (0, b"done\n")


async def test_a_long_script_by_the_input_of_a_shell(vm):
    script = (
        "".join(f"x{number}={number}\n" for number in range(20_000)) + 'echo "$x19999"; exit 4\n'
    )
    done = await vm.ssh("sh -s", input=script.encode())
    assert (done.code, done.out) == (4, b"19999\n")


async def test_a_command_that_is_too_long_is_told_so(vm):
    done = await vm.ssh("true " + "x" * 70_000)
    assert done.code == 255
    assert b"56 KiB" in done.err


async def test_a_client_that_does_not_read_holds_up_nobody_and_takes_no_memory(vm):
    process = await vm.start(
        vm.ssh_words("exec cat /dev/zero"), stdout=os.open("/dev/null", os.O_WRONLY)
    )
    process.send_signal(signal.SIGSTOP)
    deaf = await vm.start(vm.ssh_words("exec cat /dev/zero"))
    try:
        assert await deaf.stdout.read(10) == bytes(10)
        before = resident_bytes(os.getpid())
        done = await vm.ssh(f"head -c {50 * MEGABYTE} /dev/zero | wc -c")
        assert done.out.strip() == str(50 * MEGABYTE).encode()
        assert len((await vm.ssh(f"head -c {50 * MEGABYTE} /dev/zero")).out) == 50 * MEGABYTE
        assert resident_bytes(os.getpid()) - before < 200 * MEGABYTE
    finally:
        for each in (process, deaf):
            each.kill()
            await each.communicate()


async def test_many_sessions_of_one_connection(vm):
    path = vm.folder / "control"
    master = await vm.start(vm.ssh_words("-M", "-S", str(path), "-N"))
    try:
        await until(path.exists)
        several = [
            vm.run(vm.ssh_words("-S", str(path), f"echo {number}; exit {number}"))
            for number in range(10)
        ]
        for number, done in enumerate(await asyncio.gather(*several)):
            assert (done.code, done.out) == (number, f"{number}\n".encode())
        assert len(vm.node.leased) == 1
        assert vm.node.held == 1
    finally:
        master.terminate()
        await master.communicate()
    await until(lambda: vm.node.held == 0)


async def test_thirty_connections_at_once(vm):
    data = os.urandom(MEGABYTE)
    several = [vm.ssh(f"cat; exit {number}", input=data) for number in range(30)]
    for number, done in enumerate(await asyncio.gather(*several)):
        assert (done.code, done.out == data) == (number, True), done.err
    await until(lambda: vm.node.held == 0)


async def test_what_a_killed_client_ran_dies(vm):
    process = await vm.start(vm.ssh_words("echo $$; sleep 1000 & exec sleep 1000"))
    inside = int(await process.stdout.readline())
    begun = [pid for pid in vm.shim.processes() if pid != vm.shim.engine()]
    assert len(begun) == 2, inside
    process.kill()
    await process.communicate()
    await until(lambda: not any(is_alive(pid) for pid in begun))
    await until(lambda: vm.node.held == 0)


async def test_a_signal_of_the_client_that_ends_its_own_connection(vm):
    process = await vm.start(vm.ssh_words("exec sleep 1000"))
    await until(lambda: vm.node.held == 1)
    await until(lambda: len(vm.shim.processes()) == 2)
    process.terminate()
    await process.communicate()
    await until(lambda: len(vm.shim.processes()) == 1)


async def test_a_vm_that_dies_ends_sessions_with_a_word(vm):
    several = [
        await vm.start(vm.ssh_words("echo begun; exec sleep 1000")),
        await vm.start(vm.ssh_words("echo begun; exec cat /dev/zero")),
    ]
    for process in several:
        assert await process.stdout.readline() == b"begun\n"
    with pytest.raises(ShimError):
        await vm.shim.control.request("kill")
    async with asyncio.timeout(PATIENCE_S):
        for process in several:
            _, err = await process.communicate()
            assert (process.returncode, err) == (255, b"mags: the sandbox has ended\n")
    assert vm.node.held == 0


async def test_a_vm_that_dies_ends_a_connection_without_sessions(vm):
    process = await vm.start(vm.ssh_words("-N"))
    await until(lambda: vm.node.held == 1)
    os.kill(vm.shim.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        _, err = await process.communicate()
    assert process.returncode == 255
    assert b"the sandbox has ended" in err


async def test_what_runs_on_does_not_hold_its_session(vm):
    done = await vm.ssh("sleep 1000 & echo $!")
    assert done.code == 0
    assert done.out.strip().isdigit()


async def test_the_gateway_that_stops_says_so_and_another_takes_over(vm):
    process = await vm.start(vm.ssh_words("echo begun; exec sleep 1000"))
    assert await process.stdout.readline() == b"begun\n"
    await vm.end()
    async with asyncio.timeout(PATIENCE_S):
        _, err = await process.communicate()
    assert process.returncode == 255
    assert b"the service is stopping" in err
    assert vm.node.held == 0
    await until(lambda: len(vm.shim.processes()) == 1)
    await vm.begin()
    assert (await vm.ssh("echo again")).out == b"again\n"


async def test_nothing_is_left_of_connections(vm):
    async def tasks():
        await until(lambda: vm.node.held == 0 and vm.gateway.connection_count == 0)
        return {
            task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()
        }

    before = await tasks()
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert (await vm.ssh("cat", input=b"x" * 1000)).code == 0
        process = await vm.start(vm.ssh_words("exec cat /dev/zero"))
        await process.stdout.read(10)
        process.kill()
        await process.communicate()
    assert await tasks() <= before
    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files + 1)
