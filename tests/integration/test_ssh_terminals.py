"""Interactive sessions: OpenSSH's client at a terminal of the test's own."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import termios

import pytest

from magsd.guest.shim import ShimError
from tests.integration.shim_process import until
from tests.integration.ssh_world import PATIENCE_S, world


@pytest.fixture
async def vm(tmp_path):
    async with world(tmp_path) as made:
        yield made


class Screen:
    """A terminal with `ssh` at it."""

    def __init__(self, columns: int, rows: int) -> None:
        self._master, self.slave = pty.openpty()
        self._seen = b""
        self._has_changed = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.set_size(columns, rows)

    def set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if self.process is not None:
            self.process.send_signal(signal.SIGWINCH)

    async def start(self, vm, words, env=None) -> None:
        kinds = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        self.process = await vm.start(words, env=env or {}, **kinds)
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self._seen += os.read(self._master, 65536)
        self._has_changed.set()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def expect(self, pattern: str) -> re.Match:
        """Wait until the screen shows `pattern`; what was before it is forgotten."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := re.search(pattern.encode(), self._seen)) is None:
                self._has_changed.clear()
                await self._has_changed.wait()
        self._seen = self._seen[found.end() :]
        return found

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def aclose(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        os.close(self._master)
        os.close(self.slave)


@contextlib.asynccontextmanager
async def screen(vm, *words, columns=100, rows=30, options=(), env=None):
    made = Screen(columns, rows)
    try:
        await made.start(vm, vm.ssh_words("-tt", *words, options=options), env)
        yield made
    finally:
        await made.aclose()


async def test_a_login_shell(vm):
    async with screen(vm, env={"TERM": "xterm-256color"}) as tty:
        tty.type("echo name=$0 term=$TERM of_job=$OF_JOB; tty; pwd\n")
        await tty.expect(r"name=-\w+ term=xterm-256color of_job=a b\r\n")
        await tty.expect(r"/dev/pts/\d+\r\n/root\r\n")
        tty.type("exit 7\n")
        assert await tty.ended() == 7


async def test_the_window_has_the_clients_size(vm):
    async with screen(vm, "stty size", columns=132, rows=43) as tty:
        await tty.expect("43 132\r\n")
        assert await tty.ended() == 0


async def test_a_program_is_told_of_a_new_size(vm):
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done"
    async with screen(vm, f'exec bash -c "{script}"') as tty:
        await tty.expect("ready\r\n")
        tty.set_size(132, 43)
        await tty.expect("43 132\r\n")
        assert await tty.ended() == 0


async def test_control_c_interrupts_what_is_in_the_foreground(vm):
    async with screen(vm) as tty:
        tty.type("PS1='> '; sleep 1000; echo code=$?\n")
        await until(lambda: len(vm.shim.processes()) >= 3)
        tty.type("\x03")
        tty.type("echo code=$?\n")
        await tty.expect("code=130\r\n")
        tty.type("exit\n")
        await tty.ended()


async def test_end_of_input_ends_the_shell(vm):
    async with screen(vm) as tty:
        tty.type("PS1='ask''ing'\n")
        await tty.expect("asking")
        tty.type("\x04")
        assert await tty.ended() == 0


async def test_the_break_that_a_client_sends_interrupts(vm):
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    async with screen(vm, f'exec sh -c "{script}"', options=("EscapeChar=~",)) as tty:
        await tty.expect("ready\r\n")
        tty.type("\r~B")
        await tty.expect("caught\r\n")
        assert await tty.ended() == 5


async def test_a_client_that_goes_hangs_up(vm):
    async with screen(vm) as tty:
        tty.type("sleep 1000 & sleep 1000\n")
        await until(lambda: len(vm.shim.processes()) >= 4)
        tty.process.kill()
        await until(lambda: len(vm.shim.processes()) == 1)


async def test_a_vm_that_dies_is_told_at_the_terminal(vm):
    async with screen(vm) as tty:
        tty.type("echo re''ady\n")
        await tty.expect("ready\r\n")
        with pytest.raises(ShimError):
            await vm.shim.control.request("kill")
        await tty.expect("\r\nmags: the sandbox has ended\r\n")
        assert await tty.ended() == 255


async def test_much_output_at_a_terminal_comes_whole(vm):
    async with screen(vm, "stty -opost; seq 200000; echo done") as tty:
        await tty.expect(r"199999\n200000\ndone")
        assert await tty.ended() == 0
