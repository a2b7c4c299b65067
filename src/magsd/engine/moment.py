"""A live VM's disk as it is at one moment: held still, copied by reference, let go.

Owns the order of that, its deadlines, and how often it is tried. How a VM is
held is its engine's: a `Holding`. Whoever dies in the middle leaves nothing
held: each way of holding ends at its deadline, and with our connection.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, TypeAlias

import structlog

from magsd.aio import finish
from magsd.engine import mounts
from magsd.engine.base import Handle
from magsd.engine.vm_host import VmHost
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError

_log: Final = structlog.get_logger()

_HOLDS_S: Final = (0.05, 0.05, 0.05, 0.05, 0.1, 0.2, 0.4)
"""How long a VM is held at most, one try after the other. The first nearly always do: what was
written before is on the disk by then. The last are for a host on which everything takes long."""
_COPY_S: Final = 30.0
"""Where the copy is no reference, it takes as long as there is data."""
_WRITE_OUT_S: Final = 120.0
_ROUNDS_MAX: Final = 5
_SETTLED_S: Final = 0.015
"""What is written out so quickly is so again while the VM is held."""
_ANSWER_S: Final = 5.0


class Holding(Protocol):
    """How one VM is held still, for one try. All of it may raise `ShimError` and `OSError`."""

    async def write_out(self) -> None:
        """Have what was written so far in the image; the VM goes on meanwhile."""

    async def hold(self) -> None:
        """Hold the VM, with all that it has written in the image. Ends at the deadline."""

    async def let_go(self) -> None:
        """Let it go on. Raises `ShimError` where it was let go before."""


Hold: TypeAlias = Callable[[ShimConnection, int], AbstractAsyncContextManager[Holding]]
"""Makes one from a connection of its own and a deadline in milliseconds; its end lets go too."""


class _LateError(Exception):
    """The VM may have gone on before the copy was made."""


async def of(host: VmHost, handle: Handle, hold: Hold) -> int:
    """Return a descriptor of a copy of a live VM's image; with it the copy goes.

    Raises `LookupError` when the VM has no disk any more, `LaunchError`.
    """
    image = host.disks.open(handle.vm)
    try:
        async with asyncio.timeout(_ANSWER_S):
            connection = await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
        try:
            return await _moment(host, image, connection, hold)
        finally:
            await finish(connection.aclose())
    except (ShimError, TimeoutError, _LateError) as error:
        raise LaunchError(
            "the sandbox could not be held still: try again when the host is less busy",
            repr(error),
        ) from error
    finally:
        os.close(image)


async def _moment(host: VmHost, image: int, connection: ShimConnection, hold: Hold) -> int:
    holds_s = _HOLDS_S if host.disks.has_reflinks else (_COPY_S,)
    for number, hold_s in enumerate(holds_s, 1):
        try:
            return await _one_try(host, image, connection, hold, hold_s)
        except _LateError as error:
            _log.info("held_too_short", tried=number, hold_s=hold_s, why=str(error))
            if number == len(holds_s):
                raise
    raise AssertionError


async def _one_try(
    host: VmHost, image: int, connection: ShimConnection, hold: Hold, hold_s: float
) -> int:
    clock = host.clock
    async with hold(connection, int(hold_s * 1000)) as holding:
        async with asyncio.timeout(_WRITE_OUT_S):
            await _settle(host, image, holding)
        copied: list[int] = []
        try:
            async with asyncio.timeout(_ANSWER_S + hold_s):
                began = clock.monotonic()
                await holding.hold()
                held = clock.monotonic()
                await finish(asyncio.to_thread(_copy, host, image, copied))
                took_s = clock.monotonic() - began
                await holding.let_go()
            if took_s >= hold_s:
                raise _LateError(f"holding took {held - began:.3f} of {took_s:.3f} s")
        except BaseException:
            for copy in copied:
                os.close(copy)
            raise
    _log.debug("held", took_s=round(took_s, 4))
    return copied[0]


async def _settle(host: VmHost, image: int, holding: Holding) -> None:
    """Write out until there is next to nothing to write."""
    for _ in range(_ROUNDS_MAX):
        began = host.clock.monotonic()
        await holding.write_out()
        await finish(asyncio.to_thread(mounts.write_out, image))
        if host.clock.monotonic() - began < _SETTLED_S:
            return


def _copy(host: VmHost, image: int, copied: list[int]) -> None:
    copied.append(host.disks.copy_unnamed(image))
