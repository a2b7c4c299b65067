"""A shim for tests: started with a plan as the daemon would, and gone afterwards.

Its engine is any program that speaks the agent's side of the wire on stdin and
stdout: the agent itself, or one of the scripted agents made here.
"""

import asyncio
import contextlib
import ctypes
import os
import platform
import signal
import socket
import sys
from pathlib import Path

import pytest

from magsd.guest.journal import JournalReader
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.state import EndCode, read_state
from magsd.guest.wire import Channel, pack_fields

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "src/magsd/guest/programs" / platform.machine()
SHIM = PROGRAMS / "mags-shim"
AGENT = PROGRAMS / "mags-agent"


UID = 2_000_123
DEADLINE_S = 30

_OPEN_TREE = 428
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC


def memfd(content: bytes, name: str = "test") -> int:
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    return descriptor


def open_tree(path) -> int:
    """Return a detached clone of the mount at `path`."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    descriptor = libc.syscall(_OPEN_TREE, -100, os.fsencode(path), flags)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return descriptor


def scripted_agent(script: str) -> list[str]:
    """Return the arguments of an agent that joins and then does what `script` says.

    The script has `send(kind, stream, channel, value, payload)` and `take()`,
    which returns the next frame of the shim.
    """
    prologue = """
import os, sys, time, signal
sys.path.insert(0, sys.argv[1])
from magsd.guest.wire import *
reader, held = FrameReader(), []
def send(kind, stream=0, channel=0, value=0, payload=b""):
    data = encode(Frame(Kind(kind), stream, Channel(channel), value, payload))
    while data: data = data[os.write(1, data):]
def take():
    while not held:
        data = os.read(0, 1 << 16)
        if not data: sys.exit(9)
        held.extend(reader.feed(data))
    return held.pop(0)
skip = b""
while len(skip) < 16: skip += os.read(0, 16 - len(skip))
def nonce(): return parse_fields(take().payload).get("nonce")
def join(): send(Kind.JOIN, payload=pack_fields("", [("nonce", nonce()), ("version", "1")]))
"""
    return [sys.executable, "-c", prologue + script, str(REPOSITORY / "src")]


class ShimProcess:
    """A started shim. `async with`; leaves nothing behind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pid = 0
        self.control: ShimConnection | None = None
        self._has_left_a_child = False
        self._connections: list[ShimConnection] = []

    @classmethod
    async def open(
        cls,
        directory: Path,
        arguments=(str(AGENT),),
        *,
        steps=(),
        descriptors=(),
        start: bool = True,
        environment=("PATH=/usr/bin:/bin",),
        vm: str = "vm-1",
        epoch: int = 7,
    ) -> "ShimProcess":
        """Start a shim in `directory`; `steps` are fields of the plan, `descriptors` inherited.

        Takes over the descriptors. Raises `ShimError` with what the shim says.
        """
        self = cls(directory)
        try:
            await self._spawn(arguments, steps, descriptors, environment, vm, epoch)
            self.pid = await self._ready()
            if start:
                await self.control.hello(vm, epoch)
                await self.control.request("start")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _ready(self) -> int:
        try:
            return int((await self.control.ready()).get("pid"))
        except ShimError:
            if self._has_left_a_child:  # which it cannot tell us
                await until(reap_refused)
            raise

    async def _spawn(self, arguments, steps, descriptors, environment, vm, epoch) -> None:
        ours, theirs = socket.socketpair()
        fields = [("vm", vm), ("epoch", str(epoch)), ("control", str(theirs.fileno()))]
        fields += [*steps, ("uid", str(UID))]
        fields += [("arg", argument) for argument in arguments]
        fields += [("env", variable) for variable in environment]
        plan = memfd(pack_fields("", fields), "plan")
        inherited = (plan, theirs.fileno(), *descriptors)
        try:
            process = await asyncio.create_subprocess_exec(
                SHIM, str(plan), cwd=self.directory, pass_fds=inherited
            )
            self._has_left_a_child = await process.wait() == 0
        finally:
            theirs.close()
            for descriptor in (plan, *descriptors):
                os.close(descriptor)
        self.control = await self.adopt(ours)

    async def adopt(self, sock: socket.socket) -> ShimConnection:
        connection = await ShimConnection.from_socket(sock, hello=False)
        self._connections.append(connection)
        return connection

    async def connect(self) -> ShimConnection:
        connection = await ShimConnection.open(self.directory, "vm-1", 7)
        self._connections.append(connection)
        return connection

    def raw(self) -> socket.socket:
        """Return a connection that speaks nothing of itself."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        here = os.open(self.directory, os.O_RDONLY)
        try:
            sock.connect(f"/proc/self/fd/{here}/sock")
        except OSError:
            sock.close()
            raise
        finally:
            os.close(here)
        return sock

    def processes(self) -> list[int]:
        """Return the pids of all processes of the VM but the shim."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        return [pid for pid in processes_of(namespace) if pid != self.pid]

    def engine(self) -> int:
        """Return the pid of the engine's process."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return int(text.split()[0])

    async def ended(self) -> int:
        """Wait for the shim's end, reap it and return its exit code."""
        async with asyncio.timeout(DEADLINE_S):
            while not (reaped := os.waitpid(self.pid, os.WNOHANG))[0]:
                await asyncio.sleep(0.002)
        self.pid = 0
        return os.waitstatus_to_exitcode(reaped[1])

    async def aclose(self) -> None:
        for connection in self._connections:
            await connection.aclose()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            await self.ended()

    async def __aenter__(self) -> "ShimProcess":
        return self

    async def __aexit__(self, *_) -> None:
        await self.aclose()


def reap_refused() -> bool:
    """Reap our children that were shims and have ended; return whether there were any."""
    is_found = False
    for task in Path("/proc/self/task").iterdir():
        children = ""
        with contextlib.suppress(OSError):  # A thread that has ended meanwhile.
            children = (task / "children").read_text()
        for pid in map(int, children.split()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().split(" ")[1:3] == ["(mags-shim)", "Z"]:
                    is_found |= os.waitpid(pid, os.WNOHANG)[0] == pid
    return is_found


def processes_of(namespace: str) -> list[int]:
    """Return the pids in a pid namespace, named as its link reads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") == namespace:
                    found.append(int(entry.name))
    return found


def shell(script: str) -> bytes:
    return pack_fields(
        "exec", [("arg", "/bin/sh"), ("arg", "-c"), ("arg", script), ("env", "PATH=/usr/bin:/bin")]
    )


def journaled(directory: Path, stream: int, channel=Channel.OUT) -> bytes:
    """Return what a durable stream printed, from the journal; its offsets must have no gap."""
    reader, position, content = JournalReader(directory), 0, bytearray()
    while True:
        records, position = reader.read(position)
        if not records:
            return bytes(content)
        for record in records:
            if (record.stream, record.channel, record.kind) == (stream, channel, 1):
                assert record.offset == len(content)
                content += record.payload


def system_lines(directory: Path) -> str:
    records, _ = JournalReader(directory).read(0)
    return b"".join(record.payload for record in records if record.channel == 3).decode()


async def until(condition) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def ended(shim: ShimProcess, end: EndCode) -> str:
    """Wait for the VM's end, which must be `end`; return its detail."""
    await shim.ended()
    state = read_state(shim.directory)
    assert state is not None
    assert state.end is end, state
    return state.detail


async def killed(shim: ShimProcess) -> None:
    with pytest.raises(ShimError):
        await shim.control.request("kill")
    await ended(shim, EndCode.KILLED)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
