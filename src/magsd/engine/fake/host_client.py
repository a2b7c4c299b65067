"""The engine's end of its link to the host of the VMs: started or found, asked, and lost.

Knows which VMs live there: the host tells when one has ended, and when the
host itself is gone, all have.
"""

import asyncio
import itertools
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from magsd.aio import Clock, finish
from magsd.engine import process
from magsd.engine.fake.lines import SOCKET_NAME, LineLink, Message
from magsd.engine.process import Detached, ProcessError
from magsd.model.errors import LaunchError
from magsd.model.names import VmId

_MODULE: Final = "magsd.engine.fake.host"
_KEPT_VARIABLES: Final = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH")
_GREETING_S: Final = 20.0
_ANSWER_S: Final = 10.0
_AGAIN_S: Final = 0.02
_LEAVE_S: Final = 1.0
_GONE: Final = "the host of the fake VMs is gone"


class HostRefusedError(Exception):
    """The host refused, or is gone; the text says why."""


class HostClient:
    """A link to a host. Made by `find` or `start`; `watch` must run while it is in use."""

    def __init__(self) -> None:
        self.living: dict[VmId, asyncio.Event] = {}
        """What lives, and what is set when it does no more."""
        self.gone = asyncio.Event()
        """`watch` has seen the host's end."""
        self.pid = 0
        self.start_time = 0
        self._link = LineLink(self._take, self._lost)
        self._greeting = asyncio.get_running_loop().create_future()
        self._is_lost = asyncio.Event()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._launches: dict[int, VmId] = {}
        self._process: Detached | None = None

    # --- begin and end -------------------------------------------------------------------

    @classmethod
    async def find(cls, run: Path) -> "HostClient | None":
        """Return a link to the host that holds the folder of run directories; None without one."""
        if (sock := _connected(run)) is None:
            return None
        client = cls()
        try:
            await client._attach(sock)
        except HostRefusedError:
            return None
        client._process = Detached.find(client.pid, client.start_time)
        if client._process is None:
            client._link.close()
            return None
        return client

    @classmethod
    async def open(cls, run: Path, clock: Clock) -> "HostClient":
        """Return a link to the host of the folder, which is started if there is none.

        Raises `LaunchError`.
        """
        try:
            async with asyncio.timeout(_GREETING_S):
                while True:
                    found: HostClient | None = await cls.find(run) or await finish(cls._start(run))
                    if found is not None:
                        return found
                    # An earlier one is just ending, or beginning.
                    await clock.sleep(_AGAIN_S)
        except TimeoutError:
            raise LaunchError("the host of the fake VMs did not begin") from None

    @classmethod
    async def _start(cls, run: Path) -> "HostClient | None":
        """Start a host; None when there is another. To be run to its end, see `finish`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                started = process.start_detached(
                    [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    cwd=run,
                    env={key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
                )
            except ProcessError as error:
                ours.close()
                raise LaunchError(error.message, error.detail) from error
        client = cls()
        client._process = started
        try:
            async with asyncio.timeout(_GREETING_S):
                await client._attach(ours)
        except (HostRefusedError, TimeoutError):
            started.send_signal(signal.SIGKILL)
            await started.wait()
            started.close()
            return None
        return client

    async def _attach(self, sock: socket.socket) -> None:
        """Take over a connected socket, also when this fails; return when the host has greeted."""
        try:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: self._link, sock=sock)
            greeting = await self._greeting
            if (error := greeting.get("error")) is not None:
                raise HostRefusedError(error)
        except BaseException:
            if not self._link.close():
                sock.close()
            raise
        self.pid, self.start_time = greeting["pid"], greeting["start_time"]

    @property
    def is_lost(self) -> bool:
        """Whether the link has ended: the host is gone, or about to be."""
        return self._link.is_lost

    async def watch(self) -> None:
        """Return when the host is gone, and with it all its VMs; a link that is lost ends it."""
        assert self._process is not None
        await self._is_lost.wait()
        self._process.send_signal(signal.SIGKILL)
        await finish(self._process.wait())
        self._process.close()
        for vm in list(self.living):
            self._end(vm)
        self.gone.set()

    async def aclose(self) -> None:
        """Let go of the host and its VMs, which live on. `watch` must have ended."""
        self._link.close()
        await self._is_lost.wait()
        if self._process is None or self._process.fileno() < 0:
            return
        if not self.living:
            # It ends now; as our child it must be waited for.
            try:
                async with asyncio.timeout(_LEAVE_S):
                    await self._process.wait()
            except TimeoutError:
                pass
        self._process.close()

    def kill(self) -> None:
        """End the host and all its VMs without a word."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)

    # --- what it is asked -------------------------------------------------------------------

    async def request(self, do: str, vm: VmId, **fields: Any) -> Message:
        """Ask the host and return its answer. Raises `HostRefusedError`, `TimeoutError`."""
        if self._link.is_lost:
            raise HostRefusedError(_GONE)
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        if do == "launch":
            self._launches[number] = vm
        self._link.send({"id": number, "do": do, "vm": vm, **fields})
        async with asyncio.timeout(_ANSWER_S):
            reply: Message = await answer
        if (error := reply.get("error")) is not None:
            raise HostRefusedError(error)
        return dict(reply["ok"])

    def _end(self, vm: VmId) -> None:
        if (ended := self.living.pop(vm, None)) is not None:
            ended.set()

    def _take(self, message: Message) -> None:
        if "ended" in message:
            self._end(VmId(message["ended"]))
        elif "began" in message:
            self.living[VmId(message["began"])] = asyncio.Event()
        elif "id" in message:
            self._take_reply(message)
        elif not self._greeting.done():
            for vm in message.get("vms", []):
                self.living[VmId(vm)] = asyncio.Event()
            self._greeting.set_result(message)

    def _take_reply(self, message: Message) -> None:
        # Known at once, also if nobody waits any more: what comes next may be its end.
        vm = self._launches.pop(message["id"], None)
        if vm is not None and "ok" in message:
            self.living[vm] = asyncio.Event()
        answer = self._answers.pop(message["id"])
        if not answer.done():
            answer.set_result(message)

    def _lost(self) -> None:
        self._is_lost.set()
        for answer in [self._greeting, *self._answers.values()]:
            if not answer.done():
                answer.set_result({"error": _GONE})


def _connected(run: Path) -> socket.socket | None:
    """Connect to the host of a folder. By way of a descriptor: a socket's path must be short."""
    with ExitStack() as undo:
        try:
            folder = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, folder)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return None
        try:
            sock.setblocking(False)
            sock.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        except OSError:
            sock.close()
            return None
    return sock
