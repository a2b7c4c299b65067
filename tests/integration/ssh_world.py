"""An SSH gateway before a VM that is a process, and OpenSSH's own programs to reach it by.

Shim and agent are the real ones; the node that would have found key and VM is played.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from magsd.gateway.base import KeyTarget, Lease
from magsd.gateway.ssh import SshGateway
from magsd.gateway.ssh_settings import SshSettings
from magsd.model.names import RequestId, VmId
from tests.integration.shim_process import DEADLINE_S, ShimProcess

HOST = "127.0.0.1"
PATIENCE_S = 60
JOB = RequestId("01234567-89ab-cdef-0123-456789abcdef")


class Key:
    """A pair of keys, its private half in a file as `ssh -i` wants it."""

    def __init__(self, path: Path, kind: str = "ssh-ed25519") -> None:
        self.pair = asyncssh.generate_private_key(kind)
        self.path = path
        path.write_bytes(self.pair.export_private_key())
        path.chmod(0o600)

    @property
    def fingerprint(self) -> str:
        return self.pair.get_fingerprint()


@dataclass
class PlayedNode:
    """Knows keys, and one VM. What it is asked is counted, and can be made to fail or to wait."""

    shim: ShimProcess
    keys: dict[str, KeyTarget] = field(default_factory=dict)
    looked_up: list[str] = field(default_factory=list)
    leased: list[RequestId] = field(default_factory=list)
    held: int = 0
    fail_find: Exception | None = None
    fail_lease: Exception | None = None
    is_awake: asyncio.Event = field(default_factory=asyncio.Event)
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def find_url(self, host: str) -> None:
        return None

    async def find_key(self, fingerprint: str) -> KeyTarget | None:
        self.looked_up.append(fingerprint)
        if self.fail_find is not None:
            raise self.fail_find
        return self.keys.get(fingerprint)

    @contextlib.asynccontextmanager
    async def lease(self, request_id: RequestId) -> AsyncIterator[Lease]:
        self.leased.append(request_id)
        await self.is_awake.wait()
        if self.fail_lease is not None:
            raise self.fail_lease
        self.held += 1
        try:
            yield PlayedLease(self)
        finally:
            self.held -= 1


class PlayedLease:
    vm = VmId("0badcafe")
    epoch = 7

    def __init__(self, node: PlayedNode) -> None:
        self._node = node

    async def connection(self):
        shim = self._node.shim
        async with self._node.connecting:
            if shim.streams is None or not shim.streams.is_open:
                shim.streams = await shim.connect()
            return shim.streams


@dataclass
class Done:
    """A program that has ended."""

    code: int
    out: bytes
    err: bytes


class World:
    """A gateway that serves, a key that opens the VM, and programs that use both."""

    def __init__(self, folder: Path, shim: ShimProcess, settings: dict) -> None:
        self.folder = folder
        self.shim = shim
        self.node = PlayedNode(shim)
        self.node.is_awake.set()
        self.key = Key(folder / "key")
        # Not this machine's home, whose start files may do anything.
        self.home = folder / "home"
        self.home.mkdir()
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.home), "OF_JOB": "a b"}
        self.node.keys[self.key.fingerprint] = KeyTarget(JOB, variables)
        self.host_key = Key(folder / "host_key")
        self.settings = SshSettings(host_key=self.host_key.path.read_bytes(), **settings)
        self.gateway = SshGateway(self.node, self.settings)
        self.listener = socket.create_server((HOST, 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        (folder / "known_hosts").write_bytes(
            f"[{HOST}]:{self.port} ".encode() + self.host_key.pair.export_public_key()
        )
        self._serving: asyncio.Task | None = None

    async def begin(self) -> None:
        self._serving = asyncio.create_task(self.gateway.serve(self.listener))

    async def end(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
            self._serving = None

    async def aclose(self) -> None:
        await self.end()
        self.listener.close()

    # --- programs ---------------------------------------------------------------

    def options(self, *more: str) -> list[str]:
        options = [
            f"UserKnownHostsFile={self.folder}/known_hosts",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=30",
            *more,
        ]
        return ["-F", "/dev/null", *(word for option in options for word in ("-o", option))]

    def ssh_words(self, *words: str, options=(), user: str = "root", key: Key | None = None):
        identity = str((key or self.key).path)
        more = self.options(*options)
        return ["ssh", *more, "-i", identity, "-p", str(self.port), f"{user}@{HOST}", *words]

    async def start(self, words, **kinds) -> asyncio.subprocess.Process:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        environment |= kinds.pop("env", {})
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
        return await asyncio.create_subprocess_exec(
            *map(str, words), env=environment, **{**pipes, **kinds}
        )

    async def run(self, words, input: bytes = b"", **kinds) -> Done:
        process = await self.start(words, **kinds)
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await process.communicate(input)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        return Done(process.returncode, out, err)

    async def ssh(self, *words: str, input: bytes = b"", env=None, **kinds) -> Done:
        return await self.run(self.ssh_words(*words, **kinds), input, env=env or {})

    async def copy(self, program: str, *words: str, input: bytes = b"") -> Done:
        """Run scp or sftp; `remote:` in a word is the VM."""
        more = ["-i", str(self.key.path), "-P", str(self.port)]
        words = [word.replace("remote:", f"root@{HOST}:") for word in words]
        return await self.run([program, *self.options(), *more, *words], input)


@contextlib.asynccontextmanager
async def world(folder: Path, **settings) -> AsyncIterator[World]:
    """A world that leaves nothing behind; a VM that takes too long is killed."""
    (folder / "run").mkdir()
    async with await ShimProcess.open(folder / "run") as shim:
        shim.streams = None
        loop = asyncio.get_running_loop()
        too_late = loop.call_later(4 * DEADLINE_S, os.kill, shim.pid, signal.SIGKILL)
        made = World(folder, shim, settings)
        await made.begin()
        try:
            yield made
        finally:
            too_late.cancel()
            await made.aclose()
