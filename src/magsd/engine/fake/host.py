"""`python -m magsd.engine.fake.host DESCRIPTOR`: the process that holds all pretended VMs.

One for a data directory; its working directory is the folder of the run
directories, locked while it lives. The descriptor is its first link to an
engine; later engines come by way of `fake.sock`. It ends by itself when it
holds no VM and no engine is linked to it.
"""

import asyncio
import contextlib
import fcntl
import functools
import gc
import json
import os
import resource
import selectors
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop

from magsd.aio import SystemClock, Tasks
from magsd.engine.fake import upper
from magsd.engine.fake.lines import SOCKET_NAME, LineLink, Message
from magsd.engine.fake.link import ClientLink
from magsd.engine.fake.machine import Nature
from magsd.engine.fake.shim import Shim, Spec
from magsd.engine.fake.world import World
from magsd.engine.process import read_start_time
from magsd.guest.state import EndCode

_LISTENING: Final = "sock"
_BACKLOG: Final = 64
_GARBAGE_THRESHOLD: Final = 50_000


class RefusedError(Exception):
    """What an engine asked for cannot be done; the text says why."""


class Host:
    """All VMs of a data directory, and the engines that are linked."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._vms: dict[str, tuple[Shim, socket.socket]] = {}
        self._links: set[LineLink] = set()
        # One for all: ten thousand listening sockets are no burden for the loop.
        self._listening = selectors.DefaultSelector()
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)
        self._is_idle = asyncio.Event()

    # --- links -------------------------------------------------------------------------

    def listen(self) -> None:
        """Let later engines come."""
        self._listen(SOCKET_NAME, self.link)

    def link(self, connected: socket.socket) -> None:
        """Take a link to an engine."""
        link = LineLink(
            lambda message: self._take(link, message), lambda: self._lost(link), self._greeting
        )
        self._links.add(link)
        self._attach(connected, lambda: link)

    def _greeting(self) -> Message:
        pid = os.getpid()
        return {"pid": pid, "start_time": read_start_time(pid), "vms": list(self._vms)}

    def _take(self, link: LineLink, message: Message) -> None:
        reply: Message
        try:
            reply = {"ok": self._done(link, message)}
        except RefusedError as error:
            reply = {"error": str(error)}
        link.send({"id": message["id"], **reply})

    def _done(self, link: LineLink, message: Message) -> Message:
        vm = message["vm"]
        match message["do"]:
            case "launch":
                self._launch(vm, message)
                self._tell({"began": vm}, besides=link)
            case "end":
                if vm in self._vms:
                    self._vms[vm][0].end(EndCode.KILLED, "asked for")
            case "stats" if vm in self._vms:
                machine = self._vms[vm][0].machine
                return {
                    "memory_bytes": machine.memory_bytes,
                    "cpu_ns": machine.cpu_ns,
                    "processes": 1 + len(machine.programs),
                }
            case "capture" if vm in self._vms:
                self._capture(vm, message["into"])
            case _:
                raise RefusedError("there is no such VM")
        return {}

    def _lost(self, link: LineLink) -> None:
        self._links.discard(link)
        self._look()

    async def idle(self) -> None:
        """Return when no VM is held and nobody is linked; nobody can come any more then."""
        while self._vms or self._links:
            await self._is_idle.wait()
            self._is_idle.clear()
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        os.unlink(SOCKET_NAME)

    def _tell(self, message: Message, besides: LineLink | None = None) -> None:
        for link in self._links:
            if link is not besides:
                link.send(message)

    def _look(self) -> None:
        if not self._vms and not self._links:
            self._is_idle.set()

    # --- VMs ---------------------------------------------------------------------------

    def _launch(self, vm: str, message: Message) -> None:
        if vm in self._vms:
            raise RefusedError(f"there is a VM {vm} already")
        nature = Nature(message["hostname"], message["vcpus"], message["memory_mb"])
        spec = Spec(
            vm=vm,
            epoch=message["epoch"],
            nature=nature,
            log_rate_bytes=message["log_rate_bytes"],
            log_burst_bytes=message["log_burst_bytes"],
            claim_s=message["claim_s"],
            has_disk=message["has_disk"],
        )
        try:
            files = upper.read(Path(vm, upper.NAME)) if spec.has_disk else {}
            shim = Shim(self._world, Path(vm), spec, self._ended)
            for path, content in files.items():
                shim.machine.write(path, content)
            listener = self._listen(f"{vm}/{_LISTENING}", functools.partial(self._connect, shim))
        except OSError as error:
            raise RefusedError(error.strerror or str(error)) from error
        self._vms[vm] = (shim, listener)
        if spec.has_disk:
            # From here on only the VM has them, as they are now and will be.
            shutil.rmtree(Path(vm, upper.NAME), ignore_errors=True)

    def _capture(self, vm: str, into: str) -> None:
        """Write what a VM holds into a new directory of its run directory."""
        try:
            upper.write(Path(vm, into), self._vms[vm][0].machine.files())
        except OSError as error:
            raise RefusedError(error.strerror or str(error)) from error

    def _connect(self, shim: Shim, connected: socket.socket) -> None:
        self._attach(connected, lambda: ClientLink(shim))

    def _ended(self, shim: Shim) -> None:
        files = shim.machine.files()
        if files or shim.has_disk:
            # Where the disk is full, or the folder is gone, they are lost with the VM.
            with contextlib.suppress(OSError):
                upper.write(Path(shim.vm, upper.NAME), files)
        _, listener = self._vms.pop(shim.vm)
        self._listening.unregister(listener)
        listener.close()
        self._tell({"ended": shim.vm})
        self._look()

    # --- sockets -------------------------------------------------------------------------

    def _listen(self, path: str, act: Callable[[socket.socket], None]) -> socket.socket:
        """Listen at a path below the working directory, so that it is never too long."""
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(path)
            listener.listen(_BACKLOG)
            self._listening.register(listener, selectors.EVENT_READ, act)
            undo.pop_all()
        return listener

    def _accept(self) -> None:
        for key, _ in self._listening.select(0):
            assert isinstance(key.fileobj, socket.socket)
            # One that went again, or too many descriptors: the next ones may fare better.
            with contextlib.suppress(OSError):
                key.data(key.fileobj.accept()[0])

    def _attach(self, connected: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        self._world.spawn("connection", loop.connect_accepted_socket(make, connected))


async def _serve(first: socket.socket) -> None:
    tasks = Tasks(_report)
    try:
        host = Host(World(SystemClock(), tasks))
        host.link(first)
        host.listen()
        await host.idle()
    finally:
        await tasks.aclose()


def _report(name: str, error: BaseException) -> None:
    print(f"{name}: {error!r}", file=sys.stderr)  # noqa: T201 - a process of its own


def _locked() -> bool:
    """Be the only host of this folder, until this process ends."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    """Hold VMs until there is nothing to hold."""
    first = socket.socket(fileno=int(sys.argv[1]))
    if not _locked():
        first.send(json.dumps({"error": "another host holds this folder"}).encode() + b"\n")
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.set_threshold(_GARBAGE_THRESHOLD, 20, 100)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(first))


if __name__ == "__main__":
    main()
