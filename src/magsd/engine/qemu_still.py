"""What a microVM has changed: how it is held still, and its disk, read in another microVM.

A disk that a guest's kernel wrote is never mounted on the host: a machine that
does nothing else mounts it, and sends what is in it.
"""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from magsd.engine.base import Capture, Handle, Plan
from magsd.engine.qemu_bare import ReaderBootLaunch, ReaderCloneLaunch
from magsd.engine.qemu_boot import booted, tried
from magsd.engine.qemu_launch import Parts
from magsd.engine.template_files import Template
from magsd.engine.vm_host import VmHost
from magsd.engine.vm_launch import Launched
from magsd.guest.shim import ShimConnection, ShimError, Stream
from magsd.guest.wire import pack_fields
from magsd.model.errors import LaunchError
from magsd.model.names import new_vm_id

_log: Final = structlog.get_logger()

UPPER: Final = "/disk/upper"
"""Where such a machine has what the other has changed."""
_MEMORY_MB: Final = 512
"""As most VMs have it: they share a template."""
_PROCESSES: Final = 16
_SILENCE_S: Final = 60.0
_REST_S: Final = 20.0
"""For a guest to write out all that it has in memory."""
_REST_MS: Final = 5000
"""For whoever is at it to end the VM."""
_SYNC: Final = b"s"
_FREEZE: Final = b"f"

Cloned = Callable[[Plan, Callable[[Template], Awaitable[Launched]]], Awaitable[Launched | None]]


class DiskHolding:
    """A guest's disk held by its agent, in a stream `freeze`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def write_out(self) -> None:
        """Have what was written so far in the image, and give back what is free."""
        await self._ask(_SYNC)

    async def hold(self) -> None:
        """Hold what writes to the disk."""
        await self._ask(_FREEZE)

    async def let_go(self) -> None:
        """Let it go on. Raises `ShimError` where the deadline was before."""
        await self._stream.write_eof()
        (await self._stream.exit()).check("freeze")

    async def _ask(self, what: bytes) -> None:
        await self._stream.write(what)
        if await self._stream.read() != what:
            (await self._stream.exit()).check("freeze")
            raise ShimError("freeze: another answer than was asked for")


@asynccontextmanager
async def held_by_agent(connection: ShimConnection, deadline_ms: int) -> AsyncIterator[DiskHolding]:
    """Hold a VM's disk for a while; see `moment.Hold`."""
    payload = pack_fields("freeze", [("deadline_ms", str(deadline_ms))])
    async with await connection.open_stream(payload) as stream:
        yield DiskHolding(stream)


@asynccontextmanager
async def at_rest(handle: Handle) -> AsyncIterator[None]:
    """Have a guest write out what it has in memory, and nothing more, in the block.

    One that does not is told to the log: it may lose what it wrote last.
    """
    async with AsyncExitStack() as held:
        try:
            async with asyncio.timeout(_REST_S):
                connection = await ShimConnection.open(
                    handle.run_directory, handle.vm, handle.epoch
                )
                held.push_async_callback(connection.aclose)
                holding = await held.enter_async_context(held_by_agent(connection, _REST_MS))
                await holding.write_out()
                await holding.hold()
        except (ShimError, TimeoutError) as error:
            _log.warning("not_at_rest", vm=handle.vm, why=repr(error))
        yield


async def tar_of(
    host: VmHost, parts: Parts, cloned: Cloned, disk: int, held: AsyncExitStack
) -> Capture:
    """Show what a disk's upper directory holds, until `held` is unwound.

    Raises `LaunchError`, `OSError`.
    """
    plan = _plan(disk)
    directory = host.run / plan.vm

    async def clone(template: Template) -> Launched:
        launch = ReaderCloneLaunch(host, parts, plan, directory, template)
        launch.disk = disk
        return await tried(launch, held)

    async def boot() -> Launched:
        launch = ReaderBootLaunch(host, parts, plan, directory)
        launch.disk = disk
        return await tried(launch, held)

    host.launching.add(plan.vm)
    held.callback(host.launching.discard, plan.vm)
    if (launched := await cloned(plan, clone)) is None:
        launched = await booted(boot, parts.boot_s, vm=plan.vm, image=plan.image)
    payload = pack_fields("capture", [("path", UPPER)])
    stream = await launched.connection.open_stream(payload)
    tar = _tar(stream)
    held.push_async_callback(tar.aclose)
    return Capture(tar=tar)


def _plan(disk: int) -> Plan:
    return Plan(
        vm=new_vm_id(),
        epoch=1,
        image="none",
        layers=(),
        hostname="reader",
        vcpus=1.0,
        memory_mb=_MEMORY_MB,
        disk_gb=math.ceil(os.fstat(disk).st_size / (1 << 30)),
        pids_limit=_PROCESSES,
        waits=True,
        network=False,
    )


async def _tar(stream: Stream) -> AsyncGenerator[bytes]:
    try:
        while True:
            async with asyncio.timeout(_SILENCE_S):
                data = await stream.read()
            if not data:
                break
            yield data
        (await stream.exit()).check("capture")
    except (ShimError, TimeoutError) as error:
        raise LaunchError(
            "what the sandbox has changed cannot be read to its end", repr(error)
        ) from error
